// Drop zones: archives are sent as they are, with the true number of bytes, and then followed through the queue.
import { csrfToken, duration, refresh, toast } from "./app.js";

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${bytes.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

function row(file) {
  const task = document.createElement("div");
  task.className = "task";
  task.innerHTML =
    '<div class="task-head"><bdi class="name" dir="auto"></bdi><span data-show="share"></span></div>' +
    '<progress max="1" value="0"></progress>' +
    '<div class="task-foot"><span data-show="stage"></span><span data-show="eta"></span></div>';
  const name = task.querySelector(".name");
  name.textContent = file.name;
  name.title = file.name;
  task.querySelector("progress").setAttribute("aria-label", `Upload of ${file.name}`);
  return task;
}

function send(zone, file) {
  const task = row(file);
  zone.querySelector(".uploads").prepend(task);
  const show = (name, text) => (task.querySelector(`[data-show="${name}"]`).textContent = text);
  const query = new URLSearchParams({ name: file.name.replace(/\.zip$/i, "").slice(0, 200) || "archive" });
  const params = zone.querySelector("[name=params]")?.value.trim();
  if (params) query.set("params", params);
  const request = new XMLHttpRequest();
  const started = performance.now();
  request.open("POST", `${zone.dataset.upload}?${query}`);
  request.setRequestHeader("Content-Type", "application/zip");
  request.setRequestHeader("X-CSRF-Token", csrfToken());
  request.responseType = "json";
  request.upload.onprogress = (event) => {
    const part = event.loaded / event.total;
    task.querySelector("progress").value = part;
    show("share", `${Math.floor(100 * part)} %`);
    show("stage", `Sending · ${size(event.loaded)} of ${size(event.total)}`);
    const seconds = (performance.now() - started) / 1000;
    show("eta", part < 1 && seconds > 1 ? `${duration((seconds * (1 - part)) / part)} left` : "");
  };
  const fail = (message) => {
    task.querySelector("progress").remove();
    show("share", "");
    show("eta", "");
    const words = document.createElement("p");
    words.className = "alert";
    words.setAttribute("role", "alert");
    words.textContent = message;
    task.querySelector(".task-foot").replaceWith(words);
  };
  request.onload = () => {
    if (request.status !== 202) {
      fail(request.response?.error?.message ?? `The server answered ${request.status}; try again.`);
      return;
    }
    const id = request.response[zone.dataset.key];
    const kind = zone.dataset.key.replace("_id", "");
    task.dataset[kind] = id;
    task.querySelector("progress").value = 0;
    show("share", "");
    show("eta", "");
    show("stage", "In the queue, waiting for a worker");
    const link = document.createElement("a");
    link.href = `${zone.dataset.page}/${id}`;
    link.append(task.querySelector(".name").cloneNode(true));
    task.querySelector(".name").replaceWith(link);
    follow(task, kind, id, show);
    refresh();
  };
  request.onerror = () => fail("The server went away while the file was on its way. Check that it runs, and drop the file again.");
  request.send(file);
}

function follow(task, kind, id, show) {
  const listen = (event) => {
    const { topic, payload } = event.detail;
    if (payload[`${kind}_id`] !== id || topic.endsWith(".progress") || topic.endsWith(".epoch")) return;
    const state = topic.split(".")[1];
    const ended = ["registered", "finished", "rejected", "failed", "cancelled"].includes(state);
    if (!ended) return;
    document.removeEventListener("genderline:event", listen);
    task.querySelector("progress").value = state === "registered" || state === "finished" ? 1 : 0;
    show("share", state);
    show("eta", "");
    show("stage", payload.error?.message ?? "Done");
  };
  document.addEventListener("genderline:event", listen);
}

for (const zone of document.querySelectorAll("[data-upload]")) {
  const take = (files) => {
    const zips = [...files].filter((file) => /\.zip$/i.test(file.name) || file.type.includes("zip"));
    if (zips.length < files.length) toast("Only .zip archives are taken here; the rest was left out.");
    for (const file of zips) send(zone, file);
  };
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files);
  });
  const input = zone.querySelector("input[type=file]");
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
}

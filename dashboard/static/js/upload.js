// Drop zones: archives are sent in parts, with the true number of bytes, and then followed through the queue.
import { STAGES, changedParameters, duration, explainStatus, get, refresh, root, toast } from "./app.js";
import { NO_ANSWER, Refused, call, sendInParts } from "./parts.js";

const ENDED = ["registered", "ingested", "finished", "rejected", "failed", "cancelled"];
const ARCHIVE = /\.(zip|tar|tar\.gz|tgz)$/i;
let sending = 0;

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

// What an answer other than ours means: a proxy in front of the dashboard has limits of its own.
function meaning(request) {
  if (request.response?.error) return request.response.error.message;
  if (request.status === 413) {
    return "A proxy in front of the dashboard refused this file as too large (413). Raise its limit (nginx: client_max_body_size), or put the file where the services can read it and submit it by reference.";
  }
  return `${explainStatus(request.status)} What was sent is kept for a day: drop the file again.`;
}

async function send(zone, file) {
  const task = row(file);
  zone.querySelector(".uploads").prepend(task);
  const show = (name, text) => (task.querySelector(`[data-show="${name}"]`).textContent = text);
  const query = new URLSearchParams({ name: file.name.replace(ARCHIVE, "").slice(0, 200) || "archive" });
  const params = changedParameters(zone);
  if (Object.keys(params).length) query.set("params", JSON.stringify(params));
  const labels = [...zone.querySelectorAll("[data-label]")].map((field) => [field.dataset.label, field.value.trim()]);
  const given = labels.filter(([, value]) => value);
  if (given.length) query.set("labels", JSON.stringify(Object.fromEntries(given)));
  if (zone.querySelector("[data-look]")?.checked) query.set("train", "false");
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
  let started = null;
  const onProgress = (bytes) => {
    started ??= { at: performance.now(), bytes };
    const part = Math.min(1, bytes / file.size);
    task.querySelector("progress").value = part;
    show("share", `${Math.floor(100 * part)} %`);
    show("stage", `Sending · ${size(Math.min(bytes, file.size))} of ${size(file.size)}`);
    const seconds = (performance.now() - started.at) / 1000;
    const rate = (bytes - started.bytes) / seconds;
    show("eta", part < 1 && seconds > 1 && rate > 0 ? `${duration((file.size - bytes) / rate)} left` : "");
  };
  const onTrouble = (error) => {
    started = null;
    const { status, response } = error.request ?? {};
    const away = status ? `The dashboard does not answer (${status})` : "The connection to the server was lost";
    show("stage", `${response?.error?.message ?? away}. Trying again…`);
    show("eta", "");
  };
  const onLogin = () => show("stage", "Waiting for you to log in");
  sending += 1;
  try {
    const finish = (upload) => call("POST", `${zone.dataset.upload}?${query}&upload=${upload}`, { onLogin });
    const request = await sendInParts(file, finish, { onProgress, onTrouble, onLogin });
    queued(zone, task, show, request.response);
  } catch (error) {
    if (error instanceof Refused) fail(meaning(error.request));
    else if (error.message !== NO_ANSWER) fail(error.message);
    else fail("The connection to the server was lost. Check that the dashboard is running, then drop the file again: what was sent is kept for a day.");
  } finally {
    sending -= 1;
  }
}

// Links an upload to the run or job that it became, and follows that.
function queued(zone, task, show, answer) {
  const id = answer[zone.dataset.key];
  const kind = zone.dataset.key.replace("_id", "");
  task.dataset[kind] = id;
  task.querySelector("progress").value = 0;
  show("share", "");
  show("eta", "");
  show("stage", answer.ahead == null ? "Queued" : `Queued (${answer.ahead} ahead)`);
  const link = document.createElement("a");
  link.href = `${zone.dataset.page}/${id}`;
  link.append(task.querySelector(".name").cloneNode(true));
  task.querySelector(".name").replaceWith(link);
  follow(task, kind, id, show);
  refresh();
}

// Leaving the page interrupts an upload.
window.addEventListener("beforeunload", (event) => sending && event.preventDefault());

// Shows how a run or job ends: from its event, or from its record where the event was missed.
function follow(task, kind, id, show) {
  const end = (state, error) => {
    document.removeEventListener("genderline:event", listen);
    document.removeEventListener("genderline:refreshed", look);
    task.dataset.state = state;
    task.querySelector("progress").value = ["registered", "ingested", "finished"].includes(state) ? 1 : 0;
    show("share", state);
    show("eta", "");
    show("stage", error?.message ?? "Done");
  };
  const listen = ({ detail: { topic, payload } }) => {
    const state = topic.split(".")[1];
    if (payload[`${kind}_id`] === id && ENDED.includes(state)) end(state, payload.error);
  };
  const look = async () => {
    const record = await get(`${root}/api/v1/${kind}s/${id}`).catch(() => null);
    if (record && ENDED.includes(record.state)) end(record.state, record.error);
    else if (record && record.state in STAGES && !(task.dataset.state in STAGES)) show("stage", STAGES[record.state]);
  };
  document.addEventListener("genderline:event", listen);
  document.addEventListener("genderline:refreshed", look);
}

for (const zone of document.querySelectorAll("[data-upload]")) {
  const take = (files) => {
    const archives = [...files].filter((file) => ARCHIVE.test(file.name) || file.type.includes("zip"));
    if (archives.length < files.length) {
      toast("Only .zip, .tar and .tar.gz files can be uploaded here; other files were skipped.");
    }
    for (const file of archives) send(zone, file);
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

// The predict page: sends a face through the queue and shows the answer; then, if asked, a map of the areas that mattered.
import { get, post, root } from "./app.js";
import { askMap, paint } from "./explain.js";

// A face whose archive was removed has no original any more.
for (const image of document.querySelectorAll("img[data-may-fail]")) {
  const hide = () => image.closest("figure").remove();
  if (image.complete && !image.naturalWidth) hide();
  else image.addEventListener("error", hide);
}

const results = document.getElementById("results");
const version = document.getElementById("version");

function query(extra = {}) {
  const text = new URLSearchParams(extra);
  if (version?.value) text.set("model_version", version.value);
  return text;
}

function card(name, page) {
  const item = document.getElementById("result").content.cloneNode(true).querySelector("section");
  const at = (key) => item.querySelector(`[data-${key}]`);
  at("name").textContent = name;
  at("name").title = name;
  if (page) {
    at("page").href = page;
    at("page").hidden = false;
  }
  return { item, at };
}

// A strip of thumbnails chooses which of several images is shown large.
const strip = document.getElementById("strip");

function choose(item) {
  for (const other of results.children) other.hidden = other !== item;
  for (const button of strip.querySelectorAll("button")) {
    if (button.shown === item) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function addThumbnail(item, name, given) {
  const place = document.createElement("li");
  const button = document.createElement("button");
  const image = document.createElement("img");
  const words = document.createElement("span");
  Object.assign(button, { type: "button", title: name, shown: item });
  Object.assign(image, { src: given, alt: name, width: 64, height: 64 });
  words.className = "small";
  words.textContent = "…";
  image.addEventListener("error", () => image.remove());
  button.append(image, words);
  button.addEventListener("click", () => choose(item));
  place.append(button);
  strip.prepend(place);
  strip.hidden = strip.children.length < 2;
  return (text, look) => {
    words.textContent = text;
    words.className = `small ${look}`;
  };
}

async function predict(blob, { name, given, gender, page }) {
  const { item, at } = card(name, page);
  results.prepend(item);
  const tell = addThumbnail(item, name, given);
  choose(item);
  at("given").src = given;
  at("given").addEventListener("error", () => at("given").closest("figure").remove());
  // The server looks at the content, and says of a file that is no image what it is.
  const options = { body: blob, headers: { "Content-Type": "image/jpeg" } };
  try {
    const answer = await post(`${root}/predict/image?${query({ name })}`, options);
    const [entry] = answer.reply.predictions;
    const truth = gender ?? answer.true_gender;
    at("seen").src = answer.seen;
    at("predicted").textContent = entry.gender;
    at("predicted").className = `gender-${entry.gender}`;
    const sure = document.createElement("small");
    sure.textContent = `${(100 * entry.confidence).toFixed(1)} % confidence`;
    at("predicted").append(" ", sure);
    if (truth) {
      at("true").textContent = truth;
      const mark = document.createElement("span");
      mark.className = `verdict ${truth === entry.gender ? "correct" : "wrong"}`;
      mark.textContent = truth === entry.gender ? "✓ correct" : "✗ wrong";
      at("true").append(" ", mark);
    } else at("true").textContent = "none in the file name";
    const mark = truth ? (truth === entry.gender ? "✓ " : "✗ ") : "";
    tell(mark + entry.gender, truth ? (truth === entry.gender ? "verdict correct" : "verdict wrong") : `gender-${entry.gender}`);
    at("p").textContent = entry.probability_female.toFixed(3);
    at("bar").value = entry.probability_female;
    at("bar").classList.add(entry.gender);
    at("took").textContent = `Model ${answer.reply.model.version}, ${Math.round(1000 * answer.seconds)} ms including the queue.`;
    at("look").disabled = false;
    at("look").addEventListener("click", () => look(item, at, options));
  } catch (error) {
    at("answer").remove();
    at("seen").closest("figure").remove();
    at("look").remove();
    at("error").textContent = error.message;
    at("error").hidden = false;
    tell("error", "verdict wrong");
  }
}

async function look(item, at, options) {
  at("look").disabled = true;
  at("look").textContent = "Explaining…";
  try {
    at("map-words").textContent = paint(item.querySelector("canvas"), await askMap(query(), options.body));
    at("look").hidden = true;
  } catch (error) {
    at("error").textContent = error.message;
    at("error").hidden = false;
    at("look").disabled = false;
    at("look").textContent = "Try again";
  }
}

if (results?.dataset.face && !("noModel" in results.dataset)) {
  const { face, original, name, gender, page } = results.dataset;
  const blob = await get(face, "blob");
  predict(blob, { name, given: original, gender, page });
}

// The camera: browsers give it only to pages that came over HTTPS or from this machine.
function setUpCamera() {
  const [open, panel, words] = ["camera-open", "camera", "camera-words"].map((id) => document.getElementById(id));
  const video = panel.querySelector("video");
  if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) {
    open.hidden = true;
    words.textContent = "The camera needs HTTPS, or a browser on the machine that runs the dashboard.";
    return;
  }
  const close = () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    panel.hidden = true;
    open.hidden = false;
  };
  open.addEventListener("click", async () => {
    words.textContent = "";
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
      panel.hidden = false;
      open.hidden = true;
      panel.querySelector("[data-shoot]").focus();
    } catch (error) {
      const reasons = {
        NotAllowedError: "The browser does not allow the camera. Allow it for this page, then try again.",
        NotFoundError: "No camera was found.",
        NotReadableError: "Another program uses the camera.",
      };
      words.textContent = reasons[error.name] ?? `The camera could not be opened: ${error.message}`;
    }
  });
  let pictures = 0;
  panel.querySelector("[data-shoot]").addEventListener("click", () => {
    const side = Math.min(video.videoWidth, video.videoHeight);
    if (!side) return; // no picture has come yet
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: side, height: side });
    const [left, top] = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2];
    canvas.getContext("2d").drawImage(video, left, top, side, side, 0, 0, side, side);
    pictures += 1;
    const name = `camera ${pictures}`;
    canvas.toBlob((blob) => predict(blob, { name, given: URL.createObjectURL(blob) }), "image/jpeg", 0.95);
  });
  panel.querySelector("[data-close]").addEventListener("click", close);
  window.addEventListener("pagehide", close);
}

const drop = document.getElementById("own-drop");
if (drop) {
  const take = (files) => {
    for (const file of files) predict(file, { name: file.name, given: URL.createObjectURL(file) });
    results.scrollIntoView({ block: "nearest" });
  };
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  const input = document.getElementById("own");
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  setUpCamera();
}

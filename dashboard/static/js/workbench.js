// The faces of a dataset as a workbench: a window over all that were found, a selection, keys that correct labels.
//
// The page works without this script: faces stand in pages, facets are links, and each face has a page with a form. Here
// only the faces in sight are in the document. Their figures come in chunks from the API, their pictures as one sheet for
// each chunk, whose address names the faces, so that browsers keep it.

import { applyFilters, get, post, renewRegions, root, toast } from "./app.js";
import { askMap, paint } from "./explain.js";

const CHUNK = 64; // faces in a sheet
const SHEET_COLUMNS = 8;
const CELL = 116; // the least width, in pixels
const CAPTION = 40;
const GAP = 8;
const SPARE_ROWS = 4; // drawn above and below what is in sight
const LEAST_AHEAD = 6; // chunks to prefetch once the pointer or the focus is on the faces
const MOST_AHEAD = 16; // chunks that are asked for before they are in sight
const WAIT_MS = 150; // before a face that somebody passes over is asked for
const CHANGES = { m: "male", f: "female", x: "exclude" };

const bench = document.querySelector("[data-bench]");
const list = document.getElementById("window");
const canvas = list?.firstElementChild;
const inspector = document.getElementById("inspector");
const form = document.querySelector("form[data-auto]");

let query = ""; // of the filter
let total = 0;
let asOf = 0; // number of edits and undos at the last reset; later ones do not move faces
let chunks = new Map(); // number → {faces, sheet}, or the promise of it
let cells = new Map(); // position → element
let columns = 1;
let cursor = 0;
let anchor = 0;
let selected = new Set(); // indices of faces, which outlive their positions
// Numbers of the edits made in this tab, which alone can be undone by a key: another's are undone on the face's page.
const MADE = `edits of ${bench?.dataset.sha256}`;
const made = JSON.parse(sessionStorage.getItem(MADE) ?? "[]");

function rowHeight() {
  return cellWidth() + CAPTION + GAP;
}

function cellWidth() {
  return (canvas.clientWidth - GAP * (columns - 1)) / columns;
}

// -- what was found

async function load(number) {
  const found = await get(`${bench.dataset.faces}?${query ? `${query}&` : ""}offset=${number * CHUNK}&limit=${CHUNK}&as_of=${asOf}`);
  const names = found.faces.map((face) => face.index).join(",");
  return { faces: found.faces, sheet: `${bench.dataset.pages}sheet.webp?faces=${names}` };
}

function ask(number) {
  if (number < 0 || number * CHUNK >= total || chunks.has(number)) return;
  const own = chunks;
  const promise = load(number).then(
    (chunk) => {
      own.set(number, chunk);
      if (near) new Image().src = chunk.sheet; // before its cells are drawn
      if (own === chunks) drawSoon();
    },
    () => own.delete(number),
  );
  own.set(number, promise);
}

function faceAt(position) {
  return chunks.get(Math.floor(position / CHUNK))?.faces?.[position % CHUNK];
}

async function faceSurely(position) {
  const number = Math.floor(position / CHUNK);
  ask(number);
  await chunks.get(number);
  return faceAt(position);
}

// -- the window

function newCell(position) {
  const cell = document.createElement("div");
  cell.className = "cell";
  cell.id = `cell-${position}`;
  cell.setAttribute("role", "option");
  cell.setAttribute("aria-setsize", total);
  cell.setAttribute("aria-posinset", position + 1);
  cell.dataset.position = position;
  cell.innerHTML = '<div class="thumb-of-sheet"></div><div class="cap"><span data-line></span><span data-verdict></span></div>';
  return cell;
}

function fill(cell, position) {
  const face = faceAt(position);
  cell.setAttribute("aria-selected", face ? selected.has(face.index) : false);
  cell.classList.toggle("cursor", position === cursor);
  if (!face) {
    cell.setAttribute("aria-label", `Face ${position + 1} of ${total}, loading`);
    return;
  }
  const marked = { corrected: "✎ ", confirmed: "✓ ", excluded: "⊘ " }[face.edited] ?? "";
  const age = face.age == null ? "" : `, ${face.age}`;
  const sure = face.predicted ? `${Math.round(100 * face.confidence)} %` : "";
  cell.className = `cell ${face.edited}${face.predicted && !face.correct ? " wrong" : ""}${position === cursor ? " cursor" : ""}`;
  cell.dataset.face = face.index;
  cell.title = face.name;
  cell.querySelector("[data-line]").textContent = `${marked}${face.gender}${age}`;
  cell.querySelector("[data-verdict]").textContent = face.predicted ? `${face.correct ? "✓" : "✗"} ${face.predicted} ${sure}` : "";
  const predicted = face.predicted ? `, predicted ${face.predicted} ${sure}, ${face.correct ? "correct" : "wrong"}` : "";
  const edited = face.edited === "unedited" ? "" : `, ${face.edited}`;
  cell.setAttribute("aria-label", `Face ${face.index}, label ${face.gender}${age}${predicted}${edited}`);
  if (!cell.dataset.pictured) {
    cell.dataset.pictured = "yes";
    const { faces, sheet } = chunks.get(Math.floor(position / CHUNK));
    const [place, rows] = [position % CHUNK, Math.ceil(faces.length / SHEET_COLUMNS)];
    const [x, y] = [place % SHEET_COLUMNS, Math.floor(place / SHEET_COLUMNS)];
    const across = Math.min(faces.length, SHEET_COLUMNS);
    const { style } = cell.firstElementChild;
    style.backgroundImage = `url("${sheet}")`;
    style.backgroundSize = `${100 * across}% ${100 * rows}%`;
    style.backgroundPosition = `${across > 1 ? (100 * x) / (across - 1) : 0}% ${rows > 1 ? (100 * y) / (rows - 1) : 0}%`;
  }
}

function draw() {
  columns = Math.max(1, Math.floor((canvas.clientWidth + GAP) / (CELL + GAP)));
  const [width, height] = [cellWidth(), rowHeight()];
  canvas.style.height = `${Math.max(1, Math.ceil(total / columns) * height)}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / height) - SPARE_ROWS);
  const last = Math.ceil((list.scrollTop + list.clientHeight) / height) + SPARE_ROWS;
  const [from, to] = [first * columns, Math.min(total, last * columns)];
  for (const [position, cell] of cells) {
    if (position < from || position >= to) {
      cell.remove();
      cells.delete(position);
    }
  }
  // Visible chunks are requested first, then those that two more seconds of scrolling would reach.
  for (let number = Math.floor(from / CHUNK); number <= Math.floor(to / CHUNK); number += 1) ask(number);
  const ahead = Math.ceil((2 * columns * speed(height)) / CHUNK);
  const most = Math.min(Math.max(Math.abs(ahead) + 1, near ? LEAST_AHEAD : 1), MOST_AHEAD);
  for (let more = 1; more <= most; more += 1) {
    ask(ahead < 0 ? Math.floor(from / CHUNK) - more : Math.floor(to / CHUNK) + more);
  }
  for (let position = from; position < to; position += 1) {
    let cell = cells.get(position);
    if (!cell) {
      cell = newCell(position);
      cells.set(position, cell);
      canvas.append(cell);
    }
    const [row, column] = [Math.floor(position / columns), position % columns];
    cell.style.width = `${width}px`;
    cell.style.height = `${height - GAP}px`;
    cell.style.transform = `translate(${column * (width + GAP)}px, ${row * height}px)`;
    fill(cell, position);
  }
  if (cells.has(cursor)) list.setAttribute("aria-activedescendant", `cell-${cursor}`);
  else list.removeAttribute("aria-activedescendant");
}

let near = false;
function approach() {
  if (near) return;
  near = true;
  for (const { sheet } of chunks.values()) if (sheet) new Image().src = sheet;
  drawSoon();
}

// Rows a second at which somebody scrolls; negative upwards.
let last = { top: 0, at: 0 };
function speed(height) {
  const now = { top: list.scrollTop, at: performance.now() };
  const rows = (now.top - last.top) / height / Math.max(0.016, (now.at - last.at) / 1000);
  last = now;
  return Math.abs(rows) > 1 ? rows : 0;
}

let drawing = false;
function drawSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function reset() {
  const place = document.querySelector("#found [data-total]");
  query = place.dataset.query;
  total = Number(place.dataset.total);
  asOf = Number(place.dataset.asOf);
  chunks = new Map();
  for (const cell of cells.values()) cell.remove();
  cells = new Map();
  list.hidden = total === 0;
  document.querySelector(".keys").hidden = total === 0;
  document.querySelector(".plain").hidden = total > 0;
  cursor = Math.min(Number(place.dataset.start), Math.max(0, total - 1));
  anchor = cursor;
  selected = new Set(place.dataset.selected ? place.dataset.selected.split(".").map(Number) : []);
  draw();
  reveal();
  if (total) showCursor();
  else inspector.hidden = true;
}

// -- where one is

function reveal() {
  const height = rowHeight();
  const top = Math.floor(cursor / columns) * height;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
}

async function go(position, { extend = false, keep = false } = {}) {
  cursor = Math.min(Math.max(0, position), total - 1);
  if (!extend) anchor = cursor;
  reveal();
  if (!keep) {
    const [from, to] = [Math.min(anchor, cursor), Math.max(anchor, cursor)];
    const wanted = Array.from({ length: to - from + 1 }, (_, more) => from + more);
    // At once, so that no key acts on what was selected before; those that are not here yet follow.
    selected = new Set(wanted.map(faceAt).filter(Boolean).map((face) => face.index));
    if (selected.size < wanted.length) {
      const own = cursor;
      draw();
      const faces = await Promise.all(wanted.map(faceSurely));
      if (own !== cursor) return; // moved on meanwhile
      selected = new Set(faces.filter(Boolean).map((face) => face.index));
    }
  }
  draw();
  showCursor();
}

let timer = 0;
function showCursor() {
  clearTimeout(timer);
  const position = cursor;
  // The small picture at once; what has to be asked for once somebody stays.
  const face = faceAt(position);
  if (face) sketch(face);
  timer = setTimeout(async () => {
    const found = await faceSurely(position);
    if (!found || position !== cursor) return;
    if (!selected.size) selected = new Set([found.index]);
    if (!face) sketch(found);
    remember(found.index);
    const details = await get(`${bench.dataset.faces}/${found.index}${query ? `?${query}` : ""}`).catch(() => null);
    if (details && position === cursor) inspect(details);
  }, WAIT_MS);
}

function remember(index) {
  const address = new URL(location.href);
  address.searchParams.set("face", index);
  if (selected.size > 1 && selected.size <= 200) address.searchParams.set("selected", [...selected].join("."));
  else address.searchParams.delete("selected");
  history.replaceState(null, "", address);
}

// -- the inspector

function sketch(face) {
  inspector.hidden = false;
  if (!inspector.querySelector("[data-image]")) inspector.append(document.getElementById("face-details").content.cloneNode(true));
  const part = (name) => inspector.querySelector(`[data-${name}]`);
  const page = `${bench.dataset.pages}${face.index}`;
  if (part("image").dataset.face !== String(face.index)) {
    part("image").dataset.face = face.index;
    part("image").src = `${page}.png`;
    part("image").alt = `Face ${face.index}`;
    inspector.querySelector("tbody").replaceChildren();
    part("history").hidden = true;
    inspector.querySelector("canvas").hidden = true;
    part("map-words").textContent = "";
  }
  part("name").textContent = face.name;
  part("name").title = face.name;
  part("label").textContent = face.gender;
  part("label").className = `big gender-${face.gender}`;
  part("edited").textContent = face.edited === "unedited" ? "" : face.edited;
  part("page").href = `${page}?${query ? `${query}&` : ""}as_of=${asOf}`;
  part("predict").href = `${root}/predict?dataset=${bench.dataset.sha256}&face=${face.index}`;
  const facts = [["Face", face.index], ["Age", face.age ?? "unknown"], ["Ethnicity", face.ethnicity ?? "unknown"], ["Split", face.split]];
  const elsewhere = selected.size > 1 ? `${selected.size} faces` : selected.has(face.index) ? "" : [...selected].map((one) => `face ${one}`).join();
  const several = elsewhere ? [["Selected", elsewhere]] : [];
  part("facts").replaceChildren(...[...several, ...facts].flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function inspect({ face, archive_gender: inArchive, predictions, near_duplicates: alike, edits }) {
  sketch(face);
  const part = (name) => inspector.querySelector(`[data-${name}]`);
  if (inspector.querySelector("canvas").hidden) part("image").src = `${bench.dataset.pages}${face.index}/original`;
  part("image").onerror = () => {
    part("image").onerror = null;
    part("image").src = `${bench.dataset.pages}${face.index}.png`;
  };
  inspector.querySelector("tbody").replaceChildren(
    ...predictions.map((one) => {
      const row = element("tr", "");
      const verdict = element("td", `${one.correct ? "✓" : "✗"} ${one.predicted}`);
      verdict.className = `verdict ${one.correct ? "correct" : "wrong"}`;
      const sure = element("td", `${(100 * one.confidence).toFixed(1)} %`);
      sure.className = "num";
      const model = element("td", one.version);
      model.title = one.role;
      row.append(model, verdict, sure);
      return row;
    }),
  );
  if (inArchive !== face.gender) part("facts").append(element("dt", "In the archive"), element("dd", inArchive));
  if (alike.length) {
    const links = element("dd", "");
    for (const index of alike.slice(0, 8)) {
      const link = element("a", `${index} `);
      link.href = `${bench.dataset.pages}${index}`;
      links.append(link);
    }
    part("facts").append(element("dt", "Near-duplicates"), links);
  }
  part("history").hidden = edits.length === 0;
  part("history").querySelector("ol").replaceChildren(
    ...edits.map((edit) => {
      const by = edit.user ? ` by ${edit.user}` : "";
      return element("li", `${edit.change}${by}, ${new Date(edit.at).toLocaleString()}${edit.undone_at ? " (undone)" : ""}`);
    }),
  );
}

// The map of the face by the model whose predictions are shown. It lies over the face as the model sees it.
let explaining = "";
async function explain() {
  const part = (name) => inspector.querySelector(`[data-${name}]`);
  const { face } = part("image").dataset;
  if (explaining === face) return;
  explaining = face;
  part("map-words").textContent = "Explaining…";
  const isShown = () => part("image").dataset.face === face;
  try {
    const version = new URLSearchParams(query).get("version");
    const image = await get(`${bench.dataset.pages}${face}.png`, "blob");
    const map = await askMap(version ? `model_version=${version}` : "", image);
    if (!isShown()) return;
    part("image").src = `${bench.dataset.pages}${face}.png`;
    part("map-words").textContent = paint(inspector.querySelector("canvas"), map);
  } catch (error) {
    if (isShown()) part("map-words").textContent = error.message;
  } finally {
    if (explaining === face) explaining = "";
  }
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// -- edits

function say(text) {
  document.getElementById("said").textContent = text;
}

let renewing = 0;
function renewCounts() {
  clearTimeout(renewing);
  renewing = setTimeout(() => renewRegions("facets", "corrected"), 400);
}

function send(body) {
  return post(bench.dataset.edits, { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

// One after the other, in the order of the keys.
let sending = Promise.resolve();
function inOrder(work) {
  sending = sending.then(work).catch((error) => {
    toast(error.message);
    say(""); // what was said beforehand is not so
    chunks = new Map();
    draw();
  });
  return sending;
}

function loadedFaces(indices) {
  const wanted = new Set(indices);
  return [...chunks.values()].flatMap((chunk) => chunk.faces ?? []).filter((face) => wanted.has(face.index));
}

// What the server will say of a face: shown at once.
function foresee(face, change) {
  face.archive ??= face.edited === "corrected" ? { male: "female", female: "male" }[face.gender] : face.gender;
  face.gender = change === "male" || change === "female" ? change : face.archive;
  face.edited = change === "restore" ? "unedited" : change === "exclude" ? "excluded" : change === face.archive ? "confirmed" : "corrected";
  if (face.predicted) face.correct = face.predicted === face.gender;
}

function edit(change) {
  if (document.body.classList.contains("read-only") || !total) return;
  if (new URLSearchParams(query).has("labels")) {
    toast("These are not the labels as corrected now. Show those first to edit them.");
    return;
  }
  const here = faceAt(cursor);
  const faces = selected.size ? [...selected] : here ? [here.index] : [];
  if (!faces.length) return;
  for (const face of loadedFaces(faces)) foresee(face, change);
  const words = { male: "labelled male", female: "labelled female", exclude: "excluded", restore: "restored" }[change];
  say(`${faces.length === 1 ? `Face ${faces[0]}` : `${faces.length} faces`} ${words}. U undoes it.`);
  inOrder(async () => {
    const done = await send({ change, faces });
    made.push(done.edit.number);
    sessionStorage.setItem(MADE, JSON.stringify(made));
    renewCounts();
  });
  // Who corrects one face after the other goes on to the next.
  if (faces.length === 1 && faces[0] === here?.index && change !== "restore" && cursor + 1 < total) go(cursor + 1);
  else {
    draw();
    if (here) sketch(here);
  }
}

function undo() {
  if (document.body.classList.contains("read-only")) return;
  inOrder(async () => {
    const number = made.at(-1);
    if (!number) {
      say("Nothing to undo: no edit was made here.");
      return;
    }
    const forget = () => {
      made.pop();
      sessionStorage.setItem(MADE, JSON.stringify(made));
    };
    const { edit: undone } = await send({ change: "undo", number }).catch((error) => {
      if ([404, 409].includes(error.status)) forget(); // undone elsewhere, or gone: the next key undoes the one before
      throw error;
    });
    forget();
    say(`Edit ${undone.number} undone.`);
    for (const face of loadedFaces(undone.faces).slice(0, CHUNK)) {
      const now = await get(`${bench.dataset.faces}/${face.index}${query ? `?${query}` : ""}`);
      Object.assign(face, now.face);
    }
    const back = undone.faces.length === 1 ? positionOf(undone.faces[0]) : -1;
    if (back >= 0) go(back);
    else draw();
    renewCounts();
  });
}

function positionOf(index) {
  for (const [number, chunk] of chunks) {
    const place = (chunk.faces ?? []).findIndex((face) => face.index === index);
    if (place >= 0) return number * CHUNK + place;
  }
  return -1;
}

// -- keys and clicks

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = Math.max(1, Math.floor(list.clientHeight / rowHeight()));
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -rows * columns, PageDown: rows * columns, Home: -total, End: total };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in steps) go(cursor + steps[key], { extend: event.shiftKey });
  else if (key in CHANGES) edit(CHANGES[key]);
  else if (key === "u") undo();
  else if (key === "Enter") inspector.querySelector("[data-page]")?.click();
  else if (key === "Escape") go(cursor);
  else if (key === " ") toggle(cursor);
  else return;
  event.preventDefault();
}

async function toggle(position) {
  const face = await faceSurely(position);
  if (!face) return;
  if (selected.has(face.index)) selected.delete(face.index);
  else selected.add(face.index);
  go(position, { keep: true });
}

function start() {
  canvas.textContent = "";
  bench.classList.add("enhanced");
  list.addEventListener("keydown", onKey);
  list.addEventListener("scroll", drawSoon, { passive: true });
  for (const name of ["pointerenter", "touchstart", "focus", "scroll"]) list.addEventListener(name, approach, { passive: true });
  list.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    list.focus();
    const position = Number(cell.dataset.position);
    if (event.ctrlKey || event.metaKey) toggle(position);
    else go(position, { extend: event.shiftKey });
  });
  list.addEventListener("dblclick", () => inspector.querySelector("[data-page]")?.click());
  inspector.addEventListener("click", (event) => {
    if (event.target.closest("[data-explain]")) explain();
    const { change } = event.target.closest("[data-change]")?.dataset ?? {};
    if (!change) return;
    if (change === "undo") undo();
    else edit(change);
  });
  new ResizeObserver(drawSoon).observe(list);
  document.addEventListener("genderline:filtered", reset);
  // A facet chooses as the form does: the rest of the filter stays.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-facet]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const query = new URL(link.href).searchParams;
    for (const hidden of form.querySelectorAll("[data-facet]")) hidden.remove();
    for (const [name, value] of query) {
      if (form.elements[name]) continue;
      const hidden = Object.assign(document.createElement("input"), { type: "hidden", name, value });
      hidden.dataset.facet = "";
      form.append(hidden);
    }
    applyFilters(form);
  });
  if (matchMedia("(max-width: 899px)").matches) document.querySelector(".facets").open = false;
  reset();
}

if (list) start();

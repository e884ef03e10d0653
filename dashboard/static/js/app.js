// Every page: times in the viewer's zone, live regions and progress, the state of the connection, and forms.
//
// A region marked `data-live="run.* job.*"` is replaced by the server's newest version of it, taken from the same address,
// when such an event arrives. Progress is faster: `run.progress` events are written straight into elements of that run.

import { listen } from "./events.js";
import { logIn } from "./login.js";

// The path under which a proxy shows the dashboard; none by default.
export const root = document.body.dataset.root ?? "";
const LEAST_PAUSE_MS = 700;
const BUSY_PAUSE_MS = 2000;

export function csrfToken() {
  return document.querySelector('meta[name="csrf-token"]').content;
}

export function toast(text) {
  const box = document.querySelector(".toasts");
  const item = document.createElement("div");
  item.className = "toast";
  item.textContent = text;
  box.append(item);
  setTimeout(() => item.remove(), 6000);
}

// What an answer means that is not ours: of a proxy in front of the dashboard.
export function explainStatus(status) {
  if (![502, 503, 504].includes(status)) return `The server answered ${status}.`;
  return `The dashboard does not answer; the proxy in front of it says ${status}. Try again in a moment.`;
}

// Fetches JSON, or with `as` something else; asks for the token again where the login has expired. An error has the
// `status` of the answer.
async function request(url, options, as) {
  // Errors come as JSON only where that is asked for.
  const headers = { Accept: "application/json", ...(options.headers ?? {}) };
  const answer = await fetch(url, { ...options, headers });
  if (answer.status === 401) {
    await logIn();
    return request(url, options, as);
  }
  if (answer.ok) return answer[as]();
  const body = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(body.error?.message ?? explainStatus(answer.status)), { status: answer.status });
}

export function get(url, as = "json") {
  return request(url, {}, as);
}

export function post(url, options = {}) {
  return request(url, { method: "POST", ...options, headers: { "X-CSRF-Token": csrfToken(), ...(options.headers ?? {}) } }, "json");
}

const shortTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const longTime = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "narrow" });

function showTimes(root = document) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.valueOf())) continue;
    const ago_s = (moment - Date.now()) / 1000;
    element.title = longTime.format(moment);
    if (element.dataset.format === "full" || ago_s < -86400) element.textContent = shortTime.format(moment);
    else if (ago_s < -3600) element.textContent = relative.format(Math.round(ago_s / 3600), "hour");
    else if (ago_s < -60) element.textContent = relative.format(Math.round(ago_s / 60), "minute");
    else element.textContent = "just now";
  }
}

export function duration(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export const STAGES = { ingesting: "Reading faces", training: "Training", evaluating: "Evaluating", exporting: "Exporting" };
const ORDER = Object.keys(STAGES);

function describe(progress) {
  const parts = [];
  if (progress.stage) parts.push(STAGES[progress.stage] ?? progress.stage);
  if (progress.epochs) parts.push(`epoch ${progress.epoch} of ${progress.epochs}`);
  if (progress.rate) parts.push(`${Math.round(progress.rate).toLocaleString()} images/s`);
  if (progress.loss != null) parts.push(`loss ${progress.loss.toFixed(3)}`);
  if (progress.accuracy != null) parts.push(`accuracy ${(100 * progress.accuracy).toFixed(1)} %`);
  return parts.join(" · ");
}

function share(progress) {
  if (!progress.total) return 0;
  return progress.done / progress.total;
}

// The server's record lags behind the events: a region that is taken anew must not fall back.
const newest = new Map();
const FRESH_MS = 5000;

export function showProgress(kind, id, progress) {
  newest.set(`${kind} ${id}`, { progress, at: Date.now() });
  drawProgress(kind, id, progress);
}

function redrawProgress() {
  for (const [key, { progress, at }] of newest) {
    if (Date.now() - at < FRESH_MS) drawProgress(...key.split(" "), progress);
    else newest.delete(key);
  }
}

function tasksOf(kind, id) {
  return document.querySelectorAll(`[data-${kind}="${CSS.escape(id)}"]`);
}

function show(task, name, text) {
  const element = task.querySelector(`[data-show="${name}"]`);
  if (element) element.textContent = text;
}

function drawProgress(kind, id, progress) {
  for (const task of tasksOf(kind, id)) {
    // Progress of a stage that is over.
    if (ORDER.indexOf(progress.stage) < ORDER.indexOf(task.dataset.state)) continue;
    const bar = task.querySelector("progress");
    if (bar) {
      bar.max = 1;
      bar.value = share(progress);
    }
    show(task, "stage", describe(progress));
    show(task, "share", progress.total ? `${Math.floor(100 * share(progress))} %` : "");
    show(task, "eta", progress.eta_s == null ? "" : `${duration(progress.eta_s)} left`);
  }
}

// A run entered its next stage, of which there is no progress yet.
function enterStage(id, stage) {
  if (newest.get(`run ${id}`)?.progress.stage !== stage) newest.delete(`run ${id}`);
  for (const task of tasksOf("run", id)) {
    task.dataset.state = stage;
    task.querySelector("progress")?.removeAttribute("value");
    show(task, "stage", STAGES[stage]);
    show(task, "share", "");
    show(task, "eta", "");
  }
}

// -- live regions

let refreshing = false;
let wanted = false;
let lastRefresh = 0;
let again = 0;

// Regions as the server gave them: what scripts made of them since, plots and times, is no news.
const served = new Map([...document.querySelectorAll("[data-live]")].map((region) => [region.id, region.innerHTML]));

function matches(pattern, topic) {
  return pattern === "#" || pattern === topic || (pattern.endsWith(".*") && topic.startsWith(pattern.slice(0, -1)));
}

function concerns(topic) {
  return [...document.querySelectorAll("[data-live]")].some((region) =>
    region.dataset.live.split(" ").some((pattern) => matches(pattern, topic)),
  );
}

async function fetchPage(url) {
  const answer = await fetch(url, { headers: { Accept: "text/html" } });
  if (answer.redirected && new URL(answer.url).pathname === `${root}/login`) {
    // While the token is asked for on the page, whatever waits for it must not be lost.
    if (!document.getElementById("login-dialog")?.open) location.reload();
    return null;
  }
  return answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
}

// Takes the server's newest content of a region; boxes that were ticked stay ticked.
export function replaceRegion(region, newer) {
  served.set(region.id, newer.innerHTML);
  const ticked = new Set([...region.querySelectorAll("input[type=checkbox]:checked")].map((box) => `${box.name} ${box.value}`));
  region.replaceChildren(...newer.childNodes);
  for (const box of region.querySelectorAll("input[type=checkbox]")) box.checked ||= ticked.has(`${box.name} ${box.value}`);
  showTimes(region);
}

function isInUse(region) {
  const active = document.activeElement;
  return region.contains(active) && !active.matches("input[type=checkbox]");
}

export async function refresh() {
  // A hidden page is brought up to date when somebody looks at it.
  if (refreshing || document.hidden) {
    wanted = true;
    return;
  }
  refreshing = true;
  wanted = false;
  try {
    await new Promise((done) => setTimeout(done, Math.max(0, lastRefresh + LEAST_PAUSE_MS - Date.now())));
    lastRefresh = Date.now();
    const fresh = await fetchPage(location.href);
    if (!fresh) return;
    for (const region of document.querySelectorAll("[data-live]")) {
      const newer = fresh.getElementById(region.id);
      // The work that the whole page waits for is done.
      if (region.querySelector("[data-reload-after]") && !newer?.querySelector("[data-reload-after]")) location.reload();
      if (!newer || isInUse(region) || served.get(region.id) === newer.innerHTML) continue;
      const focused = region.contains(document.activeElement) ? document.activeElement.value : null;
      replaceRegion(region, newer);
      if (focused !== null) region.querySelector(`input[value="${CSS.escape(focused)}"]`)?.focus();
    }
    redrawProgress();
    wakeButtons();
    document.dispatchEvent(new CustomEvent("genderline:refreshed"));
  } catch {
    // The server is away; the stream's return brings a refresh.
  } finally {
    refreshing = false;
    if (wanted && !document.hidden) refresh();
    // What the dashboard itself works on ends after the events of its job: nothing else says so.
    else if (document.querySelector("[data-live] [data-busy]")) {
      clearTimeout(again);
      again = setTimeout(refresh, BUSY_PAUSE_MS);
    }
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && wanted) refresh();
});

// -- events

const LINKS = { open: ["good", "Live"], away: ["bad", "No broker"], closed: ["bad", "Reconnecting…"], connecting: ["", "Connecting…"] };

function setLink(state) {
  const dot = document.querySelector(".link-state .dot");
  if (!dot) return;
  const [look, words] = LINKS[state];
  dot.className = `dot ${look}`;
  document.querySelector(".link-state [data-text]").textContent = words;
}

function handle(topic, payload) {
  const state = topic.split(".")[1];
  if (topic === "run.progress") showProgress("run", payload.run_id, payload.progress);
  else if (topic === "job.progress") showProgress("job", payload.job_id, payload.progress);
  else if (topic.startsWith("run.") && state in STAGES) enterStage(payload.run_id, state);
  else if (/\.(registered|ingested|finished|rejected|failed|cancelled)$/.test(topic)) {
    // What has ended has no progress any more that a refresh could put back.
    newest.delete(topic.startsWith("run.") ? `run ${payload.run_id}` : `job ${payload.job_id}`);
  }
  document.dispatchEvent(new CustomEvent("genderline:event", { detail: { topic, payload } }));
  if (!/\.(progress|epoch)$/.test(topic) && concerns(topic)) refresh();
}

// A stream that ends does not say why. Whoever does not log in is not asked again before there is a stream.
let declined = false;
async function renewLogin() {
  if (declined || document.hidden) return;
  const headers = { Accept: "application/json" };
  const answer = await fetch(`${root}/api/v1/samples`, { headers }).catch(() => null); // a call that costs nothing
  if (answer?.status !== 401 || declined) return;
  await logIn().catch((error) => {
    if (!declined) toast(error.message);
    declined = true;
  });
}

listen((kind, ...rest) => {
  if (kind === "event") {
    handle(...rest);
    return;
  }
  const [state] = rest;
  setLink(state);
  if (state === "closed") renewLogin();
  else declined = false;
  // Also the first time: what happened between the page's making and the stream's opening reached nobody here.
  if (state === "open") {
    document.dispatchEvent(new CustomEvent("genderline:resync"));
    refresh();
  }
});

// -- forms

document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

// A filter shows its faces at once, and leaves the keyboard where it is.
let latestFilter = 0;
export async function applyFilters(form) {
  const number = ++latestFilter;
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  const url = `${location.pathname}?${query}`;
  const fresh = await fetchPage(url).catch(() => null);
  if (!fresh || number !== latestFilter) return;
  history.replaceState(null, "", `${url}${location.hash}`);
  takeRegions(fresh, [...form.dataset.auto.split(" "), "scoring"]);
  document.dispatchEvent(new CustomEvent("genderline:filtered"));
}

// Takes regions of a newer page by their ids; what had the focus keeps it.
function takeRegions(fresh, ids) {
  for (const id of ids) {
    const [old, newer] = [document.getElementById(id), fresh.getElementById(id)];
    if (!old || !newer) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    replaceRegion(old, newer);
    if (focused) document.getElementById(focused)?.focus();
  }
}

// Brings regions of this page up to date.
export async function renewRegions(...ids) {
  const fresh = await fetchPage(location.href).catch(() => null);
  if (fresh) takeRegions(fresh, ids);
}

for (const form of document.querySelectorAll("form[data-auto]")) {
  form.addEventListener("change", () => applyFilters(form));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    applyFilters(form);
  });
}

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-check-all]")) return;
  for (const box of document.querySelectorAll(event.target.dataset.checkAll)) box.checked = event.target.checked;
});

// A button that acts on selected rows waits until some are selected.
function wakeButtons() {
  for (const button of document.querySelectorAll("[data-needs]")) {
    button.disabled = !document.querySelector(`${button.dataset.needs}:checked`);
  }
}
document.addEventListener("change", wakeButtons);
wakeButtons();

// Parameters that somebody changed, by name; the rest keeps its default.
export function changedParameters(root) {
  const fields = [...root.querySelectorAll("[data-param]")].filter((field) => field.value !== field.dataset.default);
  return Object.fromEntries(
    fields.map(({ dataset, value }) => {
      if (value === "true" || value === "false") return [dataset.param, value === "true"];
      return [dataset.param, value.trim() === "" || Number.isNaN(Number(value)) ? value : Number(value)];
    }),
  );
}

// The arrow keys walk from one page to its neighbours, unless what has the focus takes them for itself.
const TAKES_ARROWS = "input, select, textarea, audio, video, [contenteditable], [role=listbox], .scroll, dialog";
document.addEventListener("keydown", (event) => {
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (!rel || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (event.target.closest(TAKES_ARROWS) || document.querySelector("dialog[open]")) return;
  const link = document.querySelector(`a[rel=${rel}]`);
  if (link?.checkVisibility()) link.click();
});

// A link to a form that is folded unfolds it.
function unfoldTarget() {
  document.querySelector(`${location.hash || "#none"} > details`)?.setAttribute("open", "");
}
window.addEventListener("hashchange", unfoldTarget);
unfoldTarget();

showTimes();
setInterval(showTimes, 30_000);
const every_s = Number(document.body.dataset.refresh);
if (every_s) setInterval(() => document.hidden || refresh(), 1000 * every_s);

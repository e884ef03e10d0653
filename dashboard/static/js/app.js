// Every page: times in the viewer's zone, live regions and progress, and the state of the connection.
//
// A region marked `data-live="run.* job.*"` is replaced by its newest self, taken from the same address, when such an
// event arrives. Progress goes faster: `run.progress` events are written straight into elements of that run.

const LEAST_PAUSE_MS = 700;
const AWAY_RETRY_MS = 1500;
const TOPICS = [
  "run.queued", "run.accepted", "run.ingesting", "run.training", "run.evaluating", "run.exporting", "run.registered",
  "run.rejected", "run.failed", "run.cancelled", "run.progress", "run.epoch", "model.registered", "model.promoted",
  "model.challenged", "job.queued", "job.accepted", "job.finished", "job.rejected", "job.failed", "job.cancelled",
  "job.progress", "worker.heartbeat",
];

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

export async function post(url, options = {}) {
  // Errors come as JSON only where that is asked for.
  const headers = { Accept: "application/json", "X-CSRF-Token": csrfToken(), ...(options.headers ?? {}) };
  const answer = await fetch(url, { method: "POST", ...options, headers });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error?.message ?? `The server answered ${answer.status}.`);
  return body;
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

const STAGES = { ingesting: "Reading faces", training: "Training", evaluating: "Evaluating", exporting: "Exporting" };

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

// What the server has on record lags behind the events: a region that is taken anew must not fall back.
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

function drawProgress(kind, id, progress) {
  for (const task of document.querySelectorAll(`[data-${kind}="${CSS.escape(id)}"]`)) {
    const bar = task.querySelector("progress");
    if (bar) {
      bar.max = 1;
      bar.value = share(progress);
    }
    const set = (name, text) => {
      const element = task.querySelector(`[data-show="${name}"]`);
      if (element) element.textContent = text;
    };
    set("stage", describe(progress));
    set("share", progress.total ? `${Math.floor(100 * share(progress))} %` : "");
    set("eta", progress.eta_s == null ? "" : `${duration(progress.eta_s)} left`);
  }
}

// -- live regions

let refreshing = false;
let wanted = false;
let lastRefresh = 0;

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

export async function refresh() {
  if (refreshing) {
    wanted = true;
    return;
  }
  refreshing = true;
  wanted = false;
  try {
    await new Promise((done) => setTimeout(done, Math.max(0, lastRefresh + LEAST_PAUSE_MS - Date.now())));
    lastRefresh = Date.now();
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected && new URL(answer.url).pathname === "/login") return location.reload();
    if (!answer.ok) return undefined;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const region of document.querySelectorAll("[data-live]")) {
      const newer = fresh.getElementById(region.id);
      // Work that the whole page waits for is done.
      if (region.querySelector("[data-reload-after]") && !newer?.querySelector("[data-reload-after]")) location.reload();
      // What somebody is just using stays as it is.
      if (!newer || region.contains(document.activeElement) || served.get(region.id) === newer.innerHTML) continue;
      served.set(region.id, newer.innerHTML);
      region.replaceChildren(...newer.childNodes);
      showTimes(region);
    }
    redrawProgress();
    document.dispatchEvent(new CustomEvent("genderline:refreshed"));
  } catch {
    // The server is away; the stream's return will bring a refresh.
  } finally {
    refreshing = false;
    if (wanted) refresh();
  }
  return undefined;
}

// -- events

let source = null;

function setLink(state, text) {
  const dot = document.querySelector(".link-state .dot");
  if (!dot) return;
  dot.className = `dot ${state}`;
  document.querySelector(".link-state [data-text]").textContent = text;
}

function handle(topic, payload) {
  if (topic === "run.progress") showProgress("run", payload.run_id, payload.progress);
  else if (topic === "job.progress") showProgress("job", payload.job_id, payload.progress);
  else if (/\.(registered|finished|rejected|failed|cancelled)$/.test(topic)) {
    // What has ended has no progress any more that a refresh could put back.
    newest.delete(topic.startsWith("run.") ? `run ${payload.run_id}` : `job ${payload.job_id}`);
  }
  document.dispatchEvent(new CustomEvent("genderline:event", { detail: { topic, payload } }));
  if (!/\.(progress|epoch)$/.test(topic) && concerns(topic)) refresh();
}

function connect() {
  if (source || !document.body.dataset.events) return;
  source = new EventSource(document.body.dataset.events);
  source.onopen = () => {
    setLink("good", "Live");
    // Also the first time: what happened between the page's making and the stream's opening was told to nobody here.
    refresh();
  };
  source.onerror = () => {
    setLink("bad", "Reconnecting…");
    // The browser gives up after an answer other than 200, such as a proxy's; we do not.
    if (source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(connect, AWAY_RETRY_MS);
    }
  };
  for (const topic of TOPICS) source.addEventListener(topic, (event) => handle(topic, JSON.parse(event.data)));
  source.addEventListener("away", () => setLink("bad", "No broker"));
  source.addEventListener("resync", () => {
    setLink("good", "Live");
    document.dispatchEvent(new CustomEvent("genderline:resync"));
    refresh();
  });
}

// A hidden page needs no stream, and a browser opens only six connections to a server.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source?.close();
    source = null;
  } else connect();
});

for (const form of document.querySelectorAll("form[data-confirm]")) {
  form.addEventListener("submit", (event) => {
    if (!window.confirm(form.dataset.confirm)) event.preventDefault();
  });
}
for (const select of document.querySelectorAll("form[data-auto] select")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-check-all]")) return;
  for (const box of document.querySelectorAll(event.target.dataset.checkAll)) box.checked = event.target.checked;
});

// A button that acts on what is chosen waits until something is.
function wakeButtons() {
  for (const button of document.querySelectorAll("[data-needs]")) {
    button.disabled = !document.querySelector(`${button.dataset.needs}:checked`);
  }
}
document.addEventListener("change", wakeButtons);
wakeButtons();

showTimes();
setInterval(showTimes, 30_000);
connect();
const every_s = Number(document.body.dataset.refresh);
if (every_s) setInterval(() => document.hidden || refresh(), 1000 * every_s);

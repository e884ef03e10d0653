// The server's events, from the stream that all tabs of this browser share.
//
// `listen` calls back with ("state", "open" | "away" | "closed") and with ("event", topic, payload).

const { events: url, topics, worker: script } = document.body.dataset;

// Without shared workers each tab has a stream of its own, and none while it is hidden.
function ownStream(tell) {
  let source = null;
  const connect = () => {
    if (source || document.hidden) return;
    source = new EventSource(url);
    source.onopen = () => tell("state", "open");
    source.onerror = () => {
      tell("state", "closed");
      if (source?.readyState === EventSource.CLOSED) {
        source = null;
        setTimeout(connect, 1500);
      }
    };
    for (const topic of topics.split(" ")) {
      source.addEventListener(topic, (event) => tell("event", topic, JSON.parse(event.data)));
    }
    source.addEventListener("away", () => tell("state", "away"));
    source.addEventListener("resync", () => tell("state", "open"));
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else connect();
  });
  connect();
}

function sharedStream(tell) {
  const { port } = new SharedWorker(script, { name: "genderline events" });
  port.onmessage = ({ data: { state, topic, data } }) => {
    if (state) tell("state", state);
    else tell("event", topic, JSON.parse(data));
  };
  const join = () => port.postMessage({ url: new URL(url, location.href).href, topics: topics.split(" ") });
  join();
  window.addEventListener("pagehide", () => port.postMessage({ leave: true }));
  window.addEventListener("pageshow", (event) => event.persisted && join());
}

export function listen(tell) {
  if (!url) return;
  if ("SharedWorker" in window) sharedStream(tell);
  else ownStream(tell);
}

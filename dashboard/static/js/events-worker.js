// One event stream for all tabs of this browser: a browser opens only six connections to a server.
//
// Each tab connects a port, sends {url, topics} once, and gets {state} and {topic, data} messages. A tab that goes sends
// {leave: true}. The worker ends with the last tab.

const RETRY_MS = 1500;
const ports = new Set();
let source = null;
let state = "connecting"; // or "open", "away" (no broker), "closed" (no server)

function tell(message) {
  for (const port of ports) port.postMessage(message);
}

function become(next) {
  state = next;
  tell({ state });
}

function open(url, topics) {
  source = new EventSource(url);
  source.onopen = () => become("open");
  source.onerror = () => {
    become("closed");
    // The browser gives up after an answer other than 200, such as a proxy's; this worker does not.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => open(url, topics), RETRY_MS);
  };
  for (const topic of topics) source.addEventListener(topic, (event) => tell({ topic, data: event.data }));
  source.addEventListener("away", () => become("away"));
  source.addEventListener("resync", () => become("open"));
}

self.onconnect = ({ ports: [port] }) => {
  port.onmessage = ({ data }) => {
    if (data.leave) {
      ports.delete(port);
      return;
    }
    ports.add(port);
    if (source) port.postMessage({ state });
    else open(data.url, data.topics);
  };
};

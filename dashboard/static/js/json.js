// Several plots of a page show the same answer: it is fetched once for all of them.
import { get } from "./app.js";

const pending = new Map();
export function json(url) {
  if (!pending.has(url)) {
    const answer = get(url);
    pending.set(url, answer);
    answer.finally(() => setTimeout(() => pending.delete(url), 1000)).catch(() => {});
  }
  return pending.get(url);
}

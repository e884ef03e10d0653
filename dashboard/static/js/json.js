// Several plots of a page show the same answer: it is fetched once for all of them.
const pending = new Map();
export function json(url) {
  if (!pending.has(url)) {
    const answer = fetch(url).then((response) => {
      if (!response.ok) throw new Error(`${url} answered ${response.status}`);
      return response.json();
    });
    pending.set(url, answer);
    answer.finally(() => setTimeout(() => pending.delete(url), 1000)).catch(() => {});
  }
  return pending.get(url);
}

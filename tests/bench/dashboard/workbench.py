"""The page of 25,000 faces, on the server and in Chromium: `python -m tests.bench.dashboard.workbench`.

Filter and facet counts on the server, what the first load weighs without Bokeh, and whether faces are there in time
when somebody scrolls at 60 rows a second: a gap is a face in sight whose figures or whose picture have not arrived.
The server's times are processor time, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flask import Flask
from playwright.sync_api import Browser

from tests.bench.dashboard.pages import FACES, LIMIT_MS, p95_ms
from tests.support.browser import DESK, PHONE, Visit, chromium
from tests.support.dashboard_app import open_site, served

ROWS_A_SECOND = 60
SECONDS = 10
FIRST_LOAD_BYTES = 300_000
ROUNDS = 3

SCROLL = """async ([rowsASecond, seconds]) => {
  const list = document.getElementById("window");
  const arrived = new Set();
  const note = (entries) => entries.forEach((entry) => arrived.add(entry.name));
  performance.setResourceTimingBufferSize(10000);
  note(performance.getEntriesByType("resource"));
  new PerformanceObserver((found) => note(found.getEntries())).observe({ type: "resource", buffered: true });
  const row = document.querySelector(".cell").getBoundingClientRect().height + 8;
  const result = { frames: 0, gaps: 0, unpictured: 0, cells: 0, empty: 0, longest: 0, rows: 0, late: 0, last: 0 };
  const from = performance.now();
  let before = from;
  for (;;) {
    const now = await new Promise(requestAnimationFrame);
    if (now - from > 1000 * seconds) break;
    result.longest = Math.max(result.longest, now - before);
    before = now;
    // As it was shown in the frame that has just passed.
    const box = list.getBoundingClientRect();
    let [empty, unpictured] = [0, 0];
    for (const cell of list.querySelectorAll(".cell")) {
      const at = cell.getBoundingClientRect();
      if (at.bottom <= box.top || at.top >= box.bottom) continue;
      result.cells += 1;
      if (!cell.dataset.face) empty += 1;
      else {
        const url = new URL(cell.firstElementChild.style.backgroundImage.slice(5, -2), location.href);
        unpictured += !arrived.has(url.href);
      }
    }
    result.frames += 1;
    if (empty + unpictured > 0) {
      result.last = (now - from) / 1000;
      result.late += now - from > 1000;
    }
    result.gaps += empty > 0;
    result.unpictured += unpictured > 0;
    result.empty += empty + unpictured;
    result.rows = (rowsASecond * (now - from)) / 1000;
    list.scrollTop = result.rows * row;
  }
  return result;
}"""


def scroll(browser: Browser, address: str, path: str) -> dict[str, Any]:
    """Points at the faces, as somebody does who turns a wheel, scrolls, and counts what was missing in sight."""
    visit = Visit(browser, address)
    visit.go(path)
    visit.page.locator(".cell[data-face]").first.wait_for()
    visit.page.locator("#window").hover()
    visit.page.wait_for_timeout(500)  # a hand takes as long from the pointer to the wheel
    found: dict[str, Any] = visit.page.evaluate(SCROLL, [ROWS_A_SECOND, SECONDS])
    visit.close()
    return found


def first_load(browser: Browser, address: str, path: str, size: tuple[int, int]) -> int:
    """Returns the bytes that a first visit loads, without Bokeh's."""
    visit = Visit(browser, address, size)
    loaded: list[int] = []
    visit.page.on(
        "response",
        lambda got: loaded.append(0 if "/bokeh" in got.url else int(got.headers.get("content-length", 0))),
    )
    visit.go(path)
    visit.page.locator(".cell[data-face]").first.wait_for()
    visit.page.locator("#inspector tbody tr").first.wait_for(state="attached")
    visit.close()
    return sum(loaded)


def main() -> int:
    """Prints every figure; returns 1 where one misses what is asked for."""
    empty = Flask("empty")
    empty.add_url_rule("/", view_func=lambda: "")
    floor = p95_ms(lambda: empty.test_client().get("/"), time.process_time)
    missed = 0

    def tell(what: str, figure: str, *, reached: bool) -> None:
        nonlocal missed
        missed += not reached
        sys.stdout.write(f"{what:<58}{figure}{'' if reached else '  MISSED'}\n")
        sys.stdout.flush()

    with (
        tempfile.TemporaryDirectory() as folder,
        open_site(Path(folder), started=True) as site,
        served(site) as address,
        chromium() as browser,
    ):
        path = f"/datasets/{site.builder.dataset(FACES)}"
        site.builder.model(path.rpartition("/")[2], "run-000000000001")
        web = site.web
        tell("an empty Flask view, p95", f"{floor:.2f} ms", reached=True)
        for query in ("", "?gender=male&result=wrong&sort=suspects", "?search=jpg&age=20-29&sort=largest_error"):
            for what, address_of in (("page with facet counts", path), ("faces over HTTP", f"/api/v1{path}/faces")):
                took = p95_ms(lambda url=address_of + query: web.get(url), time.process_time)  # type: ignore[misc]
                tell(f"{what} {query}, p95", f"{took:.1f} ms, x {took / floor:.0f}", reached=took < LIMIT_MS)
        for name, size in (("desk", DESK), ("phone", PHONE)):
            weight = first_load(browser, address, path, size)
            tell(f"first load without Bokeh, {name}", f"{weight / 1000:.0f} kB", reached=weight < FIRST_LOAD_BYTES)
        for _ in range(ROUNDS):
            found = scroll(browser, address, path)
            tell(
                f"scrolling {found['rows']:.0f} rows at {ROWS_A_SECOND} a second",
                f"{found['empty']} of {found['cells']:,} faces in sight missing; of {found['frames']} frames, "
                f"{found['gaps']} without all figures, {found['unpictured']} without all pictures; "
                f"{found['late']} of these after the first second, the last at {found['last']:.1f} s; "
                f"longest {found['longest']:.0f} ms",
                reached=found["empty"] == 0,
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

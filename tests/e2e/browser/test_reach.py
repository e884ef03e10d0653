"""Every page for those who use no mouse, want no motion, or have a phone; and for tabs that nobody looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from playwright.sync_api import Browser, expect

from shared.records.runs import RunState
from tests.e2e.browser.test_pages import REFRESH, paths, site
from tests.support.browser import DESK, PHONE, Visit
from tests.support.dashboard_app import Site

pytestmark = pytest.mark.browser
__all__ = ["site"]

WATCH_FOCUS: Final = """() => {
  const takes = "a[href], button:enabled, input:enabled:not([type=hidden]), select:enabled, textarea:enabled, " +
    "summary, [tabindex='0']";
  window.wanted = [...document.querySelectorAll(takes)].filter((e) => e.tabIndex >= 0 && e.checkVisibility({
    visibilityProperty: true }));
  window.focused = [];
  window.unseen = [];
  addEventListener("focusin", (event) => {
    window.focused.push(event.target);
    const [target] = event.composedPath(); // within a plot, what it is made of
    const marked = (e) => {
      const { outlineStyle, outlineWidth } = getComputedStyle(e);
      return outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
    };
    const shown = target.matches("input[type=file]") ? target.nextElementSibling : target;
    const { width, height } = shown.getBoundingClientRect();
    if (!marked(shown) || !width || !height) window.unseen.push(target.outerHTML.slice(0, 160));
  });
  document.activeElement.blur();
  return window.wanted.length;
}"""
LEFT_OUT: Final = """() => window.wanted.filter((e) => e.isConnected && !window.focused.includes(e))
  .map((e) => e.outerHTML.slice(0, 160))"""


def test_tab_reaches_everything_on_every_page_visibly_and_goes_round(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    for path in paths(site):
        visit.go(path)
        count = visit.page.evaluate(WATCH_FOCUS)
        assert count > 8, path
        for _ in range(4):  # elements that a plot brings take their turns, too
            for _ in range(count // 2 + 10):
                visit.page.keyboard.press("Tab")
            if visit.page.evaluate("window.focused.filter((e) => e.matches('.skip')).length") > 1:
                break
        assert (path, visit.page.evaluate(LEFT_OUT)) == (path, [])
        assert (path, visit.page.evaluate("window.unseen")) == (path, [])
        again = visit.page.evaluate("window.focused.filter((e) => e.matches('.skip')).length")
        assert (path, again > 1) == (path, True)  # no trap
    visit.close()


MOVE: Final = """async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  for (const bar of document.querySelectorAll("progress")) bar.value = bar.max / 5;
  for (const zone of document.querySelectorAll(".drop")) zone.classList.remove("over");
  await frame();
  for (const bar of document.querySelectorAll("progress")) bar.value = bar.max;
  for (const zone of document.querySelectorAll(".drop")) zone.classList.add("over");
  await frame();
  return document.getAnimations().length;
}"""


# Browsers tell of no animation of a bar's own parts, so here the style sheet is asked.
PARTS_LEFT_MOVING: Final = """() => {
  const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]);
  const still = rules.filter((rule) => rule.media?.mediaText.includes("reduced-motion"));
  const stopped = still.flatMap((rule) => [...rule.cssRules]).map((rule) => rule.selectorText).join(", ").split(", ");
  return rules.filter((rule) => rule.style?.transitionDuration || rule.style?.animationName)
    .flatMap((rule) => rule.selectorText.match(/::[a-z-]+/g) ?? []).filter((part) => !stopped.includes(part));
}"""


def test_nothing_moves_for_those_who_want_no_motion(site: Site, base: str, browser: Browser) -> None:
    moving = {}
    for still in (False, True):
        visit = Visit(browser, base, still=still)
        for path in paths(site):
            visit.go(path)
            moving[path, still] = visit.page.evaluate(MOVE)
        assert visit.page.evaluate(PARTS_LEFT_MOVING) == []
        visit.close()

    assert {path for (path, still), count in moving.items() if still and count} == set()
    assert any(count for (_, still), count in moving.items() if not still)  # it would be seen


MAIN: Final = {
    "/": "#champion",
    "/datasets": "#datasets",
    "/datasets/…": "#window",
    "/datasets/…/faces/2": "#label",
    "/runs": "#runs",
    "/runs/run-000000000001": "#figures",
    "/runs/run-000000000003": "#state",
    "/runs/run-000000000004": "#state",
    "/runs/compare": "table",
    "/models": "#models",
    "/models/1": "#figures",
    "/compare": "#verdict",
    "/manage/model/1/delete": "main .alert",
    "/jobs": "#jobs",
    "/jobs/job-000000000001": "#results",
    "/predict": "#results section",
    "/dead": "#letters",
}
"""What people come to a page for."""


def test_no_page_hides_its_main_thing_below_the_second_screen_of_a_phone(
    site: Site, base: str, browser: Browser
) -> None:
    visit = Visit(browser, base, PHONE)
    (sha256,) = site.store.children("datasets")
    tops = {}
    for path in paths(site):
        visit.go(path)
        main = visit.page.locator(MAIN[path.partition("?")[0].replace(sha256, "…")]).first
        expect(main).to_be_visible()
        tops[path] = main.evaluate("(e) => e.getBoundingClientRect().top + scrollY")
    visit.close()

    assert {path: top for path, top in tops.items() if top >= 2 * PHONE[1]} == {}


HIDE: Final = """Object.defineProperty(document, "hidden", { get: () => sessionStorage.hidden === "yes" });
window.look = (hidden) => {
  sessionStorage.hidden = hidden ? "yes" : "no";
  document.dispatchEvent(new Event("visibilitychange"));
};"""


@pytest.fixture
def tab(base: str, browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser, base, DESK)
    visit.page.add_init_script(HIDE)
    yield visit
    visit.check()
    visit.close()


NEWS: Final = """() => { window.news = new Promise((done) =>
  document.addEventListener("genderline:event", done, { once: true })); }"""


def test_a_tab_that_was_hidden_is_brought_up_to_date_when_somebody_looks_at_it(site: Site, tab: Visit) -> None:
    tab.go("/runs")
    tab.page.evaluate(REFRESH)  # the one at the stream's opening is over
    tab.page.evaluate("window.look(true)")
    tab.page.evaluate(NEWS)
    run_id = site.builder.run("run-0000000000ba", name="unseen", state=RunState.CANCELLED)
    site.broker.emit("run.cancelled", {"run_id": run_id})
    tab.page.evaluate("window.news.then(() => true)")  # it was heard of
    expect(tab.page.get_by_text("unseen")).to_have_count(0)

    tab.page.evaluate("window.look(false)")

    expect(tab.page.get_by_text("unseen")).to_be_visible()


def test_seven_windows_that_are_hidden_from_the_start_are_there_when_somebody_looks(
    site: Site, base: str, tab: Visit
) -> None:
    tab.go("/runs")
    tab.context.add_init_script(f"sessionStorage.hidden ??= 'yes'; {HIDE}")
    windows = [tab.context.new_page() for _ in range(7)]
    for window in windows:
        window.goto(f"{base}/runs")
        expect(window.locator(".link-state")).to_have_text("Live")  # though nobody looks
    run_id = site.builder.run("run-0000000000bb", name="behind", state=RunState.CANCELLED)
    site.broker.emit("run.cancelled", {"run_id": run_id})
    for window in windows:
        expect(window.get_by_text("behind")).to_have_count(0)
        window.evaluate("window.look(false)")
        expect(window.get_by_text("behind")).to_be_visible()

"""A real Chromium for the browser tests, and a visit that notices everything a page should not do."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture
)
DESK = (1280, 900)
PHONE = (390, 844)

_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""

# After a resize, observers are told in the next frame, and what they change is laid out in the one after it.
_DRAWN_ANEW = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Runs Chromium; skips the test where there is none, and fails it in CI."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing = "no Chromium on this machine; on Debian: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One person's visit to a dashboard.

    Args:
        browser: where.
        base: the dashboard's address, without a slash at its end.
        size: width and height of the window.
        dark: whether the person likes it dark.
        zone: the time zone where they are.
        policed: whether the browser keeps to the pages' content security policy.
        still: whether the person asked for less motion.

    Attributes:
        page: for Playwright's own calls.
        faults: console errors, uncaught exceptions, failed requests and requests to other hosts, so far.
    """

    def __init__(
        self,
        browser: Browser,
        base: str,
        size: tuple[int, int] = DESK,
        *,
        dark: bool = False,
        zone: str = "UTC",
        policed: bool = True,
        still: bool = False,
    ) -> None:
        self.base = base
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            is_mobile=size == PHONE,
            has_touch=size == PHONE,
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            timezone_id=zone,
            locale="en-US",
            bypass_csp=not policed,
            reduced_motion="reduce" if still else "no-preference",
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.faults: list[str] = []
        self.page.add_init_script(_WATCH)
        self.page.on("console", lambda m: self.faults.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        self.page.on(
            "request",
            lambda r: None if r.url.startswith((base, "blob:", "data:")) else self.faults.append(f"request: {r.url}"),
        )

    def go(self, path: str) -> None:
        """Opens a page and waits until it is live and its plots stand."""
        self.page.goto(self.base + path)
        self.page.wait_for_function("() => document.querySelector('.link-state .dot.good')")
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('[data-chart]')].every((c) => c.dataset.drawn === 'yes')"
        )

    def check(self) -> None:
        """Fails where the page scrolls sideways, breaks the content policy, or did anything else it should not."""
        self.page.wait_for_load_state("load")  # before its style sheet is there, a page has any width
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{self.page.url} is {wide} pixels too wide for {self.page.viewport_size}"
        assert self.page.evaluate("window.violations") == []
        assert self.faults == []

    def check_at(self, other: tuple[int, int]) -> None:
        """Checks the page as it is, and once more in a window of another size, for that moment."""
        self.check()
        own = self.page.viewport_size
        assert own is not None
        self.page.set_viewport_size({"width": other[0], "height": other[1]})
        self.page.evaluate(_DRAWN_ANEW)
        self.check()
        self.page.set_viewport_size(own)
        self.page.evaluate(_DRAWN_ANEW)

    def picture(self, path: Path) -> None:
        """Saves a picture of the whole page."""
        self.page.screenshot(path=path, full_page=True)

    def close(self) -> None:
        """Ends the visit."""
        self.context.close()


def drop(zone: Locator, files: Mapping[str, bytes]) -> None:
    """Drops files on an element, as a person does from a folder."""
    named = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    zone.evaluate(_DROP, named)


_DROP = """async (zone, files) => {
  const transfer = new DataTransfer();
  for (const [name, base64] of files) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  for (const kind of ["dragover", "drop"]) {
    zone.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""

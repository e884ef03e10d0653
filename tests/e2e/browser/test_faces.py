"""The window over the faces of a large dataset: little to load, all of it in reach of the keyboard, in the address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from shared.records.edits import Corrections
from tests.support.browser import PHONE, Visit
from tests.support.dashboard_app import Site, open_site

pytestmark = pytest.mark.browser
FACES = 3000
FIRST_LOAD_BYTES = 300_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), started=True) as site:
        site.builder.model(site.builder.dataset(FACES), "run-000000000001")
        yield site


def path_of(site: Site) -> str:
    (sha256,) = site.store.children("datasets")
    return f"/datasets/{sha256}"


@pytest.mark.parametrize("size", [(1280, 900), PHONE], ids=["desk", "phone"])
def test_the_first_load_is_small_and_holds_only_faces_in_sight(
    site: Site, base: str, browser: Browser, size: tuple[int, int]
) -> None:
    visit = Visit(browser, base, size)
    loaded: list[tuple[int, str]] = []
    visit.page.on("response", lambda got: loaded.append((int(got.headers.get("content-length", 0)), got.url)))
    visit.go(path_of(site))
    expect(visit.page.locator(".cell[data-face]").first).to_be_visible()
    expect(visit.page.locator("#inspector tbody tr")).to_have_count(1)

    assert sum(size for size, url in loaded if "/bokeh" not in url) < FIRST_LOAD_BYTES, loaded
    assert visit.page.locator(".cell").count() < 100
    visit.check()
    visit.close()


def test_the_keyboard_reaches_the_last_face_and_the_address_leads_back_to_it(
    site: Site, base: str, browser: Browser
) -> None:
    visit = Visit(browser, base)
    visit.go(path_of(site))
    window = visit.page.locator("#window")
    window.focus()
    visit.page.keyboard.press("End")
    visit.page.wait_for_url(f"**face={FACES - 1}**")
    last = visit.page.locator(f"#cell-{FACES - 1}")
    expect(last).to_be_in_viewport()
    expect(last).to_have_attribute("data-face", str(FACES - 1))
    expect(window).to_have_attribute("aria-activedescendant", f"cell-{FACES - 1}")
    assert visit.page.locator(".cell").count() < 100

    visit.page.reload()
    expect(last).to_be_in_viewport()
    window.focus()
    visit.page.keyboard.press("Home")
    expect(visit.page.locator("#cell-0")).to_be_in_viewport()
    visit.close()


def test_several_faces_are_excluded_at_once_and_brought_back(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go(path_of(site))
    visit.page.locator("#window").focus()
    visit.page.keyboard.press("ArrowRight")
    for _ in range(3):
        visit.page.keyboard.press("Shift+ArrowRight")
    expect(visit.page.locator(".cell[aria-selected=true]")).to_have_count(4)
    visit.page.wait_for_url("**selected=1.2.3.4**")
    visit.page.keyboard.press("x")
    expect(visit.page.locator(".cell.excluded")).to_have_count(4)
    expect(visit.page.locator("#corrected")).to_contain_text("0 labels set, 4 faces excluded")
    (sha256,) = site.store.children("datasets")
    assert site.parts.client.edits.history(sha256).corrections().exclude == (1, 2, 3, 4)

    visit.page.reload()
    expect(visit.page.locator(".cell[aria-selected=true]")).to_have_count(4)
    expect(visit.page.locator(".cell.excluded")).to_have_count(4)
    visit.page.locator("#window").focus()
    visit.page.keyboard.press("u")
    expect(visit.page.locator(".cell.excluded")).to_have_count(0)
    expect(visit.page.locator("#corrected")).to_be_empty()
    visit.check()
    visit.close()


def corrections(site: Site) -> Corrections:
    (sha256,) = site.store.children("datasets")
    return site.parts.client.edits.history(sha256).corrections()


def test_after_a_reload_a_key_edits_no_face_that_the_view_no_longer_finds(
    site: Site, base: str, browser: Browser
) -> None:
    visit = Visit(browser, base)
    page, keyboard = visit.page, visit.page.keyboard
    visit.go(f"{path_of(site)}?gender=male")
    page.locator("#window").focus()
    keyboard.press("Home")
    for _ in range(4):
        keyboard.press("Shift+ArrowRight")
    page.wait_for_url("**selected=**")
    keyboard.press("f")
    expect(page.locator("#corrected")).to_contain_text("5 labels set")

    page.reload()
    first = page.locator(".cell.cursor[data-face]")
    shown = int(first.get_attribute("data-face") or "")
    assert shown not in corrections(site).female
    page.locator("#window").focus()
    keyboard.press("x")
    expect(page.locator("#corrected")).to_contain_text("5 labels set, 1 face excluded")
    assert corrections(site).exclude == (shown,)
    for _ in range(2):
        keyboard.press("u")
    expect(page.locator("#corrected")).to_be_empty()
    visit.check()
    visit.close()


def test_a_key_edits_the_selected_face_and_not_the_one_that_was_taken_out(
    site: Site, base: str, browser: Browser
) -> None:
    visit = Visit(browser, base)
    page = visit.page
    visit.go(path_of(site))
    selected = page.locator(".cell[aria-selected=true]")
    page.locator("#cell-20").click()
    page.locator("#cell-21").click(modifiers=["Control"])
    expect(selected).to_have_count(2)
    page.locator("#cell-21").click(modifiers=["Control"])
    expect(selected).to_have_count(1)
    expect(page.locator("#inspector [data-facts]")).to_contain_text("Selectedface 20Face21")
    page.keyboard.press("x")

    expect(page.locator("#corrected")).to_contain_text("1 face excluded")
    assert corrections(site).exclude == (20,)
    page.keyboard.press("u")
    expect(page.locator("#corrected")).to_be_empty()
    visit.check()
    visit.close()


def test_an_undo_that_did_not_get_through_can_be_repeated_and_one_made_elsewhere_gives_way(
    site: Site, base: str, browser: Browser
) -> None:
    visit = Visit(browser, base)
    page = visit.page
    visit.go(path_of(site))
    for position in (30, 31, 32):
        page.locator(f"#cell-{position}").click()
        page.keyboard.press("x")
    expect(page.locator("#corrected")).to_contain_text("3 faces excluded")

    page.route("**/edits", lambda route: route.fulfill(status=502, body="<html>502 Bad Gateway</html>"))
    page.keyboard.press("u")
    expect(page.locator(".toast")).to_contain_text("the proxy in front of it says 502")
    page.unroute("**/edits")
    page.keyboard.press("u")
    expect(page.locator("#corrected")).to_contain_text("2 faces excluded")
    assert corrections(site).exclude == (30, 31)

    (sha256,) = site.store.children("datasets")
    site.parts.client.edits.undo(sha256)
    page.keyboard.press("u")
    expect(page.locator(".toast").last).to_contain_text("is undone already")
    page.keyboard.press("u")
    expect(page.locator("#corrected")).to_be_empty()
    assert corrections(site).exclude == ()
    visit.close()


def test_an_edit_that_did_not_get_through_promises_no_undo(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go(path_of(site))
    visit.page.route("**/edits", lambda route: route.fulfill(status=502, body="<html>502 Bad Gateway</html>"))
    visit.page.locator("#cell-30").click()
    visit.page.keyboard.press("x")
    expect(visit.page.locator(".toast")).to_contain_text("the proxy in front of it says 502")
    expect(visit.page.locator("#said")).to_be_empty()
    expect(visit.page.locator(".cell.excluded")).to_have_count(0)
    visit.close()


def test_without_scripts_faces_stand_in_pages_and_facets_are_links(site: Site, base: str, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{base}{path_of(site)}?sort=suspects")
    page.locator("#facet-result-wrong").click()
    assert "sort=suspects" in page.url
    assert "result=wrong" in page.url
    page.get_by_role("link", name="Next →").click()
    page.locator(".faces a").first.click()
    expect(page.get_by_role("button", name="Exclude")).to_be_visible()
    context.close()

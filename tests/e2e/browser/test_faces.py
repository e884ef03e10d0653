"""The window over the faces of a large dataset: little to load, all of it in reach of the keyboard, in the address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

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

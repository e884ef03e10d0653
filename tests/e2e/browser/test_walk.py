"""From face to face in a real browser: by arrow keys, by a second model, with the map of what mattered."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import PHONE, Visit
from tests.support.dashboard_app import Site, open_site

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), started=True) as site:
        sha256 = site.builder.dataset(150)
        for i in range(2):
            site.builder.model(sha256, f"run-{i + 1:012d}", accuracy=0.7 + 0.2 * i)
        yield site


@pytest.fixture
def visit(base: str, browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser, base)
    yield visit
    visit.check()
    visit.close()


def path_of(site: Site) -> str:
    (sha256,) = site.store.children("datasets")
    return f"/datasets/{sha256}"


def test_arrow_keys_walk_the_filtered_view_unless_a_field_has_them(site: Site, visit: Visit) -> None:
    query = "version=1&result=wrong&sort=largest_error"
    found = site.web.get(f"/api/v1{path_of(site)}/faces?{query}").json or {}
    order = [face["index"] for face in found["faces"]]
    visit.go(f"{path_of(site)}/faces/{order[0]}?{query}")
    for index in (order[1], order[2]):
        visit.page.keyboard.press("ArrowRight")
        visit.page.wait_for_url(f"**/faces/{index}?{query}&as_of=0")
    visit.page.keyboard.press("ArrowLeft")
    visit.page.wait_for_url(f"**/faces/{order[1]}?{query}&as_of=0")

    visit.page.locator(".scroll").focus()  # the arrows scroll it
    visit.page.keyboard.press("ArrowRight")
    visit.page.get_by_role("link", name="Next").focus()
    visit.page.keyboard.press("Control+ArrowRight")
    visit.page.keyboard.press("ArrowLeft")
    visit.page.wait_for_url(f"**/faces/{order[0]}?{query}&as_of=0")
    visit.page.keyboard.press("ArrowLeft")  # there is none before the first
    expect(visit.page.locator("h1")).to_have_text(f"Face {order[0]}")


def test_a_second_model_is_chosen_and_the_faces_on_which_the_two_disagree(site: Site, visit: Visit) -> None:
    visit.go(f"{path_of(site)}?version=1")
    visit.page.get_by_label("Second model").select_option("2")
    facet = visit.page.locator("#facet-models-disagree")
    count = int(facet.locator(".num").inner_text())
    assert 0 < count < 150
    facet.click()
    visit.page.wait_for_url("**models=disagree**")
    assert "other=2" in visit.page.url
    expect(visit.page.locator("#found header")).to_contain_text(f"{count} of 150")

    rows = visit.page.locator("#inspector tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.locator(".verdict.wrong")).to_have_count(1)  # of two different answers


@pytest.mark.parametrize("size", [(1280, 900), PHONE], ids=["desk", "phone"])
def test_the_inspector_explains_a_face_and_the_next_face_has_no_map_yet(
    site: Site, base: str, browser: Browser, size: tuple[int, int]
) -> None:
    visit = Visit(browser, base, size)
    visit.go(f"{path_of(site)}?version=2")
    inspector = visit.page.locator("#inspector")
    with site.worker() as taken:
        inspector.get_by_role("button", name="Explain").click()
        expect(inspector.locator("canvas")).to_be_visible()
    expect(inspector.locator("[data-map-words]")).to_have_text(re.compile(r"Red: .* by up to \d+ points"))
    assert [delivery.message.headers["model_version"] for delivery in taken] == [2]
    boxes = [inspector.locator(part).bounding_box() for part in ("canvas", "img")]
    assert boxes[0] == boxes[1]

    visit.page.locator("#window").focus()
    visit.page.keyboard.press("ArrowRight")
    expect(inspector.locator("canvas")).to_be_hidden()
    expect(inspector.locator("[data-map-words]")).to_be_empty()
    visit.check()
    visit.close()

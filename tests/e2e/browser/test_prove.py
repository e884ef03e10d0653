"""What people do with a finished model, in a real browser: name it, compare it, try it on their own images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, FilePayload, Route, expect

from shared.events import RunChanged
from shared.messages import parse_dataset, run_id_of
from shared.records.dataset import find_summary
from shared.store.files import FileStore
from tests.support.browser import PHONE, Visit
from tests.support.builders.stores import StoreBuilder
from tests.support.dashboard_app import Site, open_site, served
from tests.unit.dashboard.pages.helpers import jpeg

pytestmark = pytest.mark.browser
FACES = 150
COUNT_CLICKS = """addEventListener("pointerdown", (event) => {
  if (event.isTrusted) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true);"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), started=True) as site:
        sha256 = site.builder.dataset(150)
        for i in range(2):
            site.builder.model(sha256, f"run-{i + 1:012d}", accuracy=0.8 + 0.15 * i)
        site.parts.client.promote(1, "first")
        yield site


@pytest.fixture
def visit(base: str, browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser, base)
    yield visit
    visit.close()


def test_several_images_are_chosen_from_a_strip(site: Site, visit: Visit) -> None:
    files = [FilePayload(name=f"{age}_1_0.jpg", mimeType="image/jpeg", buffer=jpeg(140 + age)) for age in (20, 30, 40)]
    with site.worker():
        visit.go("/predict?search=none")
        visit.page.locator("#own").set_input_files(files)
        strip = visit.page.locator("#strip button")
        expect(strip).to_have_count(4)
        for i in range(4):
            expect(strip.nth(i)).to_contain_text("male")
        expect(visit.page.locator("#results section:visible h2")).to_have_text("40_1_0.jpg")
        strip.nth(2).focus()
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("#results section:visible h2")).to_have_text("20_1_0.jpg")
        expect(strip.nth(2)).to_have_attribute("aria-current", "true")
        visit.page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        visit.check()


def test_a_picture_of_the_camera_is_predicted(site: Site, visit: Visit) -> None:
    visit.context.grant_permissions(["camera"])
    with site.worker():
        visit.go("/predict?search=none")
        visit.page.get_by_role("button", name="Use the camera").click()
        video = visit.page.locator("#camera video")
        expect(video).to_be_visible()
        visit.page.wait_for_function("() => document.querySelector('#camera video').videoWidth > 0")
        visit.page.get_by_role("button", name="Take a picture").click()
        card = visit.page.locator("#results section", has_text="camera 1")
        expect(card.locator("[data-p]")).not_to_be_empty()
        visit.page.get_by_role("button", name="Close the camera").click()
        expect(video).to_be_hidden()
        visit.check()


def test_without_leave_for_the_camera_the_page_says_so(visit: Visit) -> None:
    visit.context.clear_permissions()
    visit.page.add_init_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    )
    visit.go("/predict")
    visit.page.get_by_role("button", name="Use the camera").click()
    expect(visit.page.locator("#camera-words")).to_contain_text("does not allow the camera")


def test_a_comparison_leads_to_faces_and_ends_in_a_promotion(site: Site, visit: Visit) -> None:
    visit.page.on("dialog", lambda dialog: dialog.accept())
    visit.go("/models/2")
    visit.page.get_by_role("link", name="Compare with the champion").click()
    expect(visit.page.locator("#verdict")).to_contain_text("McNemar")
    cell = visit.page.locator("#agreement a", has_text="turned right")
    count = cell.locator("strong").inner_text()
    cell.click()
    expect(visit.page.locator("#found header")).to_contain_text(f"{count} of 150")
    visit.page.go_back()
    visit.page.get_by_role("button", name="Promote model 2").click()
    expect(visit.page.get_by_text("Model 2 is the champion now")).to_be_visible()
    assert site.parts.client.registry.aliases().champion == 2
    site.parts.client.promote(1, "as before")


def test_the_threshold_moves_every_figure_of_a_models_page(visit: Visit) -> None:
    visit.go("/models/2")
    visit.page.locator("#threshold[data-ready]").wait_for()
    visit.page.locator("#threshold").fill("0.9")
    expect(visit.page.locator("#groups")).to_contain_text("at a threshold of 0.900")
    right = [int(visit.page.locator(f"[data-cell={g}-{g}] strong").inner_text()) for g in ("male", "female")]
    cells = visit.page.locator("[data-cell] strong").all_inner_texts()
    share = 100 * sum(right) / sum(map(int, cells))
    expect(visit.page.locator("#figures dd").first).to_contain_text(f"{share:.1f}")
    visit.page.get_by_role("link", name="0.500").click()
    expect(visit.page.locator("#groups")).not_to_contain_text("at a threshold")
    visit.check()


def take_up(site: Site) -> str:
    """Does what a trainer does with the next message, but for the training: reads the archive, registers a model."""
    with site.broker.consume([site.broker.topology.datasets], 1) as consumer:
        (delivery,) = consumer.receive(1, 10.0)
        run_id = run_id_of(parse_dataset(delivery.message).message_id)
        consumer.settle([delivery], [])
    datasets = [sha256 for sha256 in site.store.children("datasets") if find_summary(site.store, sha256)]
    sha256 = datasets[0] if datasets else site.builder.dataset(FACES)
    version = site.builder.model(sha256, run_id)
    if version == 1:
        site.parts.client.promote(1, "the first model")
    site.broker.emit(*RunChanged.of(site.builder.runs.get(run_id)).wire())
    return run_id


def clicks_in_docs() -> list[int]:
    """Returns what the table in docs/dashboard.md says of our clicks, step by step, and last the sum."""
    text = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text()
    table = text.partition("## From an empty system")[2]
    rows = re.findall(r"^\| [^|]+ \|[^|]*\| \**(\d+)\** \|", table, re.MULTILINE)
    return [int(row) for row in rows]


def test_from_an_empty_system_to_a_prediction_beside_its_label_takes_as_many_clicks_as_docs_say(
    tmp_path: Path, browser: Browser
) -> None:
    # The archive that the site's own builder would write, so that what it reads of it is what was uploaded.
    elsewhere = StoreBuilder(FileStore(tmp_path / "elsewhere"))
    archive = elsewhere.store.get(f"datasets/{elsewhere.dataset(FACES)}/archive.zip")
    with open_site(tmp_path, started=True) as site, served(site) as base:
        visit = Visit(browser, base)
        page = visit.page
        page.add_init_script(COUNT_CLICKS)
        seen = [0]

        def end_step() -> None:
            seen.append(int(page.evaluate("sessionStorage.clicks ?? 0")))

        visit.go("/")
        expect(page.get_by_text("Nothing here yet.")).to_be_visible()
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Choose an archive").click()
        chooser.value.set_files([FilePayload(name="faces.zip", mimeType="application/zip", buffer=archive)])
        expect(page.locator(".uploads a")).to_be_visible()
        end_step()  # uploaded
        first = take_up(site)
        page.locator(".uploads a").click()
        page.wait_for_url(f"**/runs/{first}")
        page.get_by_role("link", name="Dataset", exact=True).click()
        expect(page.locator("[data-chart=genders]")).to_contain_text("%")
        end_step()  # its distribution
        expect(page.locator(".cell[data-face]").first).to_contain_text("male")
        end_step()  # faces with labels
        page.get_by_role("link", name="Train", exact=True).click()
        page.locator("#train [data-param=epochs]").fill("9")
        end_step()  # parameters
        page.get_by_role("button", name="Train", exact=True).click()
        page.wait_for_url("**/runs/run-*")
        end_step()  # training
        assert take_up(site) in page.url
        expect(page.locator("[data-series=loss]")).to_have_attribute("data-points", "12")
        expect(page.locator("#figures")).to_be_visible()
        end_step()  # curves and evaluation
        with site.worker():
            page.get_by_role("link", name="Predict", exact=True).click()
            expect(page.locator("[data-true]").first).to_contain_text("male")
            expect(page.locator("#results .verdict").first).to_be_visible()
        end_step()  # a prediction beside its label
        visit.check()
        visit.close()

    taken = [after - before for before, after in pairwise(seen)]
    assert [*taken, sum(taken)] == clicks_in_docs()


def test_a_bar_and_a_dot_lead_to_their_faces(site: Site, visit: Visit) -> None:
    (sha256,) = site.store.children("datasets")
    males = np.flatnonzero(site.parts.store_cache.dataset(sha256).gender == 0).tolist()
    site.parts.client.edits.add(sha256, "exclude", males[:3])
    visit.go(f"/datasets/{sha256}")
    chart = visit.page.locator("[data-chart=genders]")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    visit.page.mouse.click(box["x"] + 0.35 * box["width"], box["y"] + 0.75 * box["height"])
    visit.page.wait_for_url("**gender=male**")
    expect(visit.page.locator("#found header")).to_contain_text(f"{len(males) - 3} of 150")
    site.parts.client.edits.undo(sha256)

    visit.go("/runs/run-000000000001")
    chart = visit.page.locator("[data-chart=reliability]")
    chart.scroll_into_view_if_needed()
    # Dots are drawn at 0.05, 0.15, … 0.95 of the unit square; the last one lies near its upper right corner.
    frame = chart.evaluate("""(place) => {
      const plot = [...Bokeh.index].find((v) => place.contains(v.el));
      const { left, top } = plot.el.getBoundingClientRect();
      const [x, y] = [plot.frame.x_scale.compute(0.95), plot.frame.y_scale.compute(0.95 ** 1.15)];
      return [left + x, top + y];
    }""")
    visit.page.mouse.click(*frame)
    visit.page.wait_for_url("**predicted=female**")
    assert "version=1" in visit.page.url
    assert visit.page.locator("form.filters").evaluate("(form) => form.checkValidity()")
    visit.check()


def test_the_matrix_follows_a_prediction_that_was_started_in_it(tmp_path: Path, browser: Browser) -> None:
    with open_site(tmp_path, started=True) as site, served(site) as base, site.job_worker():
        own, other = site.builder.dataset(40), site.builder.dataset(41)
        for i, sha256 in enumerate((own, other)):
            site.builder.model(sha256, f"run-{i + 1:012d}")
        visit = Visit(browser, base)
        visit.go(f"/compare?first=1&second=2&dataset={own}")
        matrix = visit.page.locator("#all-models")
        predict = matrix.get_by_role("button", name="Predict this dataset with model")
        expect(predict).to_have_count(2)
        predict.first.click()
        expect(predict).to_have_count(1, timeout=30_000)
        expect(predict).to_be_enabled(timeout=30_000)
        assert "first=1&second=2" in visit.page.url
        visit.check()
        visit.close()


def test_a_dot_leads_to_all_of_its_faces_by_the_threshold_in_force(site: Site, visit: Visit) -> None:
    """A dot's limits are exact, and the stored predictions have six decimals."""
    (sha256,) = site.store.children("datasets")
    data, stored = site.parts.store_cache.dataset(sha256), site.parts.store_cache.predictions(sha256, 1)
    assert stored is not None
    ends = sorted(float(p) for p in stored[data.split == 2] if 0.6 < p < 0.9)
    dot = {"low": ends[0] + 4e-7, "high": ends[-1] - 4e-7, "mean_probability": 0.75, "share_female": 0.5, "count": 9}

    def answer(route: Route) -> None:
        found = route.fetch().json()
        found["evaluation"]["reliability"] = [dot]
        route.fulfill(json=found)

    visit.page.route("**/api/v1/runs/run-000000000001", answer)
    for threshold, predicted in (("0.5", "female"), ("0.95", "male")):
        visit.go(f"/runs/run-000000000001?threshold={threshold}")
        chart = visit.page.locator("[data-chart=reliability]")
        chart.scroll_into_view_if_needed()
        place = chart.evaluate("""(place) => {
          const plot = [...Bokeh.index].find((v) => place.contains(v.el));
          const { left, top } = plot.el.getBoundingClientRect();
          return [left + plot.frame.x_scale.compute(0.75), top + plot.frame.y_scale.compute(0.5)];
        }""")
        visit.page.mouse.click(*place)
        visit.page.wait_for_url(f"**predicted={predicted}**")
        expect(visit.page.locator("#found header")).to_contain_text(f"{len(ends)} of 150")
        assert visit.page.locator("form.filters").evaluate("(form) => form.checkValidity()")
    visit.check()

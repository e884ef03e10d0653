"""Every page in a real browser, wide and narrow, light and dark: nothing breaks, nothing scrolls sideways."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, FilePayload, Locator, expect

from shared.broker.base import Message
from shared.events import EpochFinished, RunChanged, RunProgressed
from shared.records.runs import Progress, RunState
from tests.support.browser import DESK, PHONE, Visit, drop
from tests.support.builders.archives import zipped
from tests.support.builders.stores import HOSTILE_NAMES
from tests.support.dashboard_app import Site, open_site, served

pytestmark = pytest.mark.browser
RUN = "run-000000000001"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), started=True) as site:
        builder = site.builder
        sha256 = builder.dataset(150, names=HOSTILE_NAMES)
        for i in range(2):
            builder.model(sha256, f"run-{i + 1:012d}", name="long name " * 18)
        site.parts.client.promote(1, "first")
        site.parts.client.promote(2, "second " * 60)
        said: Any = {"name": HOSTILE_NAMES[2][:200], "note": "two\nlines " * 40, "tags": ["best", "a" * 40, "<b>"]}
        site.parts.client.annotate("dataset", sha256, **said)
        site.parts.client.annotate("run", RUN, **said)
        site.parts.client.annotate("model", "1", **said)
        progress = {"stage": "training", "done": 2, "total": 10, "rate": 400.0, "eta_s": 75, "epoch": 3, "epochs": 9}
        builder.run(
            "run-000000000003", name="live", state=RunState.TRAINING, dataset=sha256, epochs=2, progress=progress
        )
        error = {"code": "single_gender", "message": "all faces are male " * 20}
        builder.run("run-000000000004", name=HOSTILE_NAMES[2], state=RunState.REJECTED, error=error)
        builder.job(name=HOSTILE_NAMES[2])
        queue = site.broker.topology.jobs
        site.broker.publish(queue, Message(b'{"uri": "' + b"x" * 900 + b'"}', "application/json"))
        with site.broker.consume([queue], 1) as consumer:
            (delivery,) = consumer.receive(1, 1.0)
            consumer.dead_letter(delivery, "unsupported_schema")
        yield site


def paths(site: Site) -> list[str]:
    (sha256,) = site.store.children("datasets")
    return [
        "/",
        "/datasets",
        f"/datasets/{sha256}?sort=largest_error",
        f"/datasets/{sha256}/faces/2",
        "/runs",
        f"/runs/{RUN}",
        "/runs/run-000000000003",
        "/runs/run-000000000004",
        f"/runs/compare?run={RUN}&run=run-000000000002",
        "/models",
        "/models/1",
        "/compare?first=1&second=2",
        "/manage/model/1/delete",
        "/jobs",
        "/jobs/job-000000000001",
        "/predict",
        f"/predict?dataset={sha256}&pick=wrong",
        "/dead",
    ]


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (PHONE, True)], ids=["desk", "phone"])
def test_every_page_stands_without_a_fault(
    site: Site, base: str, browser: Browser, size: tuple[int, int], dark: bool
) -> None:
    visit = Visit(browser, base, size, dark=dark)
    for path in paths(site):
        visit.go(path)
        visit.check()
    visit.close()


HELD = {"empty-table-header", "label-title-only", "empty-heading"}
"""Rules that are held though axe calls them minor or moderate."""


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (PHONE, True)], ids=["desk", "phone"])
def test_axe_finds_no_serious_fault_on_any_page(
    site: Site, base: str, browser: Browser, size: tuple[int, int], dark: bool
) -> None:
    # Axe gives elements styles of its own, which the pages' policy forbids.
    visit = Visit(browser, base, size, dark=dark, policed=False)
    found: list[str] = []
    for path in paths(site):
        visit.go(path)
        for fault in Axe().run(visit.page).response["violations"]:
            if fault["impact"] in {"serious", "critical"} or fault["id"] in HELD:
                found += [f"{path}: {fault['id']}: {node['html']}" for node in fault["nodes"]]
    visit.close()
    assert found == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_hostile_names_are_shown_as_they_are_and_run_nothing(
    site: Site, base: str, browser: Browser, size: tuple[int, int]
) -> None:
    visit = Visit(browser, base, size)
    dialogs: list[str] = []

    def refuse(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    visit.page.on("dialog", refuse)
    (sha256,) = site.store.children("datasets")
    assert max(len(name) for name in HOSTILE_NAMES) >= 200
    with site.worker():
        for i, name in enumerate(HOSTILE_NAMES):
            visit.go(f"/predict?dataset={sha256}&face={i}")
            expect(visit.page.locator("#results h2").first).to_have_text(name)
            expect(visit.page.locator("[data-took]").first).to_contain_text("Model")
            visit.check()
            visit.go(f"/datasets/{sha256}/faces/{i}")
            shown = visit.page.locator("bdi.name")
            expect(shown).to_have_text(name)
            # A right-to-left mark in a name turns nothing around it.
            assert shown.evaluate("(name) => getComputedStyle(name).unicodeBidi") == "isolate"
            visit.check()
    # All three were predicted, so the overview shows them too.
    visit.go("/")
    newest = visit.page.locator("#newest bdi").all_inner_texts()
    assert set(HOSTILE_NAMES) <= set(newest)
    assert visit.page.locator("img[src='x']").count() == 0
    assert dialogs == []
    visit.check()
    visit.close()


def test_progress_and_curves_move_with_the_events(site: Site, base: str, browser: Browser) -> None:
    run_id = site.builder.run("run-000000000009", name="moving", state=RunState.TRAINING, epochs=1)
    visit = Visit(browser, base)
    visit.go(f"/runs/{run_id}")
    chart = visit.page.locator("[data-series=loss]")
    expect(chart).to_have_attribute("data-points", "1")
    for epoch in (2, 3):
        site.broker.emit(*EpochFinished(run_id=run_id, row=site.builder.epoch(epoch)).wire())
        progress = Progress(stage="training", done=epoch, total=10, epoch=epoch, epochs=10)
        site.broker.emit(*RunProgressed(run_id=run_id, progress=progress).wire())
        expect(chart).to_have_attribute("data-points", str(epoch), timeout=2000)
        expect(visit.page.locator("[data-show=share]")).to_have_text(f"{10 * epoch} %", timeout=2000)

    site.builder.runs.update(run_id, state=RunState.FAILED, error={"code": "internal", "message": "the disk was full"})
    site.broker.emit(*RunChanged.of(site.builder.runs.get(run_id)).wire())

    expect(visit.page.locator("#state .alert")).to_contain_text(f"Look for {run_id}", timeout=5000)
    visit.check()
    visit.close()


REFRESH = """() => new Promise((done) => {
  document.addEventListener("genderline:refreshed", () => done(), { once: true });
  import(document.querySelector("script[src*='js/app']").src).then((app) => app.refresh());
})"""


def test_a_refresh_leaves_alone_what_has_not_changed(base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go(f"/runs/{RUN}")
    visit.page.locator("#threshold[data-ready]").wait_for()
    visit.page.locator("#threshold").fill("0.8")
    visit.page.evaluate("document.activeElement.blur()")
    visit.page.evaluate(REFRESH)

    expect(visit.page.locator("#threshold")).to_have_value("0.8")
    expect(visit.page.locator("[data-chart=roc]")).to_have_attribute("data-drawn", "yes")
    visit.check()
    visit.close()


def test_the_overview_draws_speed_and_latency_as_heartbeats_come(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    beat = {"service": "inference", "worker": "here:1", "version": 2, "provider": "cpu"}
    site.broker.emit(
        "worker.heartbeat", {**beat, "images_per_second": 123.0, "latency_p50_ms": 4.5, "latency_p99_ms": 9}
    )
    visit.go("/")

    expect(visit.page.locator("#rate dd").first).to_have_text("123")
    expect(visit.page.locator("#latency dd").first).to_have_text("4.5 ms")
    expect(visit.page.locator("[data-chart=latency]")).not_to_have_attribute("data-points", "0")
    _, content = saved(visit, visit.page.locator("[data-chart=latency]"), "csv")
    assert content.decode().splitlines()[0] == "minutes,latency_p50_ms,latency_p99_ms"
    assert ",4.5,9" in content.decode()
    visit.check()
    visit.close()


def test_the_pages_are_usable_by_keyboard_alone(base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go("/models/1")
    visit.page.keyboard.press("Tab")
    expect(visit.page.locator(".skip")).to_be_focused()
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("main")).to_be_focused()
    reached: set[str] = set()
    wanted = {"reason", "Promote model 1"}
    for _ in range(200):
        visit.page.keyboard.press("Tab")
        reached.add(visit.page.evaluate("document.activeElement.textContent.trim() || document.activeElement.name"))
        if wanted <= reached:
            break

    assert wanted <= reached
    visit.close()


AXES = {
    "history": ["epoch"],
    "compare": ["epoch"],
    "roc": ["true positive rate", "false positive rate"],
    "precision_recall": ["recall", "precision"],
    "reliability": ["predicted probability of female", "share with label female"],
    "genders": ["faces", "male", "female"],
    "rate": ["images per second", "minutes ago"],
    "latency": ["milliseconds", "p50", "p99"],
    "ages": ["faces", "age in years"],
    "ethnicities": ["faces", "Asian"],
}


def saved(visit: Visit, chart: Locator, format_: str) -> tuple[str, bytes]:
    """Presses a plot's button by keyboard, and returns the file's name and content."""
    with visit.page.expect_download() as download:
        chart.locator("xpath=ancestor::section").locator(f"[data-save={format_}]").press("Enter")
    return download.value.suggested_filename, download.value.path().read_bytes()


def assert_picture(png: bytes, width: float) -> None:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    assert abs(picture.shape[1] - width) <= 4
    assert 330 <= picture.shape[0] <= 700
    assert (picture[..., 3] == 255).mean() > 0.98  # on a ground of its own, so that it can be read anywhere
    assert picture[..., :3].std() > 5  # and something is drawn on it


def assert_drawing(svg: bytes, words: list[str]) -> None:
    drawing = ElementTree.fromstring(svg)
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    text = "\n".join(drawing.itertext())
    assert [word for word in words if word not in text] == []


def test_a_plots_figures_are_saved_as_csv(base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go(f"/runs/{RUN}")

    name, content = saved(visit, visit.page.locator("[data-series=loss]"), "csv")

    lines = content.decode().splitlines()
    assert name == f"loss-{RUN}.csv"
    assert lines[0] == "epoch,train_loss,val_loss"
    assert len(lines) == 13
    visit.close()


def test_every_plot_is_saved_as_png_and_as_svg(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base, PHONE, dark=True)
    beat = {"service": "inference", "worker": "here:2", "images_per_second": 9.0}
    site.broker.emit("worker.heartbeat", {**beat, "latency_p50_ms": 4.5, "latency_p99_ms": 9})
    (sha256,) = site.store.children("datasets")
    compared = f"/runs/compare?run={RUN}&run=run-000000000002"
    pages = {"/": 2, f"/runs/{RUN}": 6, f"/datasets/{sha256}": 3, compared: 4}
    # A page anew for each format: Chromium drops downloads of one document after ten in a row.
    for path, expected, format_ in [(path, count, kind) for path, count in pages.items() for kind in ("png", "svg")]:
        visit.go(path)
        charts = visit.page.locator("[data-chart]")
        assert charts.count() == expected
        for i in range(expected):
            name, content = saved(visit, charts.nth(i), format_)
            assert name.endswith(f".{format_}")
            box = charts.nth(i).bounding_box()
            assert box is not None
            if format_ == "png":
                assert_picture(content, 2 * box["width"])  # twice as fine as on the screen
            else:
                assert_drawing(content, AXES[charts.nth(i).get_attribute("data-chart") or ""])
    visit.check()
    visit.close()


def test_the_threshold_moves_the_confusion_and_the_ring_on_the_curves(base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go(f"/runs/{RUN}")
    visit.page.locator("#threshold[data-ready]").wait_for()
    visit.page.locator("#threshold").fill("0")

    expect(visit.page.locator("[data-cell=male-male] strong")).to_have_text("0")
    expect(visit.page.locator("#threshold-words")).to_contain_text("recall 100.0 %")
    expect(visit.page.locator("[data-chart=roc]")).to_have_attribute("data-mark", "1.000 1.000")
    visit.page.locator("#threshold").fill("1")
    expect(visit.page.locator("[data-chart=roc]")).to_have_attribute("data-mark", "0.000 0.000")
    expect(visit.page.locator("[data-chart=precision_recall]")).to_have_attribute("data-mark", "0.000 1.000")
    visit.check()
    visit.close()


def test_a_cell_of_the_confusion_leads_to_its_faces(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go(f"/runs/{RUN}")
    visit.page.locator("#threshold[data-ready]").wait_for()
    cell = visit.page.locator("[data-cell=female-female]")
    count = int(cell.locator("strong").inner_text())
    assert 0 < count < 60
    cell.click()

    expect(visit.page.locator("#faces header")).to_contain_text(f"{count} of 150")
    expect(visit.page.locator(".cell", has_text="✓ female").first).to_have_attribute("aria-setsize", str(count))
    expect(visit.page.locator(".cell.wrong")).to_have_count(0)
    visit.check()
    visit.close()


def test_times_are_those_of_the_viewers_zone(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base, zone="Asia/Tokyo")
    site.builder.run("run-000000000007", name="new year", created="2025-12-31T20:30:00.000Z")
    visit.go("/runs")

    shown = visit.page.locator("tr", has_text="new year").locator("time")
    expect(shown).to_have_text("Jan 1, 2026, 5:30 AM")
    visit.close()


BROKEN_PICTURES = """() => [...document.images].filter((image) =>
  (image.complete && !image.naturalWidth) && image.checkVisibility({ visibilityProperty: true })).length"""


def test_a_file_that_is_no_image_is_told_apart_and_leaves_no_broken_picture(base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go("/predict?search=none")  # the note is there at once, the face of the form is predicted by nobody
    visit.page.locator("#own").set_input_files(
        [
            FilePayload(name="broken.jpg", mimeType="image/jpeg", buffer=b"\xff\xd8\xff broken"),
            FilePayload(name="empty.jpg", mimeType="image/jpeg", buffer=b""),
            FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"some notes"),
        ]
    )

    for name, words in (("broken", "JPEG image that"), ("empty", "an empty file"), ("notes", "found a text file, exp")):
        card = visit.page.locator("#results section", has_text=name)
        expect(card.locator("[data-error]")).to_contain_text(words)
        expect(card.locator("img")).to_have_count(0)
        expect(card.get_by_text("Probability of female")).to_have_count(0)
    assert visit.page.evaluate(BROKEN_PICTURES) == 0
    visit.close()


CUT_OFF = """() => [...document.querySelectorAll("a, button, td, .faces .line span")].filter((e) => {
  const { left, right, width } = e.getBoundingClientRect();
  const frame = e.closest(".faces a")?.getBoundingClientRect() ?? { left: 0, right: innerWidth };
  return width && !e.matches(".skip") && (left < frame.left || right > frame.right + 0.5);
}).map((e) => e.textContent.trim())"""
SCROLLS_SIDEWAYS = """() => [...document.querySelectorAll(".scroll, nav.main")]
  .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.textContent.trim().slice(0, 80))"""


def test_on_a_phone_nothing_is_cut_off_and_no_table_scrolls_sideways(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base, PHONE)
    for path in paths(site):
        visit.go(path)
        assert (path, visit.page.evaluate(SCROLLS_SIDEWAYS)) == (path, [])
        assert (path, visit.page.evaluate(CUT_OFF)) == (path, [])
    visit.close()


def test_on_a_phone_a_row_of_results_says_everything(base: str, browser: Browser) -> None:
    visit = Visit(browser, base, PHONE)
    visit.go("/jobs/job-000000000001")
    row = visit.page.locator("#results tbody tr").first

    expect(row.locator("progress")).to_be_in_viewport()
    expect(row.locator("td[data-label=Confidence]")).to_be_in_viewport()
    expect(row.locator(".verdict")).to_be_in_viewport()
    visit.close()


def test_failed_messages_wait_for_a_selection_before_they_can_be_retried(base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go("/dead")
    for name in ("Retry selected", "Delete selected"):
        expect(visit.page.get_by_role("button", name=name)).to_be_disabled()
    visit.page.get_by_label("Select all").check()

    expect(visit.page.get_by_role("button", name="Retry selected")).to_be_enabled()
    visit.page.get_by_label("Select all").uncheck()
    expect(visit.page.get_by_role("button", name="Retry selected")).to_be_disabled()
    visit.close()


def test_what_waits_in_the_queue_says_so_and_shows_curves_once_it_has_epochs(
    site: Site, base: str, browser: Browser
) -> None:
    run_id = site.builder.run("run-00000000000a", name="waiting")
    visit = Visit(browser, base)
    visit.go(f"/runs/{run_id}")

    expect(visit.page.locator("#state")).to_contain_text("submitted")
    expect(visit.page.locator("#state")).to_contain_text("Queued")
    charts = visit.page.locator("[data-chart=history]")
    for i in range(3):
        expect(charts.nth(i)).to_have_text("Appears after the first epoch.")
    visit.page.wait_for_timeout(1100)  # an answer is shared between plots for a second
    site.builder.runs.write_history(run_id, [site.builder.epoch(1)])
    site.broker.emit(*EpochFinished(run_id=run_id, row=site.builder.epoch(1)).wire())
    for i in range(3):
        expect(charts.nth(i)).to_have_attribute("data-points", "1", timeout=5000)
    visit.check()
    visit.close()
    site.builder.runs.update(run_id, state=RunState.CANCELLED)


PLOTS = """() => Object.fromEntries([...document.querySelectorAll("[data-chart]")].map((place) => {
  const view = Bokeh.index.roots.find((view) => place.contains(view.el));
  const [legend] = view.model.center.filter((part) => "click_policy" in part && part.visible);
  return [place.dataset.series ?? place.dataset.chart, {
    above: legend ? view.views.find_one(legend).bbox.bottom <= view.frame.bbox.top : null,
    edges: [view.model.x_range.start, view.model.y_range.end],
  }];
}))"""


def test_a_legend_stands_above_its_plot_and_no_dot_is_cut_at_an_edge(base: str, browser: Browser) -> None:
    visit = Visit(browser, base, PHONE)
    visit.go(f"/runs/{RUN}")
    plots = visit.page.evaluate(PLOTS)

    legends = {name: plot["above"] for name, plot in plots.items() if plot["above"] is not None}
    assert legends == {"loss": True, "accuracy": True}
    for name in ("roc", "precision_recall", "reliability"):
        low, high = plots[name]["edges"]
        assert low < 0
        assert high > 1
    visit.check()
    visit.go(f"/runs/compare?run={RUN}&run=run-000000000002")
    assert {plot["above"] for plot in visit.page.evaluate(PLOTS).values()} == {True}
    visit.check()
    visit.close()


def test_a_sample_of_latency_between_idle_minutes_is_a_dot_and_none_is_no_plot(
    site: Site, base: str, browser: Browser
) -> None:
    visit = Visit(browser, base)
    speed: dict[str, list[float | None]] = {"minutes": [-1, 0], "images_per_second": [0, 0]}
    speed |= {"latency_p50_ms": [None, None], "latency_p99_ms": [None, None]}
    visit.page.route("**/speed.json", lambda route: route.fulfill(json=speed))
    visit.go("/")
    chart = visit.page.locator("[data-chart=latency]")
    expect(chart).to_have_text("No predictions in the last ten minutes.")

    speed |= {"latency_p50_ms": [None, 4.5], "latency_p99_ms": [8, 9]}
    expect(chart).to_have_attribute("data-points", "2", timeout=10_000)  # with the next refresh
    lone = "Object.values(Bokeh.documents.at(-1).roots()[0].renderers).map((r) => r.data_source.data)"
    (data, *_) = visit.page.evaluate(f"{lone}.filter((data) => data.latency_p50_ms_lone)")
    assert data["latency_p50_ms_lone"][1] == 4.5
    visit.close()


def test_with_the_broker_away_the_header_and_the_predict_page_say_so(tmp_path: Path, browser: Browser) -> None:
    with open_site(tmp_path, started=True) as site, served(site) as base:
        site.builder.model(site.builder.dataset(40), RUN)
        visit = Visit(browser, base)
        visit.go("/predict")
        _put_folder_in_place_of(tmp_path / "broker.db")
        expect(visit.page.locator(".link-state")).to_have_text("No broker")

        visit.page.reload()

        expect(visit.page.locator(".link-state")).to_have_text("No broker")
        expect(visit.page.locator("[data-error]").first).to_contain_text("the broker does not answer")
        assert visit.page.evaluate(BROKEN_PICTURES) == 0
        (tmp_path / "broker.db").rmdir()
        expect(visit.page.locator(".link-state")).to_have_text("Live")
        visit.close()


def _put_folder_in_place_of(file: Path) -> None:
    """Replaces a database by a folder, which nobody can open. The dashboard may make the file anew meanwhile."""
    while not file.is_dir():
        file.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            file.mkdir()


def test_what_belongs_together_stands_together(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base, PHONE)
    (sha256,) = site.store.children("datasets")
    visit.go(f"/datasets/{sha256}")
    boxes = [visit.page.locator(f"#f-{name}").bounding_box() for name in ("low", "high")]
    assert len({box["y"] for box in boxes if box}) == 1

    visit.go("/runs/run-000000000003")
    left = visit.page.locator("#state [data-show=eta]")
    expect(left).to_have_text("1 min 15 s left")
    assert left.evaluate("(e) => getComputedStyle(e, '::before').content") == '"· "'
    visit.close()


WATCH_STAGES = """() => new MutationObserver(() => {
  for (const stage of document.querySelectorAll(".uploads [data-show=stage]")) window.seen(stage.textContent);
}).observe(document.querySelector(".uploads"), { childList: true, subtree: true, characterData: true })"""


def test_several_archives_are_dropped_at_once_and_each_is_followed(site: Site, base: str, browser: Browser) -> None:
    visit = Visit(browser, base)
    visit.go("/datasets")
    stages: set[str] = set()

    def see(stage: str) -> None:
        stages.add(stage)

    visit.page.expose_function("seen", see)
    visit.page.evaluate(WATCH_STAGES)
    one, two = (zipped([("30_1_0.jpg", bytes(size * 1_000_000))]) for size in (3, 2))
    files = {"one.zip": one, "two.zip": two, "notes.txt": b"some notes"}
    drop(visit.page.locator("[data-upload]"), files)

    tasks = visit.page.locator(".uploads .task")
    expect(tasks).to_have_count(2)
    expect(visit.page.locator(".toast")).to_contain_text("other files were skipped")
    expect(tasks.locator("a")).to_have_count(2)
    assert any(stage.startswith("Sending · ") and stage.endswith(("of 3.0 MB", "of 2.0 MB")) for stage in stages)
    for task in tasks.all():
        run_id = task.get_attribute("data-run")
        for stage, words in (("ingesting", "Reading faces"), ("training", "Training")):
            progress = {"stage": stage, "done": 3, "total": 10, "rate": 50.0, "eta_s": 4}
            site.broker.emit("run.progress", {"run_id": run_id, "progress": progress})
            expect(task.locator("[data-show=stage]")).to_contain_text(words, timeout=2000)
            expect(task.locator("[data-show=share]")).to_have_text("30 %")
        error = {"code": "invalid_archive", "message": "found no zip, expected one"}
        site.broker.emit("run.rejected", {"run_id": run_id, "status": "rejected", "error": error})
        visit.page.evaluate(REFRESH)
        expect(task.locator("[data-show=stage]")).to_have_text("found no zip, expected one")
        site.builder.runs.update(str(run_id), state=RunState.REJECTED, error=error)
    visit.check()
    visit.close()

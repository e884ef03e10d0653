"""The whole story in a real browser, with the real services: from an empty system to a rolled-back model."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from shared.broker.base import Message
from shared.faces.synthetic import draw_sample
from shared.records.registry import Registry
from shared.store.files import FileStore
from tests.support.browser import DESK, PHONE, Visit
from tests.support.services import Installation, eventually

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
FACES = 90
PARAMS = {"epochs": "20", "batch_size": "16", "quantize": "false"}  # so many that some can be watched


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("story")
    draw_sample(folder / "faces.zip", FACES, 3, faults=True)
    extra = {"GENDERLINE_WORKERS": "1", "GENDERLINE_THREADS": "1"}
    installation = Installation(folder, f"sqlite:///{folder / 'broker.db'}", extra)
    try:
        for module in ("dashboard", "trainer", "inference"):
            installation.start(module, wait=module == "dashboard")
        yield installation
    finally:
        installation.close()


@pytest.fixture(scope="module")
def base(installation: Installation) -> str:
    return f"http://127.0.0.1:{installation.services[0].port}"


def watched_until_registered(visit: Visit) -> list[tuple[str, int]]:
    """Returns the (stage, points of the loss curve) that a run's page went through."""
    seen: list[tuple[str, int]] = []
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        state = visit.page.locator("#state .badge").inner_text()
        points = int(visit.page.locator("[data-series=loss]").get_attribute("data-points") or 0)
        if not seen or seen[-1] != (state, points):
            seen.append((state, points))
        if state in {"registered", "failed", "rejected"}:
            break
        visit.page.wait_for_timeout(100)
    return seen


def second_model(folder: Path) -> None:
    """Registers the first model once more, as the version that a second training would give."""
    store = FileStore(folder / "store")
    registry = Registry(store)
    version = registry.claim("run-copy")
    copy = folder / "model.onnx"
    copy.write_bytes(store.get(registry.model_key(1)))
    card = registry.card(1).changed(version=version)
    registry.register(card, "# gender 2\n", {"model.onnx": copy})


def test_from_an_empty_system_to_a_model_that_is_rolled_back(
    installation: Installation, base: str, browser: Browser
) -> None:
    # Told on a phone, where there is least room; at each stop the window is made as wide as a desk's, too.
    visit = Visit(browser, base, PHONE)
    page = visit.page
    page.on("dialog", lambda dialog: dialog.accept())  # every question is answered with yes
    visit.go("/")
    expect(page.get_by_text("Nothing here yet. Start with some faces.")).to_be_visible()
    visit.check_at(DESK)

    # A dataset goes up, and its training is watched.
    visit.go("/datasets")
    page.get_by_text("Training parameters").click()
    for name, value in PARAMS.items():
        field = page.locator(f"[data-param={name}]")
        field.select_option(value) if name == "quantize" else field.fill(value)
    page.locator("input[type=file]").set_input_files(installation.folder / "faces.zip")
    expect(page.locator(".uploads a")).to_be_visible()
    visit.check_at(DESK)
    page.locator(".uploads a").click()
    expect(page.locator("[data-series=loss]")).to_have_attribute("data-drawn", "yes")
    seen = watched_until_registered(visit)
    assert seen[-1][0] == "registered", seen
    assert len({points for _, points in seen if points}) >= 3, seen
    assert len({state for state, _ in seen}) >= 3, seen
    expect(page.locator("#matrix")).to_be_visible()
    visit.check_at(DESK)

    # What is in it, and what the model makes of it.
    page.get_by_role("link", name="Dataset", exact=True).click()
    expect(page.locator("[data-chart=genders]")).to_have_attribute("data-drawn", "yes")
    expect(page.locator("[data-chart=genders]")).to_contain_text("%")
    expect(page.get_by_text("Rejected files")).to_be_visible()
    expect(page.locator(".cell[data-face]").first).to_be_visible()
    visit.check_at(DESK)
    page.get_by_text("Filter", exact=True).click()
    page.locator("#facet-result-wrong").click()
    page.wait_for_url("**result=wrong**")
    expect(page.locator(".cell[data-face]").first).to_have_class(re.compile("wrong"))
    assert 0 < int(page.locator(".cell").first.get_attribute("aria-setsize") or 0) < FACES
    expect(page.locator(".cell[data-face]:not(.wrong)")).to_have_count(0)
    visit.check_at(DESK)

    # One of the wrong ones, predicted now, its label beside it, and where the network looked.
    page.locator(".cell").first.click()
    page.get_by_role("link", name="Open", exact=True).click()
    label = page.locator("#label .big").inner_text()
    visit.check_at(DESK)
    page.get_by_role("link", name="Predict it now").click()
    expect(page.locator("[data-true]").first).to_contain_text(label)
    expect(page.locator("[data-took]").first).to_contain_text("Model 1,")
    assert (page.locator("[data-predicted]").first.inner_text()).startswith({"male": "female", "female": "male"}[label])
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("canvas").first).to_be_visible()
    visit.check_at(DESK)

    # A job, and its table.
    visit.go("/jobs")
    visit.check_at(DESK)
    page.locator("input[type=file]").set_input_files(installation.folder / "faces.zip")
    page.locator(".uploads a").click()
    expect(page.locator("#state .badge")).to_have_text("finished", timeout=60_000)
    expect(page.locator("#results .thumb").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    with download.value.path().open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with zipfile.ZipFile(installation.folder / "faces.zip") as archive:
        assert [row["name"] for row in rows] == archive.namelist()
    visit.check_at(DESK)

    # Another version, promoted for a reason and taken back for another.
    second_model(installation.folder)
    visit.go("/models/2")
    visit.check_at(DESK)
    page.get_by_label("Reason").fill("newer")
    page.get_by_role("button", name="Promote model 2").click()
    expect(page.get_by_text("Model 2 is the champion now.")).to_be_visible()
    expect(page.locator("#serving td", has_text="2").first).to_be_visible(timeout=30_000)
    page.get_by_label("Reason").fill("not better")
    page.get_by_role("button", name="Roll back to 1").click()
    expect(page.get_by_text("model 1 is the champion again")).to_be_visible()
    expect(page.locator("#promotions")).to_contain_text("not better")
    visit.check_at(DESK)

    # A message that nobody can process: looked at, and sent back.
    with installation.broker() as broker:
        broker.publish(broker.topology.predictions, Message(b'{"schema": 1}', "application/json"))
        eventually(broker.dead_letters, 20, "the message is a dead letter")
    visit.go("/dead")
    expect(page.get_by_text("unsupported content type")).to_be_visible()
    visit.check_at(DESK)
    page.locator("[name=dead_id]").check()
    page.get_by_role("button", name="Retry selected").click()
    expect(page.get_by_text("1 re-queued.")).to_be_visible()
    visit.check_at(DESK)

    # And back: the overview and the lists, which now have something to show.
    visit.go("/")
    expect(page.locator("#champion .big")).to_contain_text("%")
    expect(page.locator("#newest tbody tr").first).to_be_visible()
    visit.check_at(DESK)
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Runs").click()
    expect(page.locator("#runs tbody tr").first).to_be_visible()
    visit.check_at(DESK)
    visit.close()


def test_a_page_recovers_by_itself_after_the_dashboard_was_away(
    installation: Installation, base: str, browser: Browser
) -> None:
    visits = [Visit(browser, base, size) for size in (DESK, PHONE)]
    for visit in visits:
        visit.go("/")
    old = installation.services[0]
    assert old.stop() == 0
    for visit in visits:
        expect(visit.page.locator(".link-state")).to_contain_text("Reconnecting")

    environment = installation.env(GENDERLINE_PORT=str(old.port))
    with subprocess.Popen([sys.executable, "-m", "dashboard"], env=environment) as process:
        try:
            for visit in visits:
                expect(visit.page.locator(".link-state")).to_contain_text("Live", timeout=30_000)
        finally:
            process.terminate()
    for visit in visits:
        visit.close()

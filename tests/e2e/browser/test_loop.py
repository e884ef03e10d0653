"""See, fix, train again: wrong labels are found, corrected by keyboard and trained on, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from shared.client import Client
from tests.support.browser import Visit
from tests.support.builders.drawn import write_drawn_faces
from tests.support.services import Installation

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
FACES = 200
FLIPPED = 0.05
PARAMS = {
    "network": "small",
    "init": "scratch",
    "epochs": "6",
    "batch_size": "8",
    "averaging": "0",  # over so few steps
    "quantize": "false",
}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("loop")
    installation = Installation(folder, f"sqlite:///{folder / 'broker.db'}", {"GENDERLINE_THREADS": "1"})
    try:
        for module in ("dashboard", "trainer"):
            installation.start(module, wait=module == "dashboard")
        yield installation
    finally:
        installation.close()


def fill_parameters(page: Page) -> None:
    for name, value in PARAMS.items():
        field = page.locator(f"#train [data-param={name}]")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)


def until_registered(page: Page) -> None:
    expect(page.locator("#state .badge")).to_have_text("registered", timeout=170_000)


def accuracy_on_truth(client: Client, run_id: str, truth: dict[str, str]) -> float:
    """Returns a model's accuracy on the test faces, by their true labels."""
    run = client.runs.get(run_id)
    lines = client.store.get(f"runs/{run_id}/predictions.csv").decode().splitlines()[1:]
    rows = client.store.get(f"datasets/{run.dataset}/faces.csv").decode().splitlines()[1:]
    right = []
    for line, row in zip(lines, rows, strict=True):
        _, name, _, gender, _, split, *_ = row.split(",")
        if split == "test":
            true = truth.get(name, ("male", "female")[int(gender)])
            right.append((float(line.partition(",")[2]) >= 0.5) == (true == "female"))
    return sum(right) / len(right)


def test_wrong_labels_are_found_corrected_by_keyboard_and_trained_on(
    installation: Installation, browser: Browser, tmp_path: Path
) -> None:
    truth = write_drawn_faces(tmp_path / "faces.zip", FACES, FLIPPED)
    with installation.client() as client:
        visit = Visit(browser, f"http://127.0.0.1:{installation.services[0].port}")
        page = visit.page

        # Look first.
        visit.go("/datasets")
        page.get_by_label("Look at the faces first, train later").check()
        page.locator("input[type=file]").set_input_files(tmp_path / "faces.zip")
        expect(page.locator(".uploads [data-show=share]")).to_have_text("ingested", timeout=60_000)
        (look,) = client.runs.all().records
        visit.go(f"/datasets/{look.dataset}")
        expect(page.get_by_text("was read and not trained on yet")).to_be_visible()
        expect(page.locator(".cell[data-face]").first).to_be_visible()
        visit.check()

        # Train.
        page.get_by_role("link", name="Train", exact=True).click()
        fill_parameters(page)
        page.get_by_role("button", name="Train", exact=True).click()
        until_registered(page)
        first = page.url.rpartition("/")[2]

        # Nine of ten wrong labels are among the first 7 % of the suspects.
        visit.go(f"/datasets/{look.dataset}?sort=suspects")
        expect(page.locator(".cell[data-face]").first).to_be_visible()
        most = round(0.07 * FACES)
        names = [page.locator(f"#cell-{position}").get_attribute("title") or "" for position in range(most)]
        assert sum(name in truth for name in names) >= 0.9 * len(truth), names

        # Each is corrected by one key, as a person presses it; the others are confirmed, and one is undone.
        page.locator("#window").focus()
        started = time.monotonic()
        for name in names:
            expect(page.locator("#inspector [data-name]")).to_have_text(name)
            labelled = name.split("_")[1] == "1"
            female = truth[name] == "female" if name in truth else labelled
            page.keyboard.press("f" if female else "m")
        assert (time.monotonic() - started) / most < 300 / 200  # 200 labels in five minutes
        page.keyboard.press("x")
        expect(page.locator("#said")).to_contain_text("excluded")
        page.keyboard.press("u")
        expect(page.locator("#said")).to_contain_text("undone")
        found = sum(name in truth for name in names)
        expect(page.locator("#facet-edited-corrected .num")).to_have_text(str(found))
        expect(page.locator("#corrected")).to_contain_text(f"{most} labels set, 0 faces excluded")
        corrections = client.edits.history(str(look.dataset)).corrections()
        assert len(corrections.male) + len(corrections.female) == most
        visit.check()

        # What the address says is what is seen: the corrected ones, and the face that was looked at.
        page.locator("#facet-edited-corrected").click()
        page.wait_for_url("**edited=corrected**")
        expect(page.locator(".cell[data-face]")).to_have_count(found)
        expect(page.locator(".cell.corrected")).to_have_count(found)
        page.keyboard.press("Tab")
        page.reload()
        expect(page.locator(".cell.corrected")).to_have_count(found)

        # Trained again on the corrected set, and compared.
        page.get_by_role("button", name="Train on the corrected set").click()
        until_registered(page)
        second = page.url.partition("?")[0].rpartition("/")[2]
        record = client.runs.get(second)
        assert record.edits == corrections.sha256
        assert record.params == client.runs.get(first).params
        assert accuracy_on_truth(client, second, truth) >= accuracy_on_truth(client, first, truth) - 0.05
        page.get_by_role("link", name="Compare with model 1").click()
        expect(page.get_by_role("heading", name="With old and new labels")).to_be_visible()
        expect(page.locator("#agreement")).to_be_visible()
        visit.check()
        visit.close()

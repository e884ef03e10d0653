"""Ten layouts of archives, as people have them: dropped in the browser together, each is trained to the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from shared.client import Client
from shared.records.runs import Run, RunState
from tests.support.browser import Visit, drop
from tests.support.builders.layouts import LAYOUTS
from tests.support.services import Installation, eventually

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
QUICK = {"network": "small", "epochs": "1", "quantize": "false", "init": "scratch"}
EVERYTHING = {"gender", "age", "ethnicity", "intersection"}
KNOWN = {
    "UTKFace": EVERYTHING,
    "UTKFace.tar.gz": EVERYTHING,
    "FairFace": EVERYTHING,
    "Hugging Face imagefolder": EVERYTHING,
    "Adience": {"gender", "age"},
}
"""What the evaluation can be divided by; of the other layouts only the gender is known."""


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}")
    for module in ("dashboard", "trainer"):
        installation.start(module, wait=module == "dashboard")
    yield installation
    installation.close()


def ended_runs(client: Client) -> list[Run] | None:
    runs = [client.runs.get(run_id) for run_id in client.store.children("runs")]
    return runs if len(runs) == len(LAYOUTS) and all(run.state.is_final for run in runs) else None


def test_ten_layouts_are_dropped_together_and_each_is_trained(installation: Installation, browser: Browser) -> None:
    pytest.importorskip("pillow_heif")
    visit = Visit(browser, f"http://127.0.0.1:{installation.services[0].port}")
    visit.go("/datasets")
    visit.page.get_by_text("Training parameters").click()
    for name, value in QUICK.items():
        field = visit.page.locator(f"[data-param={name}]")
        field.fill(value) if name == "epochs" else field.select_option(value)
    archives = {layout: make() for layout, make in LAYOUTS.items()}
    dropped = {layout if "." in layout else f"{layout}.zip": archive for layout, archive in archives.items()}
    drop(visit.page.locator("[data-upload]"), dropped)
    expect(visit.page.locator(".uploads .task a")).to_have_count(len(LAYOUTS), timeout=60_000)

    with installation.client() as client:
        ended = eventually(lambda: ended_runs(client), 200, f"the runs end\n{installation.logs()}")
        by_dataset = {run.dataset: run for run in ended}
        for layout, archive in archives.items():
            run = by_dataset[hashlib.sha256(archive).hexdigest()]
            assert run.state is RunState.REGISTERED, f"{layout}: {run.error}"
            evaluation = client.store.get_json(f"runs/{run.run_id}/evaluation.json")
            assert {group["kind"] for group in evaluation["groups"]} == KNOWN.get(layout, {"gender"}), layout
            assert run.labels is not None  # what was recognised is told
            assert run.labels.text.startswith("labels from "), run.labels.text
    visit.close()

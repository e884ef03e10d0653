"""Ten layouts of archives, as people have them: one command each, and the trainer reads the faces and their labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from shared.cli import main
from tests.support.builders.layouts import LAYOUTS
from tests.support.services import Installation

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_by_one_command(with_trainer: Installation, tmp_path: Path, layout: str) -> None:
    if "HEIC" in layout:
        pytest.importorskip("pillow_heif")
    path = tmp_path / (layout if "." in layout else f"{layout}.zip")
    path.write_bytes(LAYOUTS[layout]())

    done = CliRunner().invoke(main, ["train", str(path), "--look", "--json"], env=with_trainer.env())

    assert done.exit_code == 0, done.output
    reply = json.loads(done.stdout)
    assert reply["status"] == "ingested"
    with with_trainer.client() as client:
        run = client.runs.get(reply["run_id"])
        assert run.dataset is not None
        summary = client.find_summary(run.dataset)
    assert run.labels is not None
    assert run.labels.labelled > 0
    assert summary is not None
    assert min(summary.genders.values()) >= 3
    assert summary.faces == sum(summary.genders.values()) >= 20

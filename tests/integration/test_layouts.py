"""Ten layouts, as people have them, each trained by one submission without a manual step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from shared.params import TrainingParams
from shared.records.runs import Runs, RunState
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from shared.store.files import FileStore
from shared.telemetry.metrics import TrainerMetrics
from tests.layouts import LAYOUTS
from trainer.pipeline import Pipeline
from trainer.run_monitor import Monitor


# tests/unit/trainer/data/test_labelling.py recognizes and decodes all ten. Here are trained: one with all labels,
# one with the gender alone, and one with some ages missing.
@pytest.mark.parametrize("layout", ["UTKFace.tar.gz", "the same in Spanish", "Adience"])
@pytest.mark.filterwarnings("ignore")
def test_a_layout_is_trained_evaluated_and_registered(layout: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    store = FileStore(tmp_path / "store")
    archive = tmp_path / "archive"
    archive.write_bytes(LAYOUTS[layout]())
    sha256 = sha256_of(archive)
    store.put_file(f"datasets/{sha256}/archive.zip", archive)
    params = TrainingParams(network="small", epochs=1, quantize=False)
    Runs(store).create("run-1", message_id="m", name=layout, params=params, state=RunState.ACCEPTED)
    pipeline = Pipeline(store, Settings(), TrainerMetrics(CollectorRegistry()), torch.device("cpu"))
    card = pipeline.run("run-1", layout, sha256, params, Monitor())
    assert card.version == 1
    kinds = {group["kind"] for group in store.get_json("runs/run-1/evaluation.json")["groups"]}
    known = {"UTKFace.tar.gz": {"gender", "age", "ethnicity", "intersection"}, "Adience": {"gender", "age"}}
    assert kinds == known.get(layout, {"gender"})

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from shared.faces.synthetic import draw_sample
from shared.params import TrainingParams
from shared.records.registry import Registry
from shared.records.runs import Runs, RunState
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from shared.store.files import FileStore
from shared.telemetry.metrics import TrainerMetrics
from trainer.pipeline import Pipeline, Steps

PARAMS = TrainingParams(network="small", epochs=1, quantize=False)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def test_a_run_that_is_registered_is_not_trained_again(store: FileStore, tmp_path: Path) -> None:
    """As after a crash between the registry and the run's record."""
    draw_sample(tmp_path / "faces.zip", 40, seed=7)
    sha256 = sha256_of(tmp_path / "faces.zip")
    store.put_file(f"datasets/{sha256}/archive.zip", Path(shutil.copy(tmp_path / "faces.zip", tmp_path / "copy.zip")))
    Runs(store).create("run-1", message_id="1", name="faces", params=PARAMS, state=RunState.ACCEPTED)
    pipeline = Pipeline(store, Settings(), TrainerMetrics(CollectorRegistry()), torch.device("cpu"))
    states: list[str] = []
    steps = Steps(
        on_state=states.append,
        on_progress=lambda _: None,
        on_epoch=lambda _: None,
        should_yield=lambda: False,
        checkpoint=lambda: None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        card = pipeline.run("run-1", "faces", sha256, PARAMS, steps)
    assert states == [RunState.INGESTING, RunState.TRAINING, RunState.EVALUATING, RunState.EXPORTING]
    written = store.get(Registry.model_key(card.version))
    assert pipeline.run("run-1", "faces", sha256, PARAMS, steps) == card
    assert len(states) == 4
    assert Registry(store).versions() == [card.version]
    assert store.get(Registry.model_key(card.version)) == written

import io
import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.params import TrainingParams
from trainer.training.checkpoint import FORMAT, Checkpoint, CheckpointError, dump, load
from trainer.training.model import NETWORKS, build_network, measure_cost


def checkpoint() -> Checkpoint:
    weights = {"layer.weight": torch.rand(100, 100)}
    return Checkpoint(
        recipe=TrainingParams().as_dict(),
        dataset_sha256="a" * 64,
        epoch=3,
        step=17,
        model=weights,
        optimizer={"state": {0: {"exp_avg": torch.rand(4)}}, "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999)}]},
        average={},
        sums=torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64),
        epoch_s=1.25,
        spent_s=60.5,
        history=[{"epoch": 1, "val_loss": 0.5}],
        best_epoch=2,
        best_loss=0.4,
        best_network={"layer.weight": torch.rand(100, 100)},
    )


def test_a_checkpoint_comes_back_as_it_was() -> None:
    before = checkpoint()
    after = load(dump(before))
    for name in ("model", "best_network"):
        for key, value in getattr(before, name).items():
            assert torch.equal(getattr(after, name)[key], value)
    assert torch.equal(after.sums, before.sums)
    assert after.sums.dtype == torch.float64
    assert torch.equal(after.optimizer["state"][0]["exp_avg"], before.optimizer["state"][0]["exp_avg"])
    plain = {"recipe", "dataset_sha256", "epoch", "step", "epoch_s", "spent_s", "history", "best_epoch", "best_loss"}
    assert {name: asdict(after)[name] for name in plain} == {name: asdict(before)[name] for name in plain}


def test_one_wrong_byte_in_the_weights_is_noticed() -> None:
    before = checkpoint()
    data = bytearray(dump(before))
    data[data.find(before.model["layer.weight"].numpy().tobytes()) + 1000] ^= 0x01
    with pytest.raises(CheckpointError, match="damaged"):
        load(bytes(data))


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_a_truncated_checkpoint_is_refused(kept: int) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(dump(checkpoint())[:kept])


class Intruder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_executes_from_a_checkpoint(tmp_path: Path) -> None:
    target = tmp_path / "intruded"
    hostile = replace(checkpoint(), recipe={"network": Intruder(target)})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(dump(hostile))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(pickle.dumps(Intruder(target)))
    assert not target.exists()


@pytest.mark.parametrize("content", [[1, 2], {"format": 99}, {"epoch": 1}])
def test_another_format_is_refused(content: object) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with pytest.raises(CheckpointError, match=f"not of format {FORMAT}"):
        load(buffer.getvalue())


def test_the_format_changes_with_the_layers_of_a_network() -> None:
    parameters = {name: measure_cost(build_network(name, dropout=0.4)).parameters for name in NETWORKS}
    pinned = {"small": 469_521, "compact": 1_242_497, "large": 3_814_049, "reference": 2_747_649}
    # Fails where layers change: give the format its next number, so that runs of before start anew, and pin these.
    assert (FORMAT, parameters) == (4, pinned)


def test_missing_parts_are_named() -> None:
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "epoch": 1}, buffer)
    with pytest.raises(CheckpointError, match=r"holds \['epoch'\]; expected .*best_epoch"):
        load(buffer.getvalue())


def test_a_checkpoint_of_this_run_is_accepted() -> None:
    checkpoint().require(TrainingParams().as_dict(), "a" * 64)


def test_another_recipe_is_refused_by_name() -> None:
    wanted = TrainingParams().as_dict() | {"network": "other"}
    with pytest.raises(CheckpointError, match="network: found 'auto', expected 'other'"):
        checkpoint().require(wanted, "a" * 64)


def test_another_dataset_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"another dataset: found a{64}, expected b{64}"):
        checkpoint().require(TrainingParams().as_dict(), "b" * 64)

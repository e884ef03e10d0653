"""A training run's whole state as bytes, so that another process can continue exactly there."""

from __future__ import annotations

import dataclasses
import io
import pickle
import zipfile
from dataclasses import dataclass
from typing import Any, Final

import torch

from shared.errors import GenderlineError

FORMAT: Final = 4
"""Changes with the content or meaning of a checkpoint, the layers of a network included."""


class CheckpointError(GenderlineError):
    """The checkpoint cannot be used; training has to start anew."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        recipe: the training parameters, from `Recipe.as_dict`.
        dataset_sha256: names the data.
        epoch: the epoch under way, from 1; one more than the last where training is over.
        step: steps done in that epoch; all of them where only its validation is left.
        model: the state of the `MultiTaskLoss`: the network and the heads of its auxiliary tasks.
        optimizer: its state.
        average: the moving average of the network's weights; empty where the recipe keeps none.
        sums: float64 (3,): summed loss, correct and seen faces of the epoch under way.
        epoch_s: seconds that epoch has taken so far.
        spent_s: seconds the run has taken so far, over all processes.
        history: a row for each finished epoch, as JSON types.
        best_epoch: the epoch whose weights are kept so far; 0 before the first has ended.
        best_loss: that loss.
        best_network: the weights then.
    """

    recipe: dict[str, Any]
    dataset_sha256: str
    epoch: int
    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    average: dict[str, torch.Tensor]
    sums: torch.Tensor
    epoch_s: float
    spent_s: float
    history: list[dict[str, Any]]
    best_epoch: int
    best_loss: float
    best_network: dict[str, torch.Tensor]

    def require(self, recipe: dict[str, Any], dataset_sha256: str) -> None:
        """Checks that the checkpoint belongs to this run.

        Raises:
            CheckpointError: it was made by another recipe (for another network, say) or from other data.
        """
        different = [
            f"{name}: found {self.recipe.get(name)!r}, expected {recipe.get(name)!r}"
            for name in sorted(self.recipe.keys() | recipe.keys())
            if self.recipe.get(name) != recipe.get(name)
        ]
        if different:
            raise CheckpointError(f"the checkpoint has another recipe: {'; '.join(different)}")
        if self.dataset_sha256 != dataset_sha256:
            raise CheckpointError(
                f"the checkpoint is of another dataset: found {self.dataset_sha256}, expected {dataset_sha256}"
            )


def dump(checkpoint: Checkpoint) -> bytes:
    """Returns the checkpoint as bytes that `load` reads."""
    return dump_state(FORMAT, {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)})


def load(data: bytes) -> Checkpoint:
    """Reads a checkpoint onto the CPU; executes nothing from it.

    Raises:
        CheckpointError: as `load_state` says.
    """
    state = load_state(FORMAT, data)
    expected = {field.name for field in dataclasses.fields(Checkpoint)}
    if state.keys() != expected:
        raise CheckpointError(f"the checkpoint holds {sorted(state)}; expected {sorted(expected)}")
    return Checkpoint(**state)


def dump_state(number: int, state: dict[str, Any]) -> bytes:
    """Returns tensors and plain values as bytes that `load_state` reads.

    Args:
        number: of their format.
        state: by name.
    """
    buffer = io.BytesIO()
    torch.save({"format": number, **state}, buffer)
    return buffer.getvalue()


def load_state(number: int, data: bytes) -> dict[str, Any]:
    """Reads what `dump_state` wrote of a format, onto the CPU; executes nothing from it.

    Raises:
        CheckpointError: the bytes are damaged, not a checkpoint, hold more than tensors and plain values, or are of
            another format.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()  # torch itself does not compare the checksums that it writes
        if damaged is not None:
            raise CheckpointError(f"the checkpoint is damaged: the checksum of {damaged!r} is wrong")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise CheckpointError(f"the checkpoint of {len(data)} bytes cannot be read: {error}") from None
    if not isinstance(state, dict) or state.pop("format", None) != number:
        raise CheckpointError(f"the checkpoint is not of format {number}, the one this release reads")
    return state

"""The starter: weights that have seen faces before, from which a network learns more of few faces than from nothing.

`make pretrain` makes its files in `trainer/weights/`: the weights in half precision, a card that says where they come
from, and, for `trainer.data.seen`, the perceptual hashes of the faces that they were trained on.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shared.params import Network
from trainer.data.dataset import Dataset
from trainer.data.near_duplicates import dhash_all
from trainer.data.seen import find_seen
from trainer.training.device import DeviceFaces
from trainer.training.model import build_network

Weights = dict[str, torch.Tensor]
FOLDER: Final = Path(__file__).parents[1] / "weights"
STARTER_NETWORK: Final[Network] = "compact"
_TRIED_FACES: Final = 1_000
_BATCH: Final = 250
_SURE: Final = 2.0
"""Standard errors by which the starter must be better than `_LEAST_ACCURACY`."""
_LEAST_ACCURACY: Final = 0.65
"""On photos of faces the starter reaches 85 to 95 %; on drawings some 60 %, where starting from it costs accuracy."""


@dataclass(frozen=True, slots=True)
class Starter:
    """Weights to begin from.

    Attributes:
        weights: the state of the network that the card names, float32, without the heads of auxiliary tasks.
        card: where it comes from: name, data, licence, recipe and figures.
    """

    weights: Weights
    card: dict[str, Any]


@functools.cache
def load_starter(folder: Path = FOLDER) -> Starter:
    """Reads the starter; executes nothing from its files."""
    card = json.loads((folder / "starter.json").read_text(encoding="utf-8"))
    with (folder / "starter.npz").open("rb") as file:
        return Starter(load_weights(file), card)


def load_weights(file: BinaryIO) -> Weights:
    """Reads what `save_weights` wrote; executes nothing from it.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: it is something else.
    """
    with np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(_widen(arrays[name])) for name in arrays.files}


def save_weights(weights: Weights, path: Path) -> None:
    """Writes weights in half precision."""
    halves = {name: _narrow(value.numpy()) for name, value in weights.items()}
    np.savez(path, allow_pickle=False, **halves)


def save_starter(starter: Starter, folder: Path = FOLDER) -> None:
    """Writes the two files that `load_starter` reads."""
    folder.mkdir(exist_ok=True)
    save_weights(starter.weights, folder / "starter.npz")
    (folder / "starter.json").write_text(json.dumps(starter.card, indent=2) + "\n", encoding="utf-8")


def starter_helps(dataset: Dataset, device: torch.device) -> bool:
    """Returns whether the starter, as it is, tells the genders of the training faces apart well.

    It does on photos of faces of any source. It does not on drawings, or where the labels mean something else: there a
    network learns better from nothing. Where it has seen faces of the held-out parts, which `trainer.data.seen` leaves
    there if they are many, it does not either: every figure would lie.
    """
    if find_seen(dhash_all(dataset.faces, dataset.held_out)).any():
        return False
    part = dataset.part("train")
    tried = part[np.unique(np.linspace(0, len(part) - 1, _TRIED_FACES).round().astype(np.intp))]
    starter = load_starter()
    network = build_network(STARTER_NETWORK, dropout=0.0).to(device)
    network.load_state_dict(starter.weights)
    network.eval()
    source = DeviceFaces(dataset.faces, device)
    chunks = np.array_split(tried, -(-len(tried) // _BATCH))
    with torch.inference_mode():
        logits = torch.cat([network(source.take(at).float().div_(255)) for at in chunks]).cpu().numpy()
    correct = (logits >= 0) == (dataset.labels[tried] > 0)
    balanced, variance = 0.0, 0.0
    for gender in (0, 1):
        of_gender = correct[dataset.labels[tried] == gender]
        if not len(of_gender):
            return False
        balanced += of_gender.mean() / 2
        smoothed = (of_gender.sum() + 1) / (len(of_gender) + 2)  # so that a handful of faces is never certain
        variance += smoothed * (1 - smoothed) / (4 * len(of_gender))
    return bool(balanced - _SURE * np.sqrt(variance) > _LEAST_ACCURACY)


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float16) if values.dtype == np.float32 else values


def _widen(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float32) if values.dtype == np.float16 else values

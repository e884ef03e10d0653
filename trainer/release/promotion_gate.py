"""The gate: whether a new model takes the champion's place, decided on faces that neither has learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.records.dataset import FACES_NPY
from shared.records.registry import Registry
from shared.store.base import Store
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.near_duplicates import dhash, near_duplicates
from trainer.release.export import predict_onnx

MIN_FACES: Final = 20
"""Fewer that both models see for the first time do not tell which one is better."""
_CHUNK: Final = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says.

    Attributes:
        passed: whether the new model is to be promoted.
        reason: why, in a sentence.
        champion: the version that it was compared to; None where there is none.
    """

    passed: bool
    reason: str
    champion: int | None


def judge(store: Store, version: int) -> Verdict:
    """Compares a new model with the champion on the held-out faces of the new one's dataset.

    Where the champion comes from other data, some of these faces may be among those that it was trained on or chosen
    by: a dataset that has grown since is split anew. It knows them by heart, so they are left out, and so is what looks
    like them.

    Args:
        store: where models and datasets lie.
        version: a registered version.
    """
    registry = Registry(store)
    champion = registry.aliases().champion
    if champion is None:
        return Verdict(True, "the first model", None)
    if champion == version:
        return Verdict(True, "it is the champion already", champion)
    card, their_card = (registry.card(number) for number in (version, champion))
    with (
        open_dataset(store, card.dataset.sha256) as dataset,
        store.local(Registry.model_key(version)) as model,
        store.local(Registry.model_key(champion)) as their_model,
    ):
        held_out = dataset.part("test")
        fair = held_out[~_learned(store, their_card.dataset.sha256, dataset, held_out)]
        left_out = len(held_out) - len(fair)
        if left_out and len(fair) < MIN_FACES:
            return Verdict(
                False,
                f"found {len(fair)} of {len(held_out)} held-out faces of {card.dataset.name} that version {champion} "
                f"has not learned from, expected at least {MIN_FACES} to compare on",
                champion,
            )
        labels = dataset.labels[fair] == 1
        ours, theirs = (
            float(np.mean((predict_onnx(path, dataset.faces, fair) >= 0.5) == labels)) for path in (model, their_model)
        )
    those = f"the same {len(fair)} held-out faces of {card.dataset.name}"
    if left_out:
        those += f" that version {champion} has not learned from"
    return Verdict(
        ours > theirs, f"accuracy {ours:.3f} against {theirs:.3f} of version {champion}, on {those}", champion
    )


def _learned(store: Store, sha256: str, dataset: Dataset, held_out: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Returns which of the held-out faces look like one that trained or validated a model of another dataset.

    Args:
        store: where datasets lie.
        sha256: names the other dataset; one that is no longer there, or is the same, has learned from none.
        dataset: of the held-out faces.
        held_out: their indices, (N,).

    Returns:
        bool (N,).
    """
    none = np.zeros(len(held_out), bool)
    if sha256 == dataset.sha256 or not store.exists(f"datasets/{sha256}/{FACES_NPY}"):
        return none
    with open_dataset(store, sha256) as other:
        theirs = _looks(other.faces, np.concatenate([other.part("train"), other.part("validation")]))
    groups = near_duplicates(np.concatenate([_looks(dataset.faces, held_out), theirs]))
    return np.isin(groups[: len(held_out)], groups[len(held_out) :])


def _looks(faces: NDArray[np.uint8], indices: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Returns `dhash` of those faces, uint64 (n, 2), with no more than a chunk of them in memory."""
    chunks = (indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK))
    return np.concatenate([np.zeros((0, 2), np.uint64), *(dhash(np.array(faces[chunk])) for chunk in chunks)])

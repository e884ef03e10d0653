"""Which faces a model knows: those that it, the weights that it began from, or its teacher have learned from."""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import NotFound
from shared.records.model_card import CardDataset, ModelCard
from shared.records.record import DamagedRecord
from shared.records.registry import Registry
from shared.store.base import Store
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.near_duplicates import dhash_all, near_duplicates
from trainer.data.seen import find_seen
from trainer.training.starter import load_starter

VERSION: Final = "gender:"
"""What `init` and a card's start begin with where they name a registered version."""
_LOG = logging.getLogger(__name__)


def find_learned(store: Store, card: ModelCard, dataset: Dataset, faces: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Returns which faces look like one that a registered model, its start or its teacher has learned from.

    The faces of a deleted dataset are unknown, and so are those behind weights from a file. A model is not held to have
    learned from the held-out faces of its own dataset: the same dataset is split in the same way.

    Args:
        store: holds models and datasets.
        card: of the model.
        dataset: of the faces.
        faces: their indices, (N,).

    Returns:
        bool (N,).
    """
    learned = np.zeros(len(faces), bool)
    if card.is_starter or (card.start is not None and card.start.name == load_starter().card["name"]):
        learned |= find_seen(dhash_all(dataset.faces, faces))
    if card.dataset.sha256 != dataset.sha256:
        learned |= _find_trained(store, card.dataset, dataset, faces)
    for name in ("" if card.start is None else card.start.name, card.params.get("distil", "none")):
        if not name.startswith(VERSION):
            continue
        try:
            before = Registry(store).card(int(name.removeprefix(VERSION)))
        except (NotFound, DamagedRecord) as error:
            _LOG.warning("what version %d learned from is not known: %s", card.version, error)
        else:
            learned |= find_learned(store, before, dataset, faces)
    return learned


def find_alike(
    known: Dataset, known_faces: NDArray[np.intp], dataset: Dataset, faces: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Returns which faces look like one of `known_faces`, which belong to another dataset: bool (N,)."""
    groups = near_duplicates(np.concatenate([dhash_all(dataset.faces, faces), dhash_all(known.faces, known_faces)]))
    return np.isin(groups[: len(faces)], groups[len(faces) :])


def _find_trained(
    store: Store, trained_on: CardDataset, dataset: Dataset, faces: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Returns which faces look like one that trains or validates in another dataset: bool (N,)."""
    try:
        with open_dataset(store, trained_on.sha256, trained_on.edits) as other:
            known = np.concatenate([other.part("train"), other.part("validation")])
            return find_alike(other, known, dataset, faces)
    except NotFound:
        return np.zeros(len(faces), bool)
    except DamagedRecord as error:
        _LOG.warning("%s; its faces are not looked for", error)
        return np.zeros(len(faces), bool)

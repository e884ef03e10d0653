"""Which faces a model knows: those that it, the weights that it began from, or its teacher have learned from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidDataset, NotFound
from shared.params import named_version
from shared.records.model_card import CardDataset, CardStart, ModelCard
from shared.records.record import DamagedRecord
from shared.records.registry import Registry
from shared.store.base import Store
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.near_duplicates import dhash_all, near_duplicates
from trainer.data.seen import find_seen, read_seen
from trainer.training.starter import load_starter

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a model has learned from beside its own dataset.

    Attributes:
        start: the weights that it began from; None where they were random.
        seen: uint64 (N, 2), the hashes of `dhash` of the faces that these have seen, where they came from a file.
        distil: its teacher, as in `TrainingParams`.
    """

    start: CardStart | None
    seen: NDArray[np.uint64] | None
    distil: str

    @classmethod
    def of(cls, store: Store, card: ModelCard) -> Origin:
        """Returns what a registered model has learned from beside its own dataset."""
        return cls(card.start, _seen_by_start(store, card.version), card.params.get("distil", "none"))


def find_learned(
    store: Store,
    card: ModelCard,
    dataset: Dataset,
    faces: NDArray[np.intp],
    check_cancelled: Callable[[], None] = lambda: None,
) -> NDArray[np.bool_]:
    """Returns which faces look like one that a registered model, its start or its teacher has learned from.

    The faces of a deleted dataset are unknown. A model is not held to have learned from the held-out faces of its own
    dataset: the same dataset is split in the same way. Where the dataset was submitted again and has other faces now,
    the model may have learned from any of them.

    Args:
        store: holds models and datasets.
        card: of the model.
        dataset: of the faces.
        faces: their indices, (N,).
        check_cancelled: called several times a second; what it raises ends the work.

    Returns:
        bool (N,).
    """
    return _Search(store, dataset, faces, check_cancelled).of_model(card)


def find_inherited(store: Store, origin: Origin, dataset: Dataset, faces: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Returns which faces look like one that a model knows from its start or its teacher, as `find_learned` does."""
    return _Search(store, dataset, faces).of_origin(origin)


def find_alike(
    known: Dataset, known_faces: NDArray[np.intp], dataset: Dataset, faces: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Returns which faces look like one of `known_faces`, which belong to another dataset: bool (N,)."""
    return _alike(dhash_all(known.faces, known_faces), dhash_all(dataset.faces, faces))


def open_other(stack: ExitStack, store: Store, trained_on: CardDataset) -> Dataset | None:
    """Opens the dataset of another model for as long as `stack` lasts; None where it was deleted or is damaged.

    Where its edits are gone, for it was deleted and submitted again, its labels are those of the archive.
    """
    try:
        return stack.enter_context(open_dataset(store, trained_on.sha256, trained_on.edits))
    except NotFound:
        return None
    except InvalidDataset as error:
        _LOG.warning("%s; the labels of the archive are taken", error)
        return open_other(stack, store, trained_on.changed(edits=None))
    except DamagedRecord as error:
        _LOG.warning("%s; its faces are left out", error)
        return None


def has_other_faces(trained_on: CardDataset, dataset: Dataset) -> bool:
    """Returns whether a model's own dataset was made again since, and its faces or their split are others now."""
    known = None not in (trained_on.table_sha256, dataset.table_sha256)
    return trained_on.sha256 == dataset.sha256 and known and trained_on.table_sha256 != dataset.table_sha256


class _Search:
    """Looks for faces among those that models have learned from.

    Args:
        store: holds models and datasets.
        dataset: of the faces.
        faces: their indices, (N,).
        check_cancelled: called several times a second.
    """

    def __init__(
        self,
        store: Store,
        dataset: Dataset,
        faces: NDArray[np.intp],
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._dataset = dataset
        self._check_cancelled = check_cancelled
        self._hashes = dhash_all(dataset.faces, faces, check_cancelled)

    def of_model(self, card: ModelCard) -> NDArray[np.bool_]:
        """Returns which faces a registered model knows: bool (N,)."""
        learned = self._trained(card.dataset) | self.of_origin(Origin.of(self._store, card))
        return learned | find_seen(self._hashes) if card.is_starter else learned

    def of_origin(self, origin: Origin) -> NDArray[np.bool_]:
        """Returns which faces a model knows from its start or its teacher: bool (N,)."""
        learned = np.zeros(len(self._hashes), bool)
        start = origin.start
        if origin.seen is not None or (start is not None and start.name == load_starter().card["name"]):
            learned |= find_seen(self._hashes, origin.seen)
        for name in ("" if start is None else start.name, origin.distil):
            if (version := named_version(name)) is None:
                continue
            try:
                before = Registry(self._store).card(version)
            except (NotFound, DamagedRecord) as error:
                _LOG.warning("not all that version %d has learned from is known: %s", version, error)
                if start is not None and name == start.name:
                    learned |= self._trained(CardDataset(sha256=start.archive_sha256, name=start.source, counts={}))
            else:
                learned |= self.of_model(before)
        return learned

    def _trained(self, trained_on: CardDataset) -> NDArray[np.bool_]:
        """Returns which faces look like one that trains or validates in another dataset: bool (N,)."""
        if has_other_faces(trained_on, self._dataset):
            return np.ones(len(self._hashes), bool)
        with ExitStack() as stack:
            other = None
            if trained_on.sha256 != self._dataset.sha256:
                other = open_other(stack, self._store, trained_on)
            if other is None:
                return np.zeros(len(self._hashes), bool)
            known = np.concatenate([other.part("train"), other.part("validation")])
            if has_other_faces(trained_on, other):
                known = np.arange(len(other.rows))
            hashes = dhash_all(other.faces, known, self._check_cancelled)
            return _alike(hashes, self._hashes, self._check_cancelled)


def _alike(
    known: NDArray[np.uint64], hashes: NDArray[np.uint64], check_cancelled: Callable[[], None] = lambda: None
) -> NDArray[np.bool_]:
    """Returns which hashes are in a group with one of `known`: bool (N,)."""
    groups = near_duplicates(np.concatenate([hashes, known]), check_cancelled)
    return np.isin(groups[: len(hashes)], groups[len(hashes) :])


def _seen_by_start(store: Store, version: int) -> NDArray[np.uint64] | None:
    """Returns the hashes of the faces that a version's start has seen, where it came from a file."""
    key = Registry.start_seen_key(version)
    try:
        return read_seen(store.get(key))
    except NotFound:
        return None
    except ValueError as error:
        _LOG.warning("%s: what it holds is not known: %s", key, error)
        return None

"""A decoded dataset of the store, opened for training."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidDataset, NotFound
from shared.faces.labels import GENDERS
from shared.records.dataset import (
    FACES_CSV,
    FACES_NPY,
    NEAR_DUPLICATES_CSV,
    SPLITS,
    FaceRow,
    age_band,
    open_faces,
    read_near_duplicates_csv,
)
from shared.records.edits import Corrections, Edits
from shared.records.record import DamagedRecord
from shared.store.base import Store, sha256_of


@dataclass(frozen=True, slots=True)
class Targets:
    """What the labels say about N faces.

    Attributes:
        female: uint8 (N,), 1 where the label is female.
        age_bands: int8 (N,), indices into `AGE_BANDS`, or `UNKNOWN`.
        ethnicities: int8 (N,), indices into `ETHNICITIES`, or `UNKNOWN`.
    """

    female: NDArray[np.uint8]
    age_bands: NDArray[np.integer]
    ethnicities: NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A decoded dataset, opened.

    Attributes:
        sha256: of its archive.
        faces: uint8 (N, 128, 128), a read-only memory map.
        rows: a row a face, in the same order, with corrected labels.
        edits: the hash of the corrections; None where the labels are those of the archive.
        excluded: indices of faces that are in no part.
        alike: the number of its group of near-duplicates by the face's index, of those that look like another one.
        table_sha256: of its `faces.csv`.
    """

    sha256: str
    faces: NDArray[np.uint8]
    rows: list[FaceRow]
    edits: str | None = None
    excluded: frozenset[int] = frozenset()
    alike: Mapping[int, int] = field(default_factory=dict)
    table_sha256: str | None = None

    @property
    def targets(self) -> Targets:
        """What the labels say about the faces."""
        return Targets(
            female=self.labels,
            age_bands=np.array([age_band(row.age) for row in self.rows], np.int8),
            ethnicities=np.array([row.ethnicity for row in self.rows], np.int8),
        )

    @property
    def labels(self) -> NDArray[np.uint8]:
        """1 where the label is female: uint8 (N,)."""
        return np.array([row.gender for row in self.rows], np.uint8)

    def part(self, split: str) -> NDArray[np.intp]:
        """Returns the indices of the faces in a part of the split."""
        return np.flatnonzero([row.split == split and row.index not in self.excluded for row in self.rows])

    @property
    def held_out(self) -> NDArray[np.intp]:
        """The indices of the faces that no weights may have learned from: those of validation and test."""
        return np.concatenate([self.part("validation"), self.part("test")])


@contextmanager
def open_dataset(store: Store, sha256: str, edits: str | None = None) -> Iterator[Dataset]:
    """Opens a decoded dataset of the store; its faces may be used inside of the `with` block only.

    The split stays as it is, so that models from before and after an edit are compared on the same held-out faces.

    Args:
        store: where it lies.
        sha256: names it.
        edits: the hash of the corrections of its labels; None takes those of the archive.

    Raises:
        NotFound: there is no such dataset.
        DamagedRecord: its files are not what they should be.
        InvalidDataset: there are no such edits, or too few faces are left.
    """
    folder = f"datasets/{sha256}"
    with store.local(f"{folder}/{FACES_NPY}") as faces, store.local(f"{folder}/{FACES_CSV}") as table:
        images, rows = open_faces(faces, table, sha256)
        corrections = _find_corrections(store, sha256, edits)
        for gender, changed in enumerate((corrections.male, corrections.female)):
            for index in changed:
                rows[index].gender = gender
        excluded = frozenset(corrections.exclude)
        alike = _find_alike(store, sha256)
        dataset = Dataset(sha256, images, rows, edits, excluded, alike, sha256_of(table))
        if edits is not None:
            _require_both_genders(dataset)
        yield dataset


def _find_alike(store: Store, sha256: str) -> dict[int, int]:
    """Returns the groups of near-duplicates; none where the dataset is of a release that did not keep them."""
    key = f"datasets/{sha256}/{NEAR_DUPLICATES_CSV}"
    try:
        return read_near_duplicates_csv(io.StringIO(store.get(key).decode()))
    except NotFound:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRecord(key, repr(error)) from None


def _find_corrections(store: Store, sha256: str, edits: str | None) -> Corrections:
    if edits is None:
        return Corrections()
    try:
        return Edits(store).frozen(sha256, edits)
    except NotFound as error:
        raise InvalidDataset(f"{error}; expected those of one of its runs", code="uri_not_found") from None


def _require_both_genders(dataset: Dataset) -> None:
    for split in SPLITS:
        counts = np.bincount(dataset.labels[dataset.part(split)], minlength=len(GENDERS))
        if counts.min() == 0:
            missing = GENDERS[int(counts.argmin())]
            raise InvalidDataset(
                f"found no {missing} face in the {split} part once the edits are applied; expected both genders there",
                code="single_gender",
            )

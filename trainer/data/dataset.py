"""A decoded dataset of the store, opened for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.records.dataset import FACES_CSV, FACES_NPY, FaceRow, age_band, open_faces
from shared.store.base import Store


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
        rows: a row a face, in the same order.
    """

    sha256: str
    faces: NDArray[np.uint8]
    rows: list[FaceRow]

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
        return np.flatnonzero([row.split == split for row in self.rows])


@contextmanager
def open_dataset(store: Store, sha256: str) -> Iterator[Dataset]:
    """Opens a decoded dataset of the store; its faces may be used inside of the `with` block only.

    Raises:
        NotFound: there is none.
        DamagedRecord: its files are not what they should be.
    """
    folder = f"datasets/{sha256}"
    with store.local(f"{folder}/{FACES_NPY}") as faces, store.local(f"{folder}/{FACES_CSV}") as table:
        yield Dataset(sha256, *open_faces(faces, table, sha256))

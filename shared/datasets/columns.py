"""A decoded dataset as columns, with the labels of its archive or those that edits make."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import NotFound
from shared.records.dataset import (
    FACES_CSV,
    FACES_NPY,
    NEAR_DUPLICATES_CSV,
    SPLITS,
    DatasetSummary,
    open_faces,
    read_near_duplicates_csv,
)
from shared.records.edits import Corrections
from shared.store.base import Store

_LOG = logging.getLogger(__name__)

EDITED: Final = ("unedited", "corrected", "confirmed", "excluded")
"""What edits have made of a face: another label, its own label again, or none."""
EXCLUDED: Final = len(SPLITS)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A decoded dataset, as columns.

    Attributes:
        sha256: its id.
        summary: what it holds.
        names: of the archive's entries, by the face's index.
        age: int16 (N,), years, or `UNKNOWN`.
        gender: uint8 (N,), index into `shared.faces.labels.GENDERS`.
        ethnicity: int16 (N,), index into `shared.faces.labels.ETHNICITIES`, or `UNKNOWN`.
        split: uint8 (N,), index into `shared.records.dataset.SPLITS`, or `EXCLUDED` for a face that an edit left out.
        sizes: uint32 (N, 2), width and height of the original image in pixels.
        groups: int32 (N,), the number of the faces that look the same; -1 for a face that is like no other.
        edits: uint8 (N,), index into `EDITED`.
        corrections: the hash of the edits that are applied; None where the labels are those of the archive.
        faces: uint8 (N, 128, 128), luma, mapped from the file.
        held: keeps the file of `faces` there.
    """

    sha256: str
    summary: DatasetSummary
    names: list[str]
    age: NDArray[np.int16]
    gender: NDArray[np.uint8]
    ethnicity: NDArray[np.int16]
    split: NDArray[np.uint8]
    sizes: NDArray[np.uint32]
    groups: NDArray[np.int32]
    edits: NDArray[np.uint8]
    corrections: str | None
    faces: NDArray[np.uint8]
    held: contextlib.ExitStack = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)


def load_dataset(store: Store, sha256: str, summary: DatasetSummary) -> Dataset:
    """Returns a decoded dataset with the labels of its archive.

    Args:
        store: where it lies.
        sha256: the dataset.
        summary: what it holds.

    Raises:
        DamagedRecord: one of its files is not what it should be.
    """
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(store.local(f"datasets/{sha256}/{FACES_CSV}"))
        path = stack.enter_context(store.local(f"datasets/{sha256}/{FACES_NPY}"))
        faces, rows = open_faces(path, table, sha256)
        return Dataset(
            sha256,
            summary,
            [row.name for row in rows],
            np.array([row.age for row in rows], np.int16),
            np.array([row.gender for row in rows], np.uint8),
            np.array([row.ethnicity for row in rows], np.int16),
            np.array([SPLITS.index(row.split) for row in rows], np.uint8),
            np.array([(row.width, row.height) for row in rows], np.uint32).reshape(-1, 2),
            _load_groups(store, sha256, len(rows)),
            np.zeros(len(rows), np.uint8),
            None,
            faces,
            stack.pop_all(),
        )


def with_corrections(data: Dataset, corrections: Corrections) -> Dataset:
    """Returns a dataset with the labels that its edits make."""
    if corrections.is_empty:
        return data
    gender = corrections.apply(data.gender)
    edits, split = np.zeros(len(data), np.uint8), data.split.copy()
    relabelled = [*corrections.male, *corrections.female]
    edits[relabelled] = np.where(gender == data.gender, EDITED.index("confirmed"), EDITED.index("corrected"))[
        relabelled
    ]
    excluded = list(corrections.exclude)
    edits[excluded], split[excluded] = EDITED.index("excluded"), EXCLUDED
    return replace(data, gender=gender, split=split, edits=edits, corrections=corrections.sha256)


def _load_groups(store: Store, sha256: str, count: int) -> NDArray[np.int32]:
    """Returns the groups of faces that look the same; none where their file is damaged, as all else can be shown."""
    key = f"datasets/{sha256}/{NEAR_DUPLICATES_CSV}"
    groups = np.full(count, -1, np.int32)
    try:
        found = read_near_duplicates_csv(io.StringIO(store.get(key).decode(), newline=""))
        groups[list(found)] = list(found.values())
    except NotFound:
        pass  # of an older release
    except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        _LOG.warning("%s in the store is damaged, so no faces count as near-duplicates: %s", key, error)
    return groups

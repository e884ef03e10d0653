"""The labels of a dataset's faces as columns, with or without its edits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import NotFound
from shared.measures.groups import Labels
from shared.records.dataset import FACES_CSV, SPLITS, read_faces_csv
from shared.records.edits import Edits
from shared.store.base import Store

ALL_FACES: Final = "all"
"""Instead of the name of a split: all faces that no edit left out."""


@dataclass(frozen=True, slots=True)
class LabelledFaces:
    """A dataset's faces without their pixels.

    Attributes:
        names: of the archive's entries, by the face's index.
        labels: as corrected.
        split: (N,), index into `SPLITS`; -1 for a face that an edit left out.
    """

    names: list[str]
    labels: Labels
    split: NDArray[np.int8]

    def members(self, split: str) -> NDArray[np.bool_]:
        """Returns bool (N,): which faces are in a split, or in any."""
        numbers: dict[str, int] = {name: i for i, name in enumerate(SPLITS)}
        return np.asarray(self.split == numbers[split] if split in numbers else self.split >= 0)


def read_labelled_faces(store: Store, sha256: str, labels: str = "") -> LabelledFaces:
    """Returns a dataset's labels.

    Args:
        store: where it lies.
        sha256: the dataset.
        labels: the hash of the edits that make them, or `ARCHIVE_LABELS`; empty for those in force now.

    Raises:
        NotFound: there is no such dataset, it is not processed yet, or it has no such edits.
    """
    try:
        text = store.get(f"datasets/{sha256}/{FACES_CSV}").decode()
    except NotFound:
        raise NotFound(f"dataset {sha256[:12]} does not exist, or is not processed yet") from None
    rows = read_faces_csv(io.StringIO(text, newline=""))
    corrections = Edits(store).corrections(sha256, labels)
    gender = corrections.apply(np.array([row.gender for row in rows], np.uint8))
    split = np.array([SPLITS.index(row.split) for row in rows], np.int8)
    split[list(corrections.exclude)] = -1
    return LabelledFaces(
        [row.name for row in rows],
        Labels(gender, np.array([row.ethnicity for row in rows]), np.array([row.age for row in rows])),
        split,
    )

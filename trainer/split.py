"""Which faces train, validate and test: fixed by what the images show, so that no figure flatters itself.

Faces that look the same, such as two sizes of one photo, always share a part; otherwise the network would be examined
on what it has learned by heart. The rest is stratified by gender, ethnicity and age band. Neither names nor the order
in the archive matter, so the same images always give the same split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.dataset import SPLITS, Split, age_band
from shared.labels import Label

SHARES: Final[dict[Split, float]] = {"train": 0.7, "validation": 0.1, "test": 0.2}

_LARGE_GROUP: Final = 0.01  # of all faces


def split(labels: Sequence[Label], digests: Sequence[bytes], groups: NDArray[np.int64]) -> list[Split]:
    """Assigns 70 % of the faces to train, 10 % to validation and 20 % to test.

    Args:
        labels: of the N faces.
        digests: of their pixels, all different; they alone decide between faces of the same label.
        groups: int64 (N,), of `near_duplicates`; a group always stays together.

    Returns:
        The part of each face. Each gender with three groups or more is in every part; each stratum of gender, ethnicity
        and age band has its shares within one or two faces, and what is left over goes to its neighbour, so that
        small strata balance each other.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    units = [sorted(unit, key=digests.__getitem__) for unit in members.values()]
    large = max(2, int(_LARGE_GROUP * len(labels)))

    def place(unit: list[int]) -> tuple[int, bool, int, int, bytes]:
        label = labels[unit[0]]
        # Large groups come first, and so train: as examination questions they would be one, asked many times.
        return label.gender, len(unit) <= large, label.ethnicity, age_band(label.age), digests[unit[0]]

    parts: list[Split] = ["train"] * len(labels)
    counts: dict[int, dict[Split, int]] = {}
    for unit in sorted(units, key=place):
        placed = counts.setdefault(labels[unit[0]].gender, dict.fromkeys(SPLITS, 0))
        part: Split = "train" if len(unit) > large else _most_wanting(placed)
        placed[part] += len(unit)
        for index in unit:
            parts[index] = part
    return parts


def _most_wanting(counts: dict[Split, int]) -> Split:
    """Returns the part that the next face belongs to: an empty one, else the one that is furthest behind its share."""
    total = sum(counts.values()) + 1
    empty = [part for part in SPLITS if not counts[part]]
    return empty[0] if empty else max(SPLITS, key=lambda part: SHARES[part] * total - counts[part])

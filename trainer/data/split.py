"""Which faces train, validate and test: fixed by what the images show, so that no figure flatters itself.

Faces that look the same, such as two sizes of one photo, always share a part; otherwise the network would be examined
on what it has learned by heart. The rest is stratified by gender, ethnicity and age band. Neither names nor the order
in the archive matter, so the same images always give the same split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.faces.labels import GENDERS, MAX_AGE, UNKNOWN, Label
from shared.records.dataset import SPLITS, Split, age_band

SHARES: Final[dict[Split, float]] = {"train": 0.7, "validation": 0.1, "test": 0.2}

_TRAIN, _VALIDATION, _TEST = range(len(SPLITS))
_LARGE_GROUP: Final = 0.01  # of all faces


def split(
    labels: Sequence[Label],
    digests: Sequence[bytes],
    groups: NDArray[np.int64],
    must_train: NDArray[np.bool_] | None = None,
) -> list[Split]:
    """Assigns 70 % of the faces to train, 10 % to validation and 20 % to test.

    Args:
        labels: of the N faces.
        digests: of their pixels, all different, of one length; they alone decide between faces of the same label.
        groups: int64 (N,), of `near_duplicates`; a group always stays together.
        must_train: bool (N,), the same for a whole group; None where any face may be in any part.

    Returns:
        The part of each face. Each gender with three groups or more that need not train is in every part; each stratum
        of gender, ethnicity and age band has its shares within one or two faces, and what is left over goes to its
        neighbour, so that small strata balance each other.
    """
    ages, genders, ethnicities = np.fromiter(chain.from_iterable(labels), np.int64).reshape(-1, 3).T
    bands = np.array([*(age_band(age) for age in range(MAX_AGE + 1)), UNKNOWN])[ages]  # `UNKNOWN` is the last
    by_digest = np.argsort(np.array(digests))
    # Of each group, the face whose digest is the lowest speaks for all of it.
    _, first, unit_of, sizes = np.unique(groups[by_digest], return_index=True, return_inverse=True, return_counts=True)
    speakers = by_digest[first]
    parts = np.empty(len(sizes), np.intp)
    must = np.zeros(len(sizes), bool) if must_train is None else must_train[speakers]
    for gender in range(len(GENDERS)):
        units = np.flatnonzero(genders[speakers] == gender)
        if len(units):
            # Where everybody is there several times, a group of that size is nothing special.
            large = max(2, int(_LARGE_GROUP * len(labels)), int(np.median(sizes[units])))
            # Large groups come first, and so train: as examination questions they would be one, asked many times.
            columns = (first, bands[speakers], ethnicities[speakers], sizes <= large)
            units = units[np.lexsort([column[units] for column in columns])]
            trains = must[units] | (sizes[units] > large)
            parts[units] = _fill_empty(_deal(sizes[units].tolist(), trains.tolist()), sizes[units], must[units])
    of_faces = np.empty(len(labels), np.intp)
    of_faces[by_digest] = parts[unit_of]
    return [SPLITS[part] for part in of_faces.tolist()]


def _fill_empty(parts: list[int], sizes: NDArray[np.int64], must_train: NDArray[np.bool_]) -> list[int]:
    """Gives a part without groups the smallest one of the part that has the most groups, where it has two or more.

    Groups that must train are not given away.
    """
    for part in range(len(SPLITS)):
        counts = [parts.count(other) for other in range(len(SPLITS))]
        fullest = counts.index(max(counts))
        members = [unit for unit, of in enumerate(parts) if of == fullest and not must_train[unit]]
        if not counts[part] and counts[fullest] > 1 and members:
            parts[min(members, key=lambda unit: (int(sizes[unit]), -unit))] = part
    return parts


def _deal(sizes: Sequence[int], trains: Sequence[bool]) -> list[int]:
    """Deals one gender's groups out, in order: to an empty part, else to the one that is furthest behind its share.

    Args:
        sizes: of the groups.
        trains: which of them train in any case.

    Returns:
        The part of each group, an index into `SPLITS`.
    """
    # Written out for the three parts, as it is done for every face.
    wanted_train, wanted_validation, wanted_test = (SHARES[part] for part in SPLITS)
    train = validation = test = 0
    dealt = []
    for size, train_anyway in zip(sizes, trains, strict=True):
        total = train + validation + test + 1
        behind_train = wanted_train * total - train if train else math.inf
        behind_validation = wanted_validation * total - validation if validation else math.inf
        behind_test = wanted_test * total - test if test else math.inf
        if train_anyway or (behind_train >= behind_validation and behind_train >= behind_test):
            train += size
            dealt.append(_TRAIN)
        elif behind_validation >= behind_test:
            validation += size
            dealt.append(_VALIDATION)
        else:
            test += size
            dealt.append(_TEST)
    return dealt

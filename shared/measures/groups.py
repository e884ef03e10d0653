"""Groups of faces by their labels, and shares with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.faces.labels import ETHNICITIES, GENDERS
from shared.records.dataset import AGE_BANDS
from shared.records.evaluation import GroupKind, Rate

Z_95: Final = 1.959964
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of some faces, as columns.

    Attributes:
        gender: (N,), index into `shared.faces.labels.GENDERS`.
        ethnicity: (N,), index into `shared.faces.labels.ETHNICITIES`; negative where it is unknown.
        age: (N,), in years; negative where it is unknown.
    """

    gender: NDArray[Any]
    ethnicity: NDArray[Any]
    age: NDArray[Any]


@dataclass(frozen=True, slots=True)
class FaceGroup:
    """A group of faces.

    Attributes:
        kind: what it is formed by.
        filters: `gender`, `ethnicity` and `age` that its faces have; only those that it is formed by.
        members: bool (N,), which faces are in it.
    """

    kind: GroupKind
    filters: dict[str, str]
    members: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The group's name for people, such as `female, Asian, 20-29`."""
        return ", ".join(self.filters.values())


def face_groups(labels: Labels) -> Iterator[FaceGroup]:
    """Yields every group by gender, ethnicity and age, then the intersections of all three; some have no faces."""
    bands = np.minimum(labels.age // 10, len(AGE_BANDS) - 1)
    for i, gender in enumerate(GENDERS):
        yield FaceGroup("gender", {"gender": gender}, labels.gender == i)
    for i, ethnicity in enumerate(ETHNICITIES):
        yield FaceGroup("ethnicity", {"ethnicity": ethnicity}, labels.ethnicity == i)
    for i, band in enumerate(AGE_BANDS):
        yield FaceGroup("age", {"age": band}, bands == i)
    for i, gender in enumerate(GENDERS):
        for j, ethnicity in enumerate(ETHNICITIES):
            both = (labels.gender == i) & (labels.ethnicity == j)
            for k, band in enumerate(AGE_BANDS):
                filters = {"gender": gender, "ethnicity": ethnicity, "age": band}
                yield FaceGroup("intersection", filters, both & (bands == k))


def wilson_rate(count: int, total: int) -> Rate | None:
    """Returns a share with its 95 % Wilson interval; None of nothing.

    Args:
        count: what is counted, of `total`.
        total: what could be.
    """
    if total == 0:
        return None
    share = count / total
    scale = 1 + Z_95**2 / total
    centre = (share + Z_95**2 / (2 * total)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2)) / scale
    return Rate(share=share, count=count, total=total, low=max(0.0, centre - half), high=min(1.0, centre + half))

"""Accuracy and error rates of every group of test faces, at any decision threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dashboard.face_grid import age_band_indices, predict_female
from dashboard.store_cache import Dataset
from shared.faces.labels import ETHNICITIES, GENDERS
from shared.records.dataset import AGE_BANDS, SPLITS
from shared.records.evaluation import MIN_GROUP, Evaluation

_Z: Final = 1.959964
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class GroupMetrics:
    """How well one group of test faces is predicted.

    Attributes:
        kind: what the group is formed by: `gender`, `ethnicity`, `age` or `intersection`.
        name: for people.
        filters: the fields of `FaceFilter` that show its faces.
        count: faces in the group.
        accuracy: share predicted correctly.
        low: lower end of the accuracy's 95 % Wilson interval.
        high: its upper end.
        false_positive_rate: share of the male faces that is predicted female; None where there are none.
        false_negative_rate: share of the female faces that is predicted male; None where there are none.
        worst: whether its accuracy is the lowest of all groups with at least `MIN_GROUP` faces.
    """

    kind: str
    name: str
    filters: dict[str, str]
    count: int
    accuracy: float
    low: float
    high: float
    false_positive_rate: float | None
    false_negative_rate: float | None
    worst: bool = False


def measure_groups(data: Dataset, probabilities: NDArray[np.float32], threshold: float) -> list[GroupMetrics]:
    """Returns every group by gender, ethnicity and age, and the worst intersection of the three if it is worst of all.

    Args:
        data: the dataset; only its test faces count.
        probabilities: float32 (N,), of female.
        threshold: predicted female from here on.
    """
    female = predict_female(probabilities, threshold)
    test = data.split == SPLITS.index("test")
    groups = [_measure(kind, filters, mask & test, data.gender, female) for kind, filters, mask in _groups(data)]
    found = [group for group in groups if group is not None]
    ranked = [group for group in found if group.count >= MIN_GROUP]
    worst = min(ranked, key=lambda group: group.accuracy, default=None)
    shown = [replace(group, worst=group is worst) for group in found if group.kind != "intersection" or group is worst]
    return sorted(shown, key=lambda group: not group.worst)


def measured_before(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Returns the groups that a run's evaluation holds, for a run whose dataset or predictions are gone."""
    worst = evaluation.worst_group
    return [
        {**group.as_dict(), "filters": {}, "worst": group == worst}
        for group in evaluation.groups
        if group.kind != "intersection" or group == worst
    ]


def _groups(data: Dataset) -> Iterator[tuple[str, dict[str, str], NDArray[np.bool_]]]:
    bands = age_band_indices(data)
    for i, gender in enumerate(GENDERS):
        yield "gender", {"gender": gender}, data.gender == i
    for i, ethnicity in enumerate(ETHNICITIES):
        yield "ethnicity", {"ethnicity": ethnicity}, data.ethnicity == i
    for i, band in enumerate(AGE_BANDS):
        yield "age", {"age": band}, bands == i
    for i, gender in enumerate(GENDERS):
        for j, ethnicity in enumerate(ETHNICITIES):
            for k, band in enumerate(AGE_BANDS):
                mask = (data.gender == i) & (data.ethnicity == j) & (bands == k)
                yield "intersection", {"gender": gender, "ethnicity": ethnicity, "age": band}, mask


def _measure(
    kind: str,
    filters: dict[str, str],
    mask: NDArray[np.bool_],
    gender: NDArray[np.uint8],
    female: NDArray[np.bool_],
) -> GroupMetrics | None:
    count = int(mask.sum())
    if count == 0:
        return None
    labels, predicted = gender[mask] == 1, female[mask]
    accuracy = float((labels == predicted).mean())
    low, high = _wilson_interval(accuracy, count)
    males, females = int((~labels).sum()), int(labels.sum())
    return GroupMetrics(
        kind=kind,
        name=", ".join(filters.values()),
        filters=filters,
        count=count,
        accuracy=accuracy,
        low=low,
        high=high,
        false_positive_rate=float((predicted & ~labels).sum() / males) if males else None,
        false_negative_rate=float((~predicted & labels).sum() / females) if females else None,
    )


def _wilson_interval(share: float, count: int) -> tuple[float, float]:
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)

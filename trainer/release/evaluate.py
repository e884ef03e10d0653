"""Evaluation: probabilities and labels of held-out faces in, all metrics out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from shared.faces.labels import ETHNICITIES, GENDERS, UNKNOWN
from shared.records.dataset import AGE_BANDS, age_band
from shared.records.evaluation import (
    MIN_GROUP,
    Confusion,
    Coverage,
    Curve,
    Evaluation,
    Group,
    GroupKind,
    Rate,
    ReliabilityBin,
    Spread,
)

RELIABILITY_BINS: Final = 15
HISTOGRAM_BINS: Final = 20
CURVE_POINTS: Final = 200
CONFIDENCES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""The confidences below which a model may abstain; no answer is below the first."""
Z_95: Final = 1.959964


def evaluate(
    probability_female: NDArray[np.float32],
    labels: NDArray[np.uint8],
    ages: NDArray[np.integer],
    ethnicities: NDArray[np.integer],
) -> Evaluation:
    """Measures a model on faces that it did not learn from.

    Args:
        probability_female: float32 (N,), calibrated.
        labels: uint8 (N,), 1 where the label is female.
        ages: (N,), in years, or `UNKNOWN`.
        ethnicities: (N,), indices into `ETHNICITIES`, or `UNKNOWN`.

    Raises:
        ValueError: there are no faces, the lengths differ, or a probability is not one.
    """
    # It takes a second to load, which a trainer that starts should not wait for.
    from sklearn import metrics  # noqa: PLC0415

    lengths = {len(probability_female), len(labels), len(ages), len(ethnicities)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"found arrays of {sorted(lengths)} faces; expected one length of 1 or more")
    probability = probability_female.astype(np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():  # catches NaN too
        raise ValueError("found a probability outside [0, 1]; expected none")
    predicted = (probability >= 0.5).astype(np.uint8)
    correct = predicted == labels
    confusion = metrics.confusion_matrix(labels, predicted, labels=[0, 1])
    recall_male, recall_female = (_rate(correct[labels == gender]) for gender in range(len(GENDERS)))
    recalls = [recall.share for recall in (recall_male, recall_female) if recall is not None]
    f1_male, f1_female = metrics.f1_score(labels, predicted, labels=[0, 1], average=None, zero_division=0)
    both = len(recalls) == 2
    roc = precision_recall = Curve(x=[], y=[])
    if both:
        false_rate, true_rate, _ = metrics.roc_curve(labels, probability)
        precision, recall, _ = metrics.precision_recall_curve(labels, probability, drop_intermediate=True)
        roc, precision_recall = _thinned(false_rate, true_rate), _thinned(recall[::-1], precision[::-1])
    low, high = wilson_interval(int(correct.sum()), len(labels))
    bins = list(_reliability(probability, labels))
    groups = [
        _group(kind, name, correct[members], labels[members])
        for kind, name, members in group_members(labels, ages, ethnicities)
    ]
    ranked = sorted((group for group in groups if group.count >= MIN_GROUP), key=lambda group: group.accuracy)
    return Evaluation(
        count=len(labels),
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        balanced_accuracy=float(np.mean(recalls)),
        recall_male=recall_male,
        recall_female=recall_female,
        auc=float(metrics.roc_auc_score(labels, probability)) if both else None,
        f1_male=float(f1_male),
        f1_female=float(f1_female),
        log_loss=float(metrics.log_loss(labels, probability, labels=[0, 1])),
        brier=float(np.mean((probability - labels) ** 2)),
        ece=sum(part.count * abs(part.mean_probability - part.share_female) for part in bins) / len(labels),
        ece_by_chance=_ece_by_chance(probability),
        reliability=bins,
        confusion=Confusion(
            male_as_male=int(confusion[0, 0]),
            male_as_female=int(confusion[0, 1]),
            female_as_male=int(confusion[1, 0]),
            female_as_female=int(confusion[1, 1]),
        ),
        roc=roc,
        precision_recall=precision_recall,
        groups=groups,
        worst_group=ranked[0] if ranked else None,
        gap=ranked[-1].accuracy - ranked[0].accuracy if ranked else None,
        spreads={kind: _spread(group for group in groups if group.kind == kind) for kind in get_args(GroupKind)},
        histogram=np.histogram(probability, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist(),
        coverage=tuple(_coverage(np.maximum(probability, 1 - probability), correct)),
    )


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a share; unlike the normal one, it holds for few faces and near 1.

    Raises:
        ValueError: `count` is not positive, or `correct` not within it.
    """
    if not 0 <= correct <= count or count == 0:
        raise ValueError(f"found {correct} of {count}; expected a share of a positive count")
    share = correct / count
    scale = 1 + Z_95**2 / count
    centre = (share + Z_95**2 / (2 * count)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def _reliability(probability: NDArray[np.float64], labels: NDArray[np.uint8]) -> Iterator[ReliabilityBin]:
    """Bins of equal counts: bins of equal width would be nearly empty in the middle, where a sure model says little."""
    for part in _bins(probability):
        yield ReliabilityBin(
            low=float(probability[part[0]]),
            high=float(probability[part[-1]]),
            count=len(part),
            mean_probability=float(probability[part].mean()),
            share_female=float(labels[part].mean()),
        )


def _ece_by_chance(probability: NDArray[np.float64]) -> float:
    """Returns the ECE to expect if every probability is right.

    A bin's share of females has a variance of Σ p (1 - p) / n², and a normal variable of the variance s² is
    s √(2 / π) away from its mean, on average.
    """
    variances = [(probability[part] * (1 - probability[part])).sum() for part in _bins(probability)]
    return float(np.sqrt(2 / np.pi * np.array(variances)).sum() / len(probability))


def _bins(probability: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Returns the indices of each bin's faces, by rising probability."""
    order = np.argsort(probability, kind="stable")
    return np.array_split(order, min(RELIABILITY_BINS, len(order)))


def _coverage(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Iterator[Coverage]:
    for lowest in CONFIDENCES:
        answered = confidence >= lowest
        yield Coverage(
            confidence=lowest,
            covered=float(answered.mean()),
            accuracy=float(correct[answered].mean()) if answered.any() else None,
        )


def group_members(
    labels: NDArray[np.uint8], ages: NDArray[np.integer], ethnicities: NDArray[np.integer]
) -> Iterator[tuple[GroupKind, str, NDArray[np.intp]]]:
    """Yields every group that has faces: its kind, its name, and the indices of its faces.

    Args:
        labels: uint8 (N,), 1 where the label is female.
        ages: (N,), in years.
        ethnicities: (N,), indices into `ETHNICITIES`.
    """
    bands = np.array([age_band(int(age)) for age in ages], np.intp)
    columns: list[tuple[GroupKind, tuple[str, ...], NDArray[np.integer]]] = [
        ("gender", GENDERS, labels),
        ("ethnicity", ETHNICITIES, ethnicities),
        ("age", AGE_BANDS, bands),
    ]
    for kind, names, column in columns:
        for value in np.unique(column[column != UNKNOWN]):
            yield kind, names[value], np.flatnonzero(column == value)
    known = np.flatnonzero((ethnicities != UNKNOWN) & (bands != UNKNOWN))
    if not len(known):
        return
    codes, members = np.unique(np.stack([labels, ethnicities, bands])[:, known], axis=1, return_inverse=True)
    for number, (gender, ethnicity, band) in enumerate(codes.T):
        name = f"{GENDERS[gender]}, {ETHNICITIES[ethnicity]}, {AGE_BANDS[band]}"
        yield "intersection", name, known[members == number]


def _group(kind: GroupKind, name: str, correct: NDArray[np.bool_], labels: NDArray[np.uint8]) -> Group:
    count, right = len(correct), int(correct.sum())
    low, high = wilson_interval(right, count)
    false_positives, false_negatives = (_rate(~correct[labels == gender]) for gender in range(len(GENDERS)))
    return Group(
        kind=kind,
        name=name,
        count=count,
        correct=right,
        accuracy=right / count,
        low=low,
        high=high,
        false_positive_rate=false_positives,
        false_negative_rate=false_negatives,
    )


def _rate(counted: NDArray[np.bool_]) -> Rate | None:
    """Returns the share of faces that are counted; None of no faces."""
    if not len(counted):
        return None
    count = int(counted.sum())
    low, high = wilson_interval(count, len(counted))
    return Rate(share=count / len(counted), count=count, total=len(counted), low=low, high=high)


def _spread(groups: Iterable[Group]) -> Spread:
    def difference(values: list[float]) -> float | None:
        return max(values) - min(values) if len(values) > 1 else None

    def shares(rates: Iterable[Rate | None]) -> list[float]:
        return [rate.share for rate in rates if rate is not None and rate.total >= MIN_GROUP]

    ranked = [group for group in groups if group.count >= MIN_GROUP]
    return Spread(
        accuracy=difference([group.accuracy for group in ranked]),
        false_positive_rate=difference(shares(group.false_positive_rate for group in ranked)),
        false_negative_rate=difference(shares(group.false_negative_rate for group in ranked)),
    )


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> Curve:
    """Keeps both ends and evenly spaced points between them."""
    kept = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int))
    return Curve(x=x[kept].tolist(), y=y[kept].tolist())

"""Two models on the same faces: where they agree, what each group gained, and whether chance explains it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.measures.groups import Z_95, Labels, face_groups, wilson_rate
from shared.records.evaluation import GroupKind, Rate
from shared.records.predictions import THRESHOLD, predict_female
from shared.records.record import StoredModel


class Gain(StoredModel):
    """What the second model gains over the first, as a difference of accuracies on the same faces.

    Attributes:
        difference: the second's accuracy less the first's.
        low: lower end of its 95 % interval, after Bonett and Price.
        high: its upper end.
    """

    difference: float
    low: float
    high: float


class GroupGain(StoredModel):
    """What one group of faces gains.

    Attributes:
        kind: what the group is formed by; `intersection` is gender, ethnicity and age band together.
        name: for people.
        filters: the parameters of `faces.csv` that give its faces.
        first: accuracy of the first model on it.
        second: accuracy of the second.
        gain: their difference.
    """

    kind: GroupKind
    name: str
    filters: dict[str, str]
    first: Rate
    second: Rate
    gain: Gain


class Agreement(StoredModel):
    """Faces by which of two models predicts them correctly.

    Attributes:
        both_correct: predicted correctly by both.
        only_first: turned wrong: correct by the first model alone.
        only_second: turned right: correct by the second model alone.
        both_wrong: by neither.
    """

    both_correct: int
    only_first: int
    only_second: int
    both_wrong: int


class Comparison(StoredModel):
    """Two models on the same faces.

    Attributes:
        first: accuracy of the first model.
        second: accuracy of the second.
        first_balanced: mean of both recalls of the first; of the one there is where all faces have one gender.
        second_balanced: the same of the second.
        agreement: the four cells.
        gain: the difference of the accuracies.
        p_value: of McNemar's exact test that both models are as often correct.
        groups: every group that has faces, by falling gain; of the intersections those whose interval leaves out 0.
        turned_correct: indices of the faces that the second model alone predicts correctly.
        turned_wrong: indices of those that the first alone does.
    """

    first: Rate
    second: Rate
    first_balanced: float
    second_balanced: float
    agreement: Agreement
    gain: Gain
    p_value: float
    groups: list[GroupGain]
    turned_correct: list[int]
    turned_wrong: list[int]

    @property
    def is_beyond_chance(self) -> bool:
        """Whether chance explains the difference in less than 5 % of cases."""
        return self.p_value < 0.05

    def describe(self, first: int, second: int) -> str:
        """Returns the result in words.

        Args:
            first: version of the first model.
            second: version of the second.
        """
        more = self.agreement.only_second - self.agreement.only_first
        better, worse = (second, first) if more > 0 else (first, second)
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        if more == 0:
            return f"Both models are correct on {self.first.count:,} of {self.first.total:,} faces (McNemar's {p})."
        faces = "face" if abs(more) == 1 else "faces"
        chance = "more than chance explains" if self.is_beyond_chance else "which chance explains"
        return (
            f"Model {better} is correct on {abs(more):,} {faces} more than model {worse}, of {self.first.total:,}: "
            f"{chance} (McNemar's {p})."
        )


class MatrixCell(StoredModel):
    """A model on a dataset.

    Attributes:
        version: the model.
        dataset: SHA-256 of the dataset.
        accuracy: on its test faces; None where the model has not predicted it.
        trained_on_it: whether the model was trained on this dataset's training faces.
    """

    version: int
    dataset: str
    accuracy: Rate | None
    trained_on_it: bool


def compare(
    labels: Labels,
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    members: NDArray[np.bool_],
    threshold: float = THRESHOLD,
) -> Comparison | None:
    """Compares two models on some faces of a dataset; None of no faces.

    Args:
        labels: of all faces.
        first: float32 (N,), the first model's probabilities of female.
        second: float32 (N,), the second model's.
        members: bool (N,), the faces that count.
        threshold: predicted female from here on, by both.
    """
    indices = np.flatnonzero(members)
    chosen = Labels(labels.gender[members], labels.ethnicity[members], labels.age[members])
    label = chosen.gender == 1
    before = predict_female(first[members], threshold) == label
    after = predict_female(second[members], threshold) == label
    first_rate, second_rate = (wilson_rate(int(correct.sum()), len(label)) for correct in (before, after))
    if first_rate is None or second_rate is None:
        return None
    only_first, only_second = before & ~after, after & ~before
    return Comparison(
        first=first_rate,
        second=second_rate,
        first_balanced=_balanced(before, label),
        second_balanced=_balanced(after, label),
        agreement=Agreement(
            both_correct=int((before & after).sum()),
            only_first=int(only_first.sum()),
            only_second=int(only_second.sum()),
            both_wrong=int((~before & ~after).sum()),
        ),
        gain=paired_gain(int(only_first.sum()), int(only_second.sum()), len(label)),
        p_value=mcnemar_p_value(int(only_first.sum()), int(only_second.sum())),
        groups=_group_gains(chosen, before, after),
        turned_correct=indices[only_second].tolist(),
        turned_wrong=indices[only_first].tolist(),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test: whether two models are as often correct.

    Only faces on which one of them is correct tell; if both were as good, each such face would be a fair coin. McNemar,
    "Note on the sampling error of the difference between correlated proportions", Psychometrika 12 (1947); the exact
    binomial form as in Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data", BMC Medical
    Research Methodology 13 (2013).

    Args:
        only_first: faces that the first model alone predicts correctly.
        only_second: faces that the second alone does.
    """
    tossed, fewer = only_first + only_second, min(only_first, only_second)
    ways, tail = 1, 0  # exact whole numbers: no rounding however many faces there are
    for heads in range(fewer + 1):
        tail += ways
        ways = ways * (tossed - heads) // (heads + 1)
    return min(1.0, float(2 * tail / 2**tossed))


def paired_gain(only_first: int, only_second: int, total: int) -> Gain:
    """Returns a difference of accuracies on the same faces with its 95 % interval.

    The adjusted Wald interval of Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", Journal of Educational and Behavioral Statistics 37 (2012), which
    holds for few faces too.

    Args:
        only_first: faces that the first model alone predicts correctly.
        only_second: faces that the second alone does.
        total: all faces, at least one.
    """
    lost, won = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    middle = won - lost
    half = Z_95 * math.sqrt((lost + won - middle**2) / (total + 2))
    return Gain(
        difference=(only_second - only_first) / total, low=max(-1.0, middle - half), high=min(1.0, middle + half)
    )


def _group_gains(labels: Labels, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[GroupGain]:
    found: list[GroupGain] = []
    for group in face_groups(labels):
        members: NDArray[Any] = group.members
        first = wilson_rate(int((before & members).sum()), int(members.sum()))
        second = wilson_rate(int((after & members).sum()), int(members.sum()))
        if first is None or second is None:
            continue
        only_first, only_second = int((members & before & ~after).sum()), int((members & after & ~before).sum())
        gain = paired_gain(only_first, only_second, first.total)
        if group.kind == "intersection" and gain.low <= 0 <= gain.high:
            continue
        found.append(
            GroupGain(kind=group.kind, name=group.name, filters=group.filters, first=first, second=second, gain=gain)
        )
    return sorted(found, key=lambda row: -row.gain.difference)


def _balanced(correct: NDArray[np.bool_], label: NDArray[np.bool_]) -> float:
    recalls = [float(correct[label == female].mean()) for female in (False, True) if (label == female).any()]
    return sum(recalls) / len(recalls)

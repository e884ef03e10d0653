"""How well a model predicts some faces at any decision threshold: what is said first of it everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.measures.groups import FaceGroup, Labels, face_groups, wilson_rate
from shared.records.evaluation import MIN_GROUP, Confusion, Coverage, Evaluation, Group, GroupKind, Rate
from shared.records.predictions import THRESHOLD, predict_female
from shared.records.record import StoredModel

STEPS: Final = 200
"""Of the decision threshold, from 0 to 1."""
_CONFIDENCES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class GroupMeasures(StoredModel):
    """How well one group of faces is predicted.

    Attributes:
        kind: what the group is formed by; `intersection` is gender, ethnicity and age band together.
        name: for people.
        filters: the parameters of `faces.csv` that give its faces.
        accuracy: share predicted correctly.
        false_positive_rate: share of the male faces that is predicted female; None where there are none.
        false_negative_rate: share of the female faces that is predicted male; None where there are none.
        worst: whether its accuracy is the lowest of all groups with at least `MIN_GROUP` faces.
    """

    kind: GroupKind
    name: str
    filters: dict[str, str]
    accuracy: Rate
    false_positive_rate: Rate | None
    false_negative_rate: Rate | None
    worst: bool = False


class AbstentionMeasures(StoredModel):
    """What is answered, and how well, if a model abstains below a confidence.

    Attributes:
        confidence: the lowest that is answered.
        covered: share of the faces that are answered.
        accuracy: share of these predicted correctly; None where there are none.
    """

    confidence: float
    covered: Rate
    accuracy: Rate | None


class Measures(StoredModel):
    """How well a model predicts some faces at a decision threshold.

    Attributes:
        threshold: predicted female from this probability on.
        accuracy: share predicted correctly.
        balanced_accuracy: mean of both recalls; of the one there is where all faces have one gender.
        recall_male: share of the male faces that is predicted male; None where there are none.
        recall_female: share of the female faces that is predicted female; None where there are none.
        confusion: the four counts.
        groups: every group that has faces, the worst first; of the intersections only the worst, if it is worst of all.
        abstention: by rising confidence.
        best_accuracy_threshold: where the accuracy on these faces is highest, the nearest to 1/2 of several.
        equal_error_threshold: where both genders' error rates differ least, the nearest to 1/2 of several.
    """

    threshold: float
    accuracy: Rate
    balanced_accuracy: float
    recall_male: Rate | None
    recall_female: Rate | None
    confusion: Confusion
    groups: list[GroupMeasures]
    abstention: list[AbstentionMeasures]
    best_accuracy_threshold: float | None
    equal_error_threshold: float | None

    @property
    def worst_group(self) -> GroupMeasures | None:
        """The group with the lowest accuracy, of those with at least `MIN_GROUP` faces."""
        return next((group for group in self.groups if group.worst), None)


def measure(
    labels: Labels, probabilities: NDArray[np.float32], members: NDArray[np.bool_], threshold: float = THRESHOLD
) -> Measures | None:
    """Returns how well some faces are predicted; None of no faces.

    Args:
        labels: of all faces.
        probabilities: float32 (N,), of female.
        members: bool (N,), the faces that count.
        threshold: predicted female from here on.
    """
    those = Labels(labels.gender[members], labels.ethnicity[members], labels.age[members])
    chosen = probabilities[members]
    female, label = predict_female(chosen, threshold), those.gender == 1
    correct = female == label
    accuracy = wilson_rate(int(correct.sum()), len(label))
    if accuracy is None:
        return None
    recall_male, recall_female = _rate(correct, ~label), _rate(correct, label)
    recalls = [recall.share for recall in (recall_male, recall_female) if recall]
    counts = female_counts(label, chosen)
    return Measures(
        threshold=threshold,
        accuracy=accuracy,
        balanced_accuracy=sum(recalls) / len(recalls),
        recall_male=recall_male,
        recall_female=recall_female,
        confusion=Confusion(
            male_as_male=int((~label & ~female).sum()),
            male_as_female=int((~label & female).sum()),
            female_as_male=int((label & ~female).sum()),
            female_as_female=int((label & female).sum()),
        ),
        groups=_rank([_measure_group(group, correct, label) for group in face_groups(those) if group.members.any()]),
        abstention=_measure_abstention(chosen, female, correct),
        best_accuracy_threshold=_best_step(lambda step: counts[0][step] + counts[1][0] - counts[1][step]),
        equal_error_threshold=_equal_error(*counts),
    )


def measured_before(evaluation: Evaluation) -> Measures:
    """Returns what a run's evaluation says, for a run whose dataset or predictions are gone."""
    accuracy = Rate(
        share=evaluation.accuracy,
        count=round(evaluation.accuracy * evaluation.count),
        total=evaluation.count,
        low=evaluation.accuracy_low,
        high=evaluation.accuracy_high,
    )
    return Measures(
        threshold=THRESHOLD,
        accuracy=accuracy,
        balanced_accuracy=evaluation.balanced_accuracy,
        recall_male=evaluation.recall_male,
        recall_female=evaluation.recall_female,
        confusion=evaluation.confusion,
        groups=_rank([_group_before(group) for group in evaluation.groups]),
        abstention=[_abstention_before(row, evaluation.count) for row in evaluation.coverage],
        best_accuracy_threshold=None,
        equal_error_threshold=None,
    )


def female_counts(label: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> tuple[list[int], list[int]]:
    """Returns, for male and for female faces, how many have a probability of at least 0, 1/200, … 1.

    Args:
        label: bool (N,), whether a face's label is female.
        probabilities: float32 (N,), of female.
    """
    thresholds = [step / STEPS for step in range(STEPS + 1)]
    male, female = (probabilities[~label], probabilities[label])
    return (
        [int(predict_female(male, at).sum()) for at in thresholds],
        [int(predict_female(female, at).sum()) for at in thresholds],
    )


def _equal_error(male: list[int], female: list[int]) -> float | None:
    if male[0] == 0 or female[0] == 0:
        return None  # one gender has no error rate
    return _best_step(lambda step: abs(male[step] / male[0] - (1 - female[step] / female[0])))


def _best_step(cost: Callable[[int], float]) -> float:
    """Returns the threshold where `cost` is lowest, the nearest to 1/2 of several."""
    return min(range(STEPS + 1), key=lambda step: (cost(step), abs(step - STEPS // 2))) / STEPS


def _measure_group(group: FaceGroup, correct: NDArray[np.bool_], label: NDArray[np.bool_]) -> GroupMeasures:
    accuracy = _rate(correct, group.members)
    assert accuracy is not None  # noqa: S101 - the caller passes over groups without faces
    return GroupMeasures(
        kind=group.kind,
        name=group.name,
        filters=group.filters,
        accuracy=accuracy,
        false_positive_rate=_rate(~correct, group.members & ~label),
        false_negative_rate=_rate(~correct, group.members & label),
    )


def _group_before(group: Group) -> GroupMeasures:
    return GroupMeasures(
        kind=group.kind,
        name=group.name,
        filters={},
        accuracy=Rate(share=group.accuracy, count=group.correct, total=group.count, low=group.low, high=group.high),
        false_positive_rate=group.false_positive_rate,
        false_negative_rate=group.false_negative_rate,
    )


def _rank(groups: list[GroupMeasures]) -> list[GroupMeasures]:
    """Returns the groups to show, the worst first; of the intersections only the worst, if it is worst of all."""
    ranked = [group for group in groups if group.accuracy.total >= MIN_GROUP]
    worst = min(ranked, key=lambda group: group.accuracy.share, default=None)
    shown = [group for group in groups if group is worst or group.kind != "intersection"]
    return [
        *(group.changed(worst=True) for group in shown if group is worst),
        *(group for group in shown if group is not worst),
    ]


def _measure_abstention(
    probabilities: NDArray[np.float32], female: NDArray[np.bool_], correct: NDArray[np.bool_]
) -> list[AbstentionMeasures]:
    confidence = np.where(female, probabilities, 1 - probabilities)
    found = []
    for lowest in _CONFIDENCES:
        answered = confidence >= lowest
        covered = wilson_rate(int(answered.sum()), len(answered))
        assert covered is not None  # noqa: S101 - the caller has looked
        found.append(AbstentionMeasures(confidence=lowest, covered=covered, accuracy=_rate(correct, answered)))
    return found


def _rate(counted: NDArray[np.bool_], members: NDArray[np.bool_]) -> Rate | None:
    return wilson_rate(int((counted & members).sum()), int(members.sum()))


def _abstention_before(row: Coverage, count: int) -> AbstentionMeasures:
    answered = round(row.covered * count)
    covered = wilson_rate(answered, count)
    assert covered is not None  # noqa: S101 - an evaluation has faces
    accuracy = None if row.accuracy is None else wilson_rate(round(row.accuracy * answered), answered)
    return AbstentionMeasures(confidence=row.confidence, covered=covered, accuracy=accuracy)

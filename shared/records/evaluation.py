"""How well a model does on held-out faces: the content of `evaluation.json`."""

from __future__ import annotations

from typing import Final, Literal

from shared.records.record import StoredModel

GroupKind = Literal["gender", "ethnicity", "age", "intersection"]
MIN_GROUP: Final = 10
"""Faces that a group needs to be ranked: below that, chance alone makes one bad."""


class Rate(StoredModel):
    """A share of faces with its 95 % Wilson interval.

    Attributes:
        share: `count / total`.
        count: faces that are counted.
        total: faces that could be.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    share: float
    count: int
    total: int
    low: float
    high: float


class Group(StoredModel):
    """The errors within one group of faces.

    Attributes:
        kind: what the group is formed by; `intersection` is gender, ethnicity and age band together.
        name: for people, such as `female, Asian, 20-29`.
        count: faces in the group.
        correct: of those, predicted correctly.
        accuracy: `correct / count`.
        low: lower end of the accuracy's 95 % Wilson interval.
        high: its upper end.
        false_positive_rate: share of the male faces that are classified as female; None where the group has none.
        false_negative_rate: share of the female faces that are classified as male; None where the group has none.
    """

    kind: GroupKind
    name: str
    count: int
    correct: int
    accuracy: float
    low: float
    high: float
    false_positive_rate: Rate | None
    false_negative_rate: Rate | None


class Spread(StoredModel):
    """The differences between the highest and the lowest group of one kind.

    Groups with fewer than `MIN_GROUP` faces do not count, nor do rates over fewer than `MIN_GROUP` faces.

    Attributes:
        accuracy: the difference of the accuracies; None where fewer than two groups count.
        false_positive_rate: the difference of the false-positive rates; None where fewer than two groups count.
        false_negative_rate: the difference of the false-negative rates; None where fewer than two groups count.
    """

    accuracy: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None


class Robustness(StoredModel):
    """The accuracy on held-out faces that were changed, such as blurred.

    Attributes:
        change: what was done to the faces; `unchanged` for nothing.
        faces: how many.
        accuracy: share predicted correctly.
        balanced_accuracy: mean of both genders' recall.
    """

    change: str
    faces: int
    accuracy: float
    balanced_accuracy: float


class LearningPoint(StoredModel):
    """The balanced accuracy on the held-out faces of a classifier that has learned from some of the training faces.

    Attributes:
        faces: how many.
        accuracy: mean of both genders' recall; the mean over all parts of so many faces. In older evaluations, the
            share predicted correctly.
    """

    faces: int
    accuracy: float


class LearningCurve(StoredModel):
    """What more training faces would be worth, by a logistic regression on the starter's features.

    Attributes:
        points: by rising number of faces, two or more.
        gain: of `accuracy`, with twice the faces.
    """

    points: tuple[LearningPoint, ...]
    gain: float


class Coverage(StoredModel):
    """The faces that a model answers if it abstains below a confidence.

    Attributes:
        confidence: the lowest confidence that is answered.
        covered: share of the faces that are answered.
        accuracy: share of the answered faces predicted correctly; None where none is answered.
    """

    confidence: float
    covered: float
    accuracy: float | None


class Confusion(StoredModel):
    """Faces by their label and their prediction."""

    male_as_male: int
    male_as_female: int
    female_as_male: int
    female_as_female: int


class ReliabilityBin(StoredModel):
    """Faces of similar probability.

    Attributes:
        low: lowest probability in the bin.
        high: highest probability in the bin.
        count: faces in the bin.
        mean_probability: what the model said, on average.
        share_female: how many of them are labelled female; the same as `mean_probability` if well calibrated.
    """

    low: float
    high: float
    count: int
    mean_probability: float
    share_female: float


class Curve(StoredModel):
    """Points of a curve, thinned for drawing, from left to right."""

    x: list[float]
    y: list[float]


class Evaluation(StoredModel):
    """The result of `trainer.release.evaluate.evaluate`; *female* is the positive class.

    Attributes:
        count: faces evaluated.
        accuracy: share predicted correctly, at a threshold of 1/2.
        accuracy_low: lower end of the accuracy's 95 % Wilson interval.
        accuracy_high: its upper end.
        balanced_accuracy: mean of both genders' recall.
        recall_male: share of the male faces that are classified as male; None where there are none.
        recall_female: share of the female faces that are classified as female; None where there are none.
        auc: area under the ROC curve; None where all faces have one gender.
        f1_male: harmonic mean of precision and recall for male.
        f1_female: the same for female.
        log_loss: mean, in nats.
        brier: mean squared difference of probability and label.
        ece: expected calibration error: the mean of |mean_probability - share_female| over the bins, by their counts.
        ece_by_chance: the ECE that right probabilities show on so many faces, on average; None in older evaluations.
        reliability: up to 15 bins of equal counts, by rising probability.
        confusion: the four counts.
        roc: true over false positive rate; empty where all faces have one gender.
        precision_recall: precision over recall; empty where all faces have one gender.
        groups: every group that has faces; by gender, ethnicity, age, then intersections.
        worst_group: the lowest accuracy of the groups with at least `MIN_GROUP` faces; None where there is none.
        gap: the highest accuracy of these groups less the lowest; None where there is none.
        spreads: the differences between groups, by the kind of group.
        histogram: faces by probability of female, 20 bins of equal width: what drift in production is held against.
        coverage: what abstaining costs and gains, by rising confidence.
        robustness: the accuracy on some of the faces, changed in several ways; empty where it was not measured.
        learning_curve: what more training faces would be worth; None where it was not measured, or there are too few.
    """

    count: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    recall_male: Rate | None
    recall_female: Rate | None
    auc: float | None
    f1_male: float
    f1_female: float
    log_loss: float
    brier: float
    ece: float
    ece_by_chance: float | None = None
    reliability: list[ReliabilityBin]
    confusion: Confusion
    roc: Curve
    precision_recall: Curve
    groups: list[Group]
    worst_group: Group | None
    gap: float | None
    spreads: dict[GroupKind, Spread]
    histogram: list[int]
    coverage: tuple[Coverage, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    learning_curve: LearningCurve | None = None

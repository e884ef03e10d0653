"""How well a model does on held-out faces: the content of `evaluation.json`."""

from __future__ import annotations

from typing import Final, Literal

from shared.records.record import StoredModel

GroupKind = Literal["gender", "ethnicity", "age", "intersection"]
MIN_GROUP: Final = 10
"""Faces that a group needs to be named the worst: below that, chance alone makes one bad."""


class Group(StoredModel):
    """The accuracy within one group of faces.

    Attributes:
        kind: what the group is formed by; `intersection` is gender, ethnicity and age band together.
        name: for people, such as `female, Asian, 20-29`.
        count: faces in the group.
        correct: of those, predicted correctly.
        accuracy: `correct / count`.
        low: lower end of the accuracy's 95 % Wilson interval.
        high: its upper end.
    """

    kind: GroupKind
    name: str
    count: int
    correct: int
    accuracy: float
    low: float
    high: float


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
    """What `trainer.release.evaluate.evaluate` measures; *female* is the positive class.

    Attributes:
        count: faces evaluated.
        accuracy: share predicted correctly, at a threshold of 1/2.
        accuracy_low: lower end of the accuracy's 95 % Wilson interval.
        accuracy_high: its upper end.
        balanced_accuracy: mean of both genders' recall.
        auc: area under the ROC curve; None where all faces have one gender.
        f1_male: harmonic mean of precision and recall for male.
        f1_female: the same for female.
        log_loss: mean, in nats.
        brier: mean squared difference of probability and label.
        ece: expected calibration error: the mean of |mean_probability - share_female| over the bins, by their counts.
        reliability: up to 15 bins of equal counts, by rising probability.
        confusion: the four counts.
        roc: true over false positive rate; empty where all faces have one gender.
        precision_recall: precision over recall; likewise.
        groups: every group that has faces; by gender, ethnicity, age, then intersections.
        worst_group: the lowest accuracy of the groups with at least `MIN_GROUP` faces; None where there is none.
        gap: the highest accuracy of these groups less the lowest; None likewise.
        histogram: faces by probability of female, 20 bins of equal width: what drift in production is held against.
    """

    count: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    auc: float | None
    f1_male: float
    f1_female: float
    log_loss: float
    brier: float
    ece: float
    reliability: list[ReliabilityBin]
    confusion: Confusion
    roc: Curve
    precision_recall: Curve
    groups: list[Group]
    worst_group: Group | None
    gap: float | None
    histogram: list[int]

"""Unbalanced data: of both genders, one has far fewer faces. It is trained with weights, and the user is told."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.faces.labels import GENDERS

UNBALANCED: Final = 0.2
"""The share of the faces below which a gender is far rarer than the other."""


def weigh_genders(labels: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Returns the weights of male and of female faces in the loss; None where the data needs none.

    Without weights a network learns soonest to predict the common gender for every face. Calibrated probabilities are
    worth more where that danger is small, so only unbalanced data is weighted.

    Args:
        labels: uint8 (N,), of the training faces, 1 where the label is female.

    Returns:
        Weights that give both genders the same sum, with a mean of 1 over all faces.
    """
    counts = np.bincount(labels, minlength=len(GENDERS))
    if counts.min() == 0 or counts.min() >= UNBALANCED * counts.sum():
        return None
    male, female = counts.sum() / (len(GENDERS) * counts)
    return float(male), float(female)


def warn_of_imbalance(labels: NDArray[np.uint8]) -> str | None:
    """Returns a sentence about data that `weigh_genders` weighs; None about other data.

    Args:
        labels: uint8 (N,), of the training faces, 1 where the label is female.
    """
    if weigh_genders(labels) is None:
        return None
    counts = np.bincount(labels, minlength=len(GENDERS)).tolist()
    (rare, few), (common, many) = sorted(zip(GENDERS, counts, strict=True), key=lambda pair: pair[1])
    return (
        f"the dataset is highly unbalanced: {few:,} {rare} and {many:,} {common} training faces. Both genders weigh "
        f"the same in training, but a model learns little about {rare} faces from so few: add more of them"
    )

"""Calibration: one number, the temperature, that makes the model's confidence match its accuracy."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

MIN_TEMPERATURE: Final = 0.25
MAX_TEMPERATURE: Final = 10.0
PRIOR_STRENGTH: Final = 16.0
"""How strongly the inverse temperature is held at 1: as if by a guess with a standard deviation of 1/4."""
HALVINGS: Final = 50


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Fits the temperature T for which sigmoid(logit / T) has the lowest log loss.

    A weak pull towards 1 decides where a handful of faces, or faces without a single error, say little.

    Args:
        logits: float32 (N,), of faces that the network did not learn from.
        labels: uint8 (N,), 1 where the label is female.

    Returns:
        T within [`MIN_TEMPERATURE`, `MAX_TEMPERATURE`]; above 1 where the network is overconfident; 1 without
        faces.
    """
    exact = logits.astype(np.float64)

    def slope(inverse: float) -> float:
        """The derivative of the summed log loss and the pull; it grows with `inverse`, so it has one root."""
        probability = 0.5 * (1 + np.tanh(0.5 * inverse * exact))  # the sigmoid, safe from overflow
        return float(np.dot(probability - labels, exact) + PRIOR_STRENGTH * (inverse - 1))

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / ((low + high) / 2)


def calibrated_loss(
    logits: NDArray[np.float32], labels: NDArray[np.uint8], gender_weights: tuple[float, float] | None = None
) -> float:
    """Returns the mean log loss with the temperature of `fit_temperature`.

    A network becomes overconfident before it becomes worse at telling faces apart. The temperature corrects the first
    but not the second, so this loss, not the plain one, chooses the epoch (Berta et al., "Rethinking Early Stopping:
    Refine, Then Calibrate", 2025).

    Args:
        logits: float32 (N,), one or more, of faces that the network did not learn from; as for `fit_temperature`.
        labels: uint8 (N,), 1 where the label is female.
        gender_weights: weights of male and of female faces in the mean; None weighs all faces the same.

    Returns:
        The loss; NaN where a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return float("nan")
    return float(calibrated_losses(logits, labels, gender_weights).mean())


def calibrated_losses(
    logits: NDArray[np.float32], labels: NDArray[np.uint8], gender_weights: tuple[float, float] | None = None
) -> NDArray[np.float64]:
    """Returns what each face adds to the mean of `calibrated_loss`: float64 (N,)."""
    exact = logits.astype(np.float64) / fit_temperature(logits, labels)
    losses: NDArray[np.float64] = np.logaddexp(0, np.where(labels > 0, -exact, exact))
    if gender_weights is None:
        return losses
    weights: NDArray[np.float64] = np.array(gender_weights)[labels]
    weighed: NDArray[np.float64] = losses * weights / weights.mean()
    return weighed

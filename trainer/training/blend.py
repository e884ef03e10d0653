"""Weights between those that training began from and those that it came to.

They are often better than both, on faces of the same source and of others (Wortsman et al., "Robust fine-tuning of
zero-shot models", 2022). Where validation cannot tell what was learned from chance, the start stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.training.starter import Weights

SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the way from the start to what was learned."""


def choose_share(losses: Callable[[float], NDArray[np.float64]]) -> float:
    """Returns the least share that is as good as the best, within one standard error of the difference.

    That is the one-standard-error rule (Breiman et al., "Classification and Regression Trees", 1984).

    Args:
        losses: a share → the validation loss of each face, in the same order for each share.
    """
    found = {share: losses(share) for share in SHARES}
    best = min(found.values(), key=lambda each: float(each.mean()))
    worse = {share: each - best for share, each in found.items()}
    return next(share for share, each in worse.items() if each.mean() <= each.std() / np.sqrt(len(each)))


def blend(start: Weights, learned: Weights, share: float) -> Weights:
    """Returns the weights at a share of the way from the start to what was learned."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in learned.items()
    }

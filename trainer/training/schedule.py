"""In which order faces are learned from, in how large steps, and how much of the earlier weights is kept."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.training.recipe import Recipe

WARM_UP_SHARE: Final = 0.05


def split_into_batches(
    training: NDArray[np.intp], batch_size: int, *, seed: int, epoch: int, least: int = 2
) -> list[NDArray[np.intp]]:
    """Shuffles an epoch's faces and cuts them into batches of nearly equal size.

    Equal sizes weigh all faces alike, and there is no last batch of one face, on which batch normalisation fails.

    Args:
        training: indices, 2 or more.
        batch_size: the most faces in a batch (more where a batch of less than `least` would be left).
        seed: the run's.
        epoch: from 1.
        least: the fewest faces in a batch, where there are as many.

    Returns:
        Batches that hold each index once; the same for the same arguments.
    """
    order = np.random.default_rng((seed, epoch)).permutation(training)
    count = min(-(-len(order) // batch_size), max(1, len(order) // least))
    return np.array_split(order, count)


def learning_rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """Returns the step size for a step, counted from 0 over the whole run of `steps`.

    `cosine` rises for the first twentieth, as the statistics of normalisation settle, and then falls along half a
    cosine (Loshchilov and Hutter, "SGDR", 2017, without restarts).
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warm_up = WARM_UP_SHARE * steps
    if step < warm_up:
        return recipe.learning_rate * (step + 1) / (warm_up + 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def first_candidate(recipe: Recipe) -> int:
    """Returns the first epoch, from 1, whose weights may be kept.

    With `cosine`, steps are large until the middle of the schedule, and the network gains most after it. On few
    validation faces an early epoch may look better by luck: on 30 of them, often the first, which has learned nothing.
    A network that begins from learned weights has learned before the first.
    """
    return recipe.epochs // 2 + 1 if recipe.schedule == "cosine" and recipe.init == "scratch" else 1


def averaging_at(recipe: Recipe, step: int) -> float:
    """Returns the decay of the moving average of the weights for a step, counted from 0 over the whole run.

    It rises to `recipe.averaging`: a run of few steps would otherwise keep the weights that it began with.
    """
    return min(recipe.averaging, (1 + step) / (10 + step))

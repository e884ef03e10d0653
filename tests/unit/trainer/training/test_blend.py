from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.training.blend import SHARES, blend, choose_share

FACES = 400


def losses_of(means: dict[float, float], noise: float) -> dict[float, NDArray[np.float64]]:
    """Returns the losses of faces, of these means; what a share changes differs from face to face by `noise`."""
    rng = np.random.default_rng(0)
    found = {}
    for share in SHARES:
        change = rng.normal(0, noise, FACES)
        found[share] = means[share] + change - change.mean()
    return found


@pytest.mark.parametrize(
    ("means", "noise", "share"),
    [
        ((0.3, 0.3, 0.3, 0.3, 0.3), 0.0, 0.0),
        ((0.30, 0.29, 0.28, 0.27, 0.26), 0.01, 1.0),
        ((0.30, 0.29, 0.28, 0.27, 0.26), 2.0, 0.0),
        ((0.30, 0.26, 0.25, 0.28, 0.33), 0.01, 0.5),
        ((0.30, 0.31, 0.33, 0.36, 0.40), 0.01, 0.0),
    ],
    ids=["nothing learned", "all learned", "learned by chance, perhaps", "the middle is best", "unlearned"],
)
def test_the_least_share_is_chosen_that_is_as_good_as_the_best(
    means: tuple[float, ...], noise: float, share: float
) -> None:
    found = losses_of(dict(zip(SHARES, means, strict=True)), noise)
    assert choose_share(found.__getitem__) == share


def test_weights_lie_between_the_start_and_what_was_learned() -> None:
    start = {"weight": torch.zeros(2), "batches": torch.tensor(3)}
    learned = {"weight": torch.tensor([1.0, -2.0]), "batches": torch.tensor(7)}
    assert blend(start, learned, 0.25)["weight"].tolist() == [0.25, -0.5]
    assert blend(start, learned, 0.0)["weight"].tolist() == [0, 0]
    assert blend(start, learned, 0.25)["batches"] == 7

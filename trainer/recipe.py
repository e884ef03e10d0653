"""The recipe: what a run's parameters leave to us, decided from the number of faces, the device and its speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from shared.params import Network, TrainingParams

FEW_FACES: Final = 2_000
"""Below that a small network learns as well, in a fraction of the time."""
MANY_FACES: Final = 20_000
"""From there on, a GPU's larger steps lose nothing."""
FACES_SHOWN: Final = 200_000
"""What `auto` epochs aim at: training faces shown over the whole run."""
MIN_EPOCHS: Final = 15
MAX_EPOCHS: Final = 40

FULL_SIDE: Final = 128
SMALL_SIDE: Final = 80
"""The side of faces in the epochs before they have their full size."""
SMALL_SHARE: Final = 0.7
"""The share of the epochs that see small faces."""


class Recipe(TrainingParams):
    """Training parameters without any `auto` left: what is actually done."""

    network: Network
    epochs: int
    batch_size: int
    growing: bool

    def fits(self, params: TrainingParams) -> bool:
        """Returns whether this does what the parameters ask for, wherever they do not leave it to us."""
        done = self.as_dict()
        return all(asked in ("auto", done[name]) for name, asked in params.as_dict().items())

    def side(self, epoch: int) -> int:
        """Returns the side of the faces, in pixels, that an epoch, from 1, trains on where the network takes any.

        Small faces cost a fraction of the time, and teach nearly as much while a network is still raw (Touvron et
        al., "Fixing the train-test resolution discrepancy", 2019, on why the last epochs must be of full size).
        """
        return SMALL_SIDE if self.growing and epoch <= int(SMALL_SHARE * self.epochs) else FULL_SIDE

    def cost(self, epoch: int) -> float:
        """Returns what a face costs in an epoch, in faces of full size."""
        return (self.side(epoch) / FULL_SIDE) ** 2


def decide(params: TrainingParams, *, faces: int, device: torch.device, speed: Callable[[Recipe], float]) -> Recipe:
    """Decides everything that the parameters leave to us.

    Args:
        params: what the user chose.
        faces: how many there are to learn from, 1 or more.
        device: where to train.
        speed: measures how many faces of full size a recipe trains on per second; asked only where a budget of time
            is to be kept.
    """
    decided = {
        "network": "small" if faces < FEW_FACES else "compact",
        "batch_size": 256 if device.type == "cuda" and faces >= MANY_FACES else 64 if faces >= FEW_FACES else 32,
        "growing": faces >= FEW_FACES,  # a few hundred steps are too few to get used to another size
        "epochs": min(MAX_EPOCHS, max(MIN_EPOCHS, FACES_SHOWN // faces)),
    }
    asked = params.as_dict()
    left = {name: value for name, value in decided.items() if asked[name] == "auto"}
    recipe = Recipe.model_validate(asked | left)
    if params.budget_s is None or params.epochs != "auto":
        return recipe
    affordable = params.budget_s * speed(recipe) / faces  # epochs of full size
    for epochs in range(recipe.epochs, 1, -1):
        shorter = recipe.model_copy(update={"epochs": epochs})
        if sum(shorter.cost(epoch) for epoch in range(1, epochs + 1)) <= affordable:
            return shorter
    return recipe.model_copy(update={"epochs": 1})

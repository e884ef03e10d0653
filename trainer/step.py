"""What happens in one step: how a batch is shown to the network, and what is learned from it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from trainer.augment import augment
from trainer.recipe import FULL_SIDE, Recipe


def forward(
    objective: nn.Module,
    recipe: Recipe,
    faces: torch.Tensor,
    targets: torch.Tensor,
    side: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what `Objective` says of faces uint8 (n, 1, 128, 128), as this recipe shows them."""
    inputs = shrunk(faces, side)
    if recipe.augment:
        inputs = augment(inputs, generator)
    with torch.autocast(faces.device.type, dtype=torch.bfloat16, enabled=faces.device.type == "cuda"):
        total, loss, correct = objective(inputs, targets)
    return total, loss, correct


def shrunk(faces: torch.Tensor, side: int) -> torch.Tensor:
    """Returns faces uint8 (n, 1, 128, 128) as float32 (n, 1, side, side) in [0, 1]."""
    inputs = faces.float().div_(255)
    if side != FULL_SIDE:
        inputs = functional.interpolate(inputs, size=(side, side), mode="bilinear", antialias=True)
    return inputs


def optimizer_for(objective: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Returns AdamW over all that is trained.

    It decays the weights of layers, not their biases nor the scales of normalisation, which decay would only bend.
    """
    parameters = list(objective.parameters())
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)

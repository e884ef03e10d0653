"""What happens in one step: how a batch is shown to the network, and what is learned from it."""

from __future__ import annotations

import torch
from torch import nn

from trainer.augment import augment
from trainer.model import FaceNetwork
from trainer.recipe import Recipe


def forward(
    objective: nn.Module,
    network: FaceNetwork,
    recipe: Recipe,
    faces: torch.Tensor,
    targets: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what `Objective` says of a batch, shown as the recipe wants it.

    Args:
        objective: an `Objective`, perhaps wrapped for a team.
        network: the one in it.
        recipe: what to do.
        faces: uint8 (n, 1, 128, 128).
        targets: of these faces, as `Objective` takes them.
        generator: decides everything random.
    """
    inputs = network.shrunk(faces.float().div_(255))  # first, so that changing them costs less
    if recipe.augment:
        inputs = augment(inputs, generator)
    with torch.autocast(faces.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        total, loss, correct = objective(inputs, targets)
    return total, loss, correct


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

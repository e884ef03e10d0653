"""The networks that can be trained, by name.

Each reads `faces: float32 (N, 1, 128, 128)` in [0, 1] and gives `logits: float32 (N,)`; the probability that the label
is *female* is the logit's sigmoid, which the loss and the exported graph apply themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIDE: Final = 128


def reference(dropout: float) -> nn.Module:
    """Returns the plain reference network: four unpadded convolutions, each halved by a pool, two dense layers."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (32, 64, 128, 256):  # side 128 → 63 → 30 → 14 → 6
        layers += [_for_relu(nn.Conv2d(channels, width, kernel_size=3)), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        _for_relu(nn.Linear(256 * 6 * 6, 256)),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(256, 1),
        nn.Flatten(0),  # (N, 1) → (N,)
    )


def compact(dropout: float) -> nn.Module:
    """Returns a network of a quarter of the reference's multiply-adds, with normalisation after each convolution.

    It halves the image at once, where the reference spends a third of its work, and learns from far fewer steps.
    """
    return nn.Sequential(
        *_normalised(1, 24, kernel_size=5, stride=2),  # side 128 → 64
        nn.MaxPool2d(2),  # → 32
        *_normalised(24, 48),
        nn.MaxPool2d(2),  # → 16
        *_normalised(48, 96),
        nn.MaxPool2d(2),  # → 8
        *_normalised(96, 128),
        *_normalised(128, 128),
        nn.MaxPool2d(2),  # → 4
        nn.Flatten(),
        _for_relu(nn.Linear(128 * 4 * 4, 128)),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, 1),
        nn.Flatten(0),  # (N, 1) → (N,)
    )


def _normalised(channels: int, width: int, *, kernel_size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Returns a padded convolution with batch normalisation and ReLU."""
    convolution = nn.Conv2d(channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [_for_relu(convolution), nn.BatchNorm2d(width), nn.ReLU()]


def _for_relu(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Draws weights that keep the signal's size through the ReLU; torch's own let it fade layer by layer."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


NETWORKS: Final[dict[str, Callable[[float], nn.Module]]] = {"compact": compact, "reference": reference}
"""What `TrainingParams.network` may name."""


def build_network(name: str, *, dropout: float) -> nn.Module:
    """Builds a network with fresh weights, drawn from torch's global generator.

    Args:
        name: a key of `NETWORKS`.
        dropout: share of the last dense layer's inputs that is dropped while training, in [0, 1).

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; expected one of {', '.join(sorted(NETWORKS))}")
    # Channels last makes the convolutions a third faster on CPU, and suits tensor cores on GPU.
    return NETWORKS[name](dropout).to(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network weighs.

    Attributes:
        parameters: trainable numbers.
        multiply_adds: for one face, in convolutions and dense layers.
    """

    parameters: int
    multiply_adds: int


def cost(network: nn.Module) -> Cost:
    """Counts a network's parameters and multiply-adds; leaves it in the mode it was in."""
    was_training = network.training
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, SIDE, SIDE, device=device))
    network.train(was_training)
    return Cost(
        parameters=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        multiply_adds=counter.get_total_flops() // 2,
    )

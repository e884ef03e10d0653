"""The networks that can be trained, by name.

Each reads `faces: float32 (N, 1, 128, 128)` in [0, 1] and gives `logits: float32 (N,)`; the probability that the label
is *female* is the logit's sigmoid, which the loss and the exported graph apply themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

SIDE: Final = 128
LARGE: Final = ((32, 64, 112, 176, 256), (0, 1, 1, 2))
"""Widths and blocks of the network `large`."""


class FaceNetwork(nn.Module):
    """Convolutions that turn a face into features, and one dense unit that reads the gender off them.

    Args:
        features: faces float32 (N, 1, side, side) → float32 (N, width).
        width: how many features there are.
        dropout: share of the features that is dropped while training, in [0, 1).
        side: of the faces that `features` reads, in pixels; whole faces are shrunk to it first.

    Attributes:
        mirror: whether `forward` gives the mean over each face and its mirror image.
    """

    resize_matrix: torch.Tensor

    def __init__(self, features: nn.Module, width: int, dropout: float, *, side: int = SIDE) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.gender = nn.Linear(width, 1)
        self.width = width
        self.side = side
        self.mirror = False
        # How much each row of a whole face counts in a row of the shrunk one, bilinear and antialiased: two products
        # with it shrink a face wherever the network runs, while few runtimes have an antialiased resize.
        resize_matrix = functional.interpolate(
            torch.eye(SIDE)[None, None], (side, SIDE), mode="bilinear", antialias=True
        )
        self.register_buffer("resize_matrix", resize_matrix[0, 0], persistent=False)

    def shrink(self, faces: torch.Tensor) -> torch.Tensor:
        """Returns faces float32 (N, 1, 128, 128) at the side that `features` reads."""
        return faces if self.side == SIDE else self.resize_matrix @ faces @ self.resize_matrix.T

    def embed(self, faces: torch.Tensor) -> torch.Tensor:
        """Returns the features of faces (N, 1, side, side): float32 (N, width)."""
        embedding: torch.Tensor = self.dropout(self.features(faces))
        return embedding

    def decide(self, embedding: torch.Tensor) -> torch.Tensor:
        """Returns the logits, (N,), for the features that `embed` returns."""
        logits: torch.Tensor = self.gender(embedding)
        return logits.flatten(0)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Returns the logits, (N,), for faces float32 (N, 1, 128, 128): what is evaluated and served."""
        small = self.shrink(faces)
        if not self.mirror:
            return self.decide(self.embed(small))
        return self.decide(self.embed(torch.cat([small, small.flip(-1)]))).view(2, -1).mean(0)


def reference(dropout: float) -> FaceNetwork:
    """Returns the plain reference network: four unpadded convolutions, each halved by a pool, two dense layers."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (32, 64, 128, 256):  # side 128 → 63 → 30 → 14 → 6
        layers += [_init_for_relu(nn.Conv2d(channels, width, kernel_size=3)), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    layers += [nn.Flatten(), _init_for_relu(nn.Linear(256 * 6 * 6, 256)), nn.ReLU()]
    return FaceNetwork(nn.Sequential(*layers), 256, dropout)


def small(dropout: float) -> FaceNetwork:
    """Returns the lightest of the residual family: a tenth of the reference's multiply-adds."""
    return residual((16, 16, 32, 64, 128), (0, 0, 1, 1), dropout)


def compact(dropout: float) -> FaceNetwork:
    """Returns the middle of the residual family: less than a quarter of the reference's multiply-adds."""
    return residual((16, 48, 80, 112, 144), (0, 0, 1, 2), dropout)


def large(dropout: float) -> FaceNetwork:
    """Returns the heaviest of the residual family, of the reference's multiply-adds: for many faces and a GPU."""
    return residual(*LARGE, dropout)


def residual(widths: Sequence[int], blocks: Sequence[int], dropout: float, *, channels: int = 1) -> FaceNetwork:
    """Returns a network of five sides, each half the one before, that spends its work where the image is small.

    The first convolution and pool quarter the image at once, where the reference spends a third of its work; the mean
    over what is left of it makes the features, so that any side from 64 fits.

    Args:
        widths: channels at side 64, 32, 16, 8 and 4; multiples of 16 suit the vector units of CPUs and GPUs.
        blocks: residual blocks (He et al., "Deep Residual Learning", 2016) at side 32, 16, 8 and 4.
        dropout: share of the features that is dropped while training.
        channels: of the faces: 1 in grayscale, 3 in colour.
    """
    layers: list[nn.Module] = [*_conv_bn_relu(channels, widths[0], kernel_size=5, stride=2)]
    for before, width, count in zip(widths, widths[1:], blocks, strict=False):
        layers += [nn.MaxPool2d(2), *_conv_bn_relu(before, width), *(Residual(width) for _ in range(count))]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return FaceNetwork(nn.Sequential(*layers), widths[-1], dropout, side=80)


class Residual(nn.Module):
    """Two convolutions that learn what to add to their input; at first nothing, so that signals pass unharmed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_conv_bn_relu(width, width))
        self.second = nn.Sequential(
            _init_for_relu(nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)), nn.BatchNorm2d(width)
        )
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns maps of the same shape, (N, width, height, width)."""
        return functional.relu(maps + self.second(self.first(maps)))


def _conv_bn_relu(channels: int, width: int, *, kernel_size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Returns a padded convolution with batch normalisation and ReLU."""
    convolution = nn.Conv2d(channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [_init_for_relu(convolution), nn.BatchNorm2d(width), nn.ReLU()]


def _init_for_relu(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Draws weights that keep the signal's size through the ReLU; torch's own let it fade layer by layer."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


NETWORKS: Final[dict[str, Callable[[float], FaceNetwork]]] = {
    "small": small,
    "compact": compact,
    "large": large,
    "reference": reference,
}
"""What `TrainingParams.network` may name, beside `auto`; lightest first, but for the reference."""


def build_network(name: str, *, dropout: float, mirror: bool = False) -> FaceNetwork:
    """Builds a network with fresh weights, drawn from torch's global generator.

    Args:
        name: a key of `NETWORKS`.
        dropout: share of the last dense layer's inputs that is dropped while training, in [0, 1).
        mirror: whether it gives the mean over each face and its mirror image.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; expected one of {', '.join(sorted(NETWORKS))}")
    # Channels last makes the convolutions a third faster on CPU, and suits tensor cores on GPU.
    network = NETWORKS[name](dropout).to(memory_format=torch.channels_last)
    network.mirror = mirror
    return network


@dataclass(frozen=True, slots=True)
class Cost:
    """The size of a network and its work for a face.

    Attributes:
        parameters: trainable numbers.
        multiply_adds: for one face, in convolutions and dense layers.
    """

    parameters: int
    multiply_adds: int


def measure_cost(network: nn.Module) -> Cost:
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

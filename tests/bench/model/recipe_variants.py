"""Ingredients that the recipe could have: what `recipe` trains with and no parameter of a run chooses.

Each is a context manager that changes the code of training for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from shared.faces.labels import UNKNOWN
from trainer.training import model as networks
from trainer.training.augment import augment
from trainer.training.loss import TAUGHT, MultiTaskLoss
from trainer.training.model import NETWORKS, residual

_MIXED: Final = 0.2
_ERASED: Final = (0.15, 0.45)
"""Least and largest side of an erased square, as a share of the face's."""


@contextmanager
def varied(change: dict[str, Any]) -> Iterator[None]:
    """Trains differently for a while.

    Args:
        change: what `recipe.ROWS` says of a row.
    """
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if "temperature" in change:  # of `calibrated_loss`; that of the finished model is fitted as ever
            patch.setattr("trainer.training.calibrate.fit_temperature", lambda *_: change["temperature"])
        if "layers" in change:
            widths, blocks = change["layers"]
            patch.setitem(NETWORKS, "compact", lambda dropout: residual(widths, blocks, dropout))
        if change.get("branches"):
            stack.enter_context(_branched())
        if "changes" in change:
            patch.setattr("trainer.training.step.augment", CHANGES[change["changes"]])
        if change.get("mixup"):
            patch.setattr(MultiTaskLoss, "forward", _mixed_loss)
        yield


def erase_squares(faces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Changes faces as `augment` does, and then erases a square of every second one (Zhong et al., "Random erasing
    data augmentation", 2020).

    Args and returns: as `augment`.
    """
    changed = augment(faces, generator)
    side = faces.shape[-1]
    chosen, size, left, top = torch.rand(4, len(faces), 1, generator=generator, device=faces.device)
    length = side * (_ERASED[0] + (_ERASED[1] - _ERASED[0]) * size)
    at = torch.arange(side, device=faces.device)
    rows, columns = ((at >= (side - length) * start) & (at < (side - length) * start + length) for start in (top, left))
    erased = (rows[:, :, None] & columns[:, None, :] & (chosen < 0.5)[:, :, None])[:, None]
    return torch.where(erased, changed.mean(dim=(1, 2, 3), keepdim=True), changed)


def trivially(faces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirrors every second face, and changes each by one of torchvision's operations, at random (Müller and Hutter,
    "TrivialAugment", 2021), in place of what `augment` does.

    Args and returns: as `augment`. What torchvision draws comes from torch's own generator, which is seeded as well.
    """
    transform = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    mirrored = torch.rand(len(faces), generator=generator, device=faces.device) < 0.5
    whole = (faces * 255).round().to(torch.uint8)
    return (
        torch.stack(
            [transform(face.flip(-1) if mirror else face) for face, mirror in zip(whole, mirrored, strict=True)]
        )
        .to(faces.dtype)
        .div_(255)
    )


CHANGES: Final[dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]]] = {
    "erasing": erase_squares,
    "trivial": trivially,
}


def _mixed_loss(
    self: MultiTaskLoss, faces: torch.Tensor, targets: torch.Tensor, taught: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`MultiTaskLoss.forward` for faces of which each is mixed with another of its batch, and their targets with them
    (Zhang et al., "mixup", 2018). Genders count alike."""
    share = torch.distributions.Beta(_MIXED, _MIXED).sample().to(faces)
    faces = faces.lerp(faces.roll(1, 0), share)
    female = targets[:, 0].float()
    wanted = female if taught is None else female.lerp(taught, TAUGHT)
    wanted = wanted.lerp(wanted.roll(1, 0), share)
    embedding = self.network.embed(faces)
    logits = self.network.decide(embedding).float()
    total = loss = functional.binary_cross_entropy_with_logits(logits, wanted)
    for head, classes in zip(self.heads, targets.T[1:], strict=False):
        predicted = head(embedding).float()
        for weight, these in ((1 - share, classes), (share, classes.roll(1, 0))):
            losses = functional.cross_entropy(predicted, these, ignore_index=UNKNOWN, reduction="sum")
            total = total + weight * self.auxiliary * losses / (these != UNKNOWN).sum().clamp(min=1)
    return total, loss.detach(), ((logits.detach() >= 0) == (female > 0.5)).sum()


class _Branches(nn.Module):
    """A convolution of 3 by 3 beside one of 1 by 1 and, where the channels stay, the input itself, each normalised.

    Once they are trained, the three can be added up into one convolution of 3 by 3 (Ding et al., "RepVGG", 2021).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width))
            for size in (3, 1)
        )
        if channels == width:
            self.branches.append(nn.BatchNorm2d(width))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the branches."""
        return torch.stack([branch(maps) for branch in self.branches]).sum(0)


@contextmanager
def _branched() -> Iterator[None]:
    """Builds networks with branches in place of each 3 by 3 convolution that a ReLU follows."""
    plain = networks._conv_bn_relu

    def build(channels: int, width: int, *, kernel_size: int = 3, stride: int = 1) -> list[nn.Module]:
        if kernel_size != 3:
            return plain(channels, width, kernel_size=kernel_size, stride=stride)
        return [_Branches(channels, width), nn.ReLU()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "_conv_bn_relu", build)
        yield

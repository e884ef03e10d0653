"""The teacher: a network that is too slow to be served, which sees in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared.archives.archive import Archive, ArchiveLimits
from shared.records.dataset import FaceRow
from trainer.training.model import FaceNetwork, Residual

SIDE: Final = 96
_STEM: Final = 8
_STRIDE: Final = 4
_WIDTHS: Final = (48, 96, 192, 320)
_BLOCKS: Final = (1, 2, 2, 1)
"""Channels and residual blocks at sides 24, 12, 6 and 3. The first convolution quarters the image at once: on a CPU the
wide maps of a finer one would take most of the time."""


def build_teacher(dropout: float) -> FaceNetwork:
    """Returns the teacher, which reads colour faces float32 (N, 3, `SIDE`, `SIDE`) in [0, 1] through `embed`."""
    layers: list[nn.Module] = []
    before, kernel, stride, padding = 3, _STEM, _STRIDE, (_STEM - _STRIDE) // 2
    for width, blocks in zip(_WIDTHS, _BLOCKS, strict=True):
        layers += [
            nn.Conv2d(before, width, kernel, stride, padding=padding, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *(Residual(width) for _ in range(blocks)),
        ]
        before, kernel, stride, padding = width, 2, 2, 0
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return FaceNetwork(nn.Sequential(*layers), before, dropout).to(memory_format=torch.channels_last)


def decode_colour(path: Path, rows: list[FaceRow], limits: ArchiveLimits) -> NDArray[np.uint8]:
    """Decodes an archive's faces in colour: uint8 (N, 3, `SIDE`, `SIDE`), in the order of `rows`."""
    faces = np.empty((len(rows), 3, SIDE, SIDE), np.uint8)
    with Archive(path, limits) as archive:
        entries = {entry.name: entry for entry in archive.entries}
        for row, face in zip(rows, faces, strict=True):
            pixels = cv2.imdecode(np.frombuffer(archive.read(entries[row.name]), np.uint8), cv2.IMREAD_COLOR)
            if pixels is None:
                raise ValueError(f"{row.name} decodes in grey, but not in colour")
            face[:] = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    return faces

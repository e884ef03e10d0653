"""The teacher: the network `large` in colour, too slow to be served."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from shared.archives.archive import Archive, ArchiveLimits
from shared.records.dataset import FaceRow
from trainer.training.model import LARGE, SIDE, FaceNetwork, residual

LUMA: Final = (0.114, 0.587, 0.299)
"""What blue, green and red count in grayscale (ITU-R BT.601, as JPEG has it)."""


def build_teacher(dropout: float) -> FaceNetwork:
    """Returns the teacher, which reads colour faces float32 (N, 3, side, side) in [0, 1] through `embed`."""
    return residual(*LARGE, dropout, channels=len(LUMA)).to(memory_format=torch.channels_last)


def to_grey(faces: torch.Tensor) -> torch.Tensor:
    """Returns colour faces (N, 3, side, side), blue first, in grayscale: (N, 1, side, side)."""
    return (faces * faces.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def decode_colour(path: Path, rows: list[FaceRow], limits: ArchiveLimits) -> NDArray[np.uint8]:
    """Decodes an archive's faces in colour: uint8 (N, 3, 128, 128), blue first, in the order of `rows`."""
    faces = np.empty((len(rows), len(LUMA), SIDE, SIDE), np.uint8)
    with Archive(path, limits) as archive:
        entries = {entry.name: entry for entry in archive.entries}
        for row, face in zip(rows, faces, strict=True):
            pixels = cv2.imdecode(np.frombuffer(archive.read(entries[row.name]), np.uint8), cv2.IMREAD_COLOR)
            if pixels is None:
                raise ValueError(f"{row.name} decodes in grey, but not in colour")
            face[:] = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    return faces

"""The teacher: the network `large` in colour, too slow to be served."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from shared.archives.archive import Archive, ArchiveLimits
from shared.archives.entry import Entry
from shared.errors import InvalidImage
from shared.faces.decode import ImageLimits, decode_face
from trainer.data.dataset import Dataset
from trainer.training.model import LARGE, SIDE, FaceNetwork, residual

LUMA: Final = (0.114, 0.587, 0.299)
"""What blue, green and red count in grayscale (ITU-R BT.601, as JPEG has it)."""


def build_teacher(dropout: float) -> FaceNetwork:
    """Returns the teacher, which reads colour faces float32 (N, 3, side, side) in [0, 1] through `embed`."""
    return residual(*LARGE, dropout, channels=len(LUMA)).to(memory_format=torch.channels_last)


def to_grey(faces: torch.Tensor) -> torch.Tensor:
    """Returns colour faces (N, 3, side, side), blue first, in grayscale: (N, 1, side, side)."""
    return (faces * faces.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def decode_colour(path: Path, dataset: Dataset, limits: ArchiveLimits, image_limits: ImageLimits) -> NDArray[np.uint8]:
    """Decodes an archive's faces in colour: uint8 (N, 3, 128, 128), blue first, in the order of the dataset's rows."""
    faces = np.empty((len(dataset.rows), len(LUMA), SIDE, SIDE), np.uint8)
    with Archive(path, limits) as archive:
        entries: dict[str, list[Entry]] = {}
        for entry in archive.entries:
            entries.setdefault(entry.name, []).append(entry)
        for row, decoded, face in zip(dataset.rows, dataset.faces, faces, strict=True):
            data = _read(archive, entries[row.name], decoded, image_limits)
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if pixels is None:
                raise ValueError(f"{row.name} decodes in grey, but not in colour")
            height, width = pixels.shape[:2]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            square = pixels[top : top + side, left : left + side]
            face[:] = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    return faces


def _read(archive: Archive, entries: list[Entry], face: NDArray[np.uint8], limits: ImageLimits) -> bytes:
    """Returns the bytes that a face was decoded from, which is one of the entries of its name."""
    if len(entries) == 1:
        return archive.read(entries[0])
    for entry in entries:
        with suppress(InvalidImage):
            data = archive.read(entry)
            if np.array_equal(decode_face(data, limits).pixels, face):
                return data
    raise ValueError(f"none of the {len(entries)} entries named {entries[0].name} is the face that was decoded")

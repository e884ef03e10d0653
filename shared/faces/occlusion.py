"""The copies of a face that explain its prediction: a gray patch covers each of them at another place."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.faces.decode import SIZE

GRID: Final = 15
_PATCH: Final = 28
_FILL: Final = 128  # mid-gray: neither a light nor a dark mark


def make_occlusions(face: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Returns the face with a gray patch at each of `GRID` x `GRID` places, row by row.

    Args:
        face: uint8 (128, 128), luma.
    """
    middles = np.linspace(0, SIZE, 2 * GRID + 1)[1::2]
    found = []
    for y in middles:
        for x in middles:
            top, left = max(0, round(y - _PATCH / 2)), max(0, round(x - _PATCH / 2))
            covered = face.copy()
            covered[top : round(y + _PATCH / 2), left : round(x + _PATCH / 2)] = _FILL
            found.append(covered)
    return found

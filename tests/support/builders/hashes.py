"""Perceptual hashes of faces that nobody has drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def with_mirrored(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns what `dhash_mirrored` gives, uint64 (N, 2, 2), where no two cells are as bright.

    Args:
        hashes: uint64 (N, 2), as of `dhash`.
    """
    # A byte is a row of cells. Mirrored, its bits come in reverse; along rows, brighter becomes darker as well.
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 2, 8, 1), axis=3)[..., ::-1].copy()
    bits[:, 0] ^= 1
    mirrored = np.packbits(bits, axis=3).reshape(-1, 2, 8).view(np.uint64)[..., 0]
    return np.stack([hashes, mirrored], axis=1)

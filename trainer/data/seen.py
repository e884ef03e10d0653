"""Faces that the starter has seen train: a figure measured on them would flatter every model that began from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.near_duplicates import near_any

SEEN: Final = Path(__file__).parents[1] / "weights" / "starter_seen.npy"
"""Perceptual hashes, uint64 (N, 2), of `dhash`, of the faces that the starter was trained on."""
MOST_SEEN: Final = 0.5
"""The share of seen faces up to which all of them train: above it, too few would be left to validate and test."""


def find_seen(hashes: NDArray[np.uint64], known: NDArray[np.uint64] | None = None) -> NDArray[np.bool_]:
    """Returns which faces, or their mirror images, look like one of `known`: bool (N,).

    Args:
        hashes: uint64 (N, 2, 2), of `dhash_mirrored`, of the faces.
        known: uint64 (M, 2), of `dhash`; None is of those that the starter was trained on.
    """
    known = np.load(SEEN, allow_pickle=False) if known is None else known
    own, mirrored = near_any(hashes.reshape(-1, 2), known).reshape(-1, 2).T
    return own | mirrored


def read_seen(data: bytes) -> NDArray[np.uint64]:
    """Reads hashes as `SEEN` holds them: uint64 (N, 2); executes nothing from them.

    Raises:
        ValueError: it is something else.
    """
    try:
        found: NDArray[np.uint64] = np.load(io.BytesIO(data), allow_pickle=False)
    except EOFError as error:
        raise ValueError(str(error)) from None
    if found.dtype != np.uint64 or found.shape[1:] != (2,):
        raise ValueError(f"found {found.dtype} {found.shape}, expected uint64 (N, 2)")
    return found


def choose_seen(groups: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Returns which faces must train, since the starter has seen them or a near-duplicate of theirs: bool (N,).

    None must where more than `MOST_SEEN` were seen; the starter is not used for these.

    Args:
        groups: int64 (N,), of `near_duplicates`.
        hashes: uint64 (N, 2, 2), of `dhash_mirrored`.
    """
    seen = np.isin(groups, groups[find_seen(hashes)])
    return seen if seen.mean() <= MOST_SEEN else np.zeros_like(seen)

"""Faces that the starter has seen train: a figure measured on them would flatter every model that began from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.records.dataset import Split
from trainer.data.near_duplicates import near_any

SEEN: Final = Path(__file__).parents[1] / "weights" / "starter_seen.npy"
"""Perceptual hashes, uint64 (N, 2), of `dhash`, of the faces that the starter was trained on."""
MOST_SEEN: Final = 0.5
"""The share of seen faces among the held-out ones up to which they train instead: above it, too few would be left."""


def find_seen(hashes: NDArray[np.uint64], known: NDArray[np.uint64] | None = None) -> NDArray[np.bool_]:
    """Returns which faces look like one of `known`, by their hashes of `dhash`: bool (N,).

    Args:
        hashes: uint64 (N, 2), of the faces.
        known: uint64 (M, 2); None is of those that the starter was trained on.
    """
    return near_any(hashes, np.load(SEEN, allow_pickle=False) if known is None else known)


def train_on_seen(parts: Sequence[Split], groups: NDArray[np.int64], hashes: NDArray[np.uint64]) -> list[Split]:
    """Moves the faces that the starter has seen to the training part, and with them their near-duplicates.

    Args:
        parts: of the N faces, from `split`.
        groups: int64 (N,), of `near_duplicates`.
        hashes: uint64 (N, 2), of `dhash`.

    Returns:
        The part of each face; `parts` as they are where more than `MOST_SEEN` of the faces outside of the training part
        were seen. The starter is not used for these.
    """
    held_out = np.flatnonzero([part != "train" for part in parts])
    seen = find_seen(hashes[held_out])
    if seen.mean() > MOST_SEEN:
        return list(parts)
    moved = np.isin(groups, groups[held_out[seen]])
    return ["train" if move else part for part, move in zip(parts, moved.tolist(), strict=True)]

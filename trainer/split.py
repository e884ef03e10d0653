"""Which faces train, validate and test: fixed by what the images show, so that no figure flatters itself.

Faces that look the same, such as two sizes of one photo, always share a part; otherwise the network would be examined
on what it has learned by heart. The rest is stratified by gender, ethnicity and age band. Neither names nor the order
in the archive matter, so the same images always give the same split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.dataset import SPLITS, Split, age_band
from shared.labels import Label

SHARES: Final[dict[Split, float]] = {"train": 0.7, "validation": 0.1, "test": 0.2}

# Verified on 9,000 distinct real faces, 40 million pairs: no two come this near in both directions (of the 188 pairs
# within 3 bits horizontally, the nearest is 7 bits apart vertically), while 98 of 100 faces stay this near to a copy of
# themselves that was scaled, made brighter, saved again at JPEG quality 50, or given noise.
MAX_HORIZONTAL_BITS: Final = 3
MAX_VERTICAL_BITS: Final = 5

_BANDS: Final = 4  # one more than `MAX_HORIZONTAL_BITS`: hashes that near agree in at least one band
_BAND_BITS: Final = 64 // _BANDS
_LARGE_GROUP: Final = 0.01  # of all faces


def look_hashes(faces: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hashes what faces look like: near hashes, near looks.

    Args:
        faces: uint8 (N, 128, 128), luma, 1 or more; a few dozen at once take half as long as one by one.

    Returns:
        uint64 (N, 2): the difference hashes (dHash) along rows and along columns: for each of 8x8 cells, whether it is
        brighter than the one before.
    """
    count = len(faces)
    # All of them as one tall or wide image: no block that is averaged reaches into another face. A whole factor is
    # quick; the other two are not.
    small = cv2.resize(faces.reshape(count * 128, 128), (16, count * 16), interpolation=cv2.INTER_AREA)
    rows = cv2.resize(small, (9, count * 8), interpolation=cv2.INTER_AREA).reshape(count, 8, 9)
    wide = np.ascontiguousarray(small.reshape(count, 16, 16).transpose(1, 0, 2)).reshape(16, count * 16)
    columns = cv2.resize(wide, (count * 8, 9), interpolation=cv2.INTER_AREA).reshape(9, count, 8).transpose(1, 0, 2)
    bits = np.stack([rows[:, :, 1:] > rows[:, :, :-1], columns[:, 1:] > columns[:, :-1]], axis=1)
    return np.packbits(bits.reshape(count, 2, 64), axis=2).view(np.uint64).reshape(count, 2)


def near_duplicates(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Groups faces that look the same, directly or through others that look like both.

    Args:
        hashes: uint64 (N, 2), of `look_hashes`.

    Returns:
        int64 (N,): each face's group; faces of one group share the number, which is one of their indices.
    """
    # Equal hashes first: a thousand copies of one face must not become half a million pairs.
    distinct, where = np.unique(hashes, axis=0, return_inverse=True)
    parents = np.arange(len(distinct))
    for left, right in _near_pairs(distinct):
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            _join(parents, a, b)
    roots = np.array([_root(parents, index) for index in range(len(distinct))], np.int64)[where.reshape(-1)]
    _, first, group = np.unique(roots, return_index=True, return_inverse=True)
    return first[group].astype(np.int64)


def _near_pairs(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields the pairs of near hashes, as arrays of their indices; some more than once.

    Only hashes that agree in one of four bands are compared. A band takes every fourth bit: neighbouring bits tend to
    agree on all faces, and bands made of those would hold everyone.
    """
    bits = np.unpackbits(hashes[:, :1].copy().view(np.uint8), axis=1)
    for band in range(_BANDS):
        keys = np.packbits(bits[:, band::_BANDS], axis=1).view(np.uint16)[:, 0]
        order = np.argsort(keys, kind="stable")
        _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        # Each hash in a bucket of n meets those after it: distance 1, 2, … n-1 along `order`.
        ends = np.repeat(starts + counts, counts)
        left = np.arange(len(order))
        for step in range(1, int(counts.max(initial=1))):
            left = left[left + step < ends[left]]
            a, b = order[left], order[left + step]
            apart = np.bitwise_count(hashes[a] ^ hashes[b])
            near = (apart[:, 0] <= MAX_HORIZONTAL_BITS) & (apart[:, 1] <= MAX_VERTICAL_BITS)
            if near.any():
                yield a[near], b[near]


def _root(parents: NDArray[np.int64], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = int(parents[index])
    return index


def _join(parents: NDArray[np.int64], a: int, b: int) -> None:
    parents[_root(parents, a)] = _root(parents, b)


def split(labels: Sequence[Label], digests: Sequence[bytes], groups: NDArray[np.int64]) -> list[Split]:
    """Assigns 70 % of the faces to train, 10 % to validation and 20 % to test.

    Args:
        labels: of the N faces.
        digests: of their pixels, all different; they alone decide between faces of the same label.
        groups: int64 (N,), of `near_duplicates`; a group always stays together.

    Returns:
        The part of each face. Each gender with three groups or more is in every part; each stratum of gender, ethnicity
        and age band has its shares within one or two faces, and what is left over goes to its neighbour, so that
        small strata balance each other.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    units = [sorted(unit, key=digests.__getitem__) for unit in members.values()]
    large = max(2, int(_LARGE_GROUP * len(labels)))

    def place(unit: list[int]) -> tuple[int, bool, int, int, bytes]:
        label = labels[unit[0]]
        # Large groups come first, and so train: as examination questions they would be one, asked many times.
        return label.gender, len(unit) <= large, label.ethnicity, age_band(label.age), digests[unit[0]]

    parts: list[Split] = ["train"] * len(labels)
    counts: dict[int, dict[Split, int]] = {}
    for unit in sorted(units, key=place):
        placed = counts.setdefault(labels[unit[0]].gender, dict.fromkeys(SPLITS, 0))
        part: Split = "train" if len(unit) > large else _most_wanting(placed)
        placed[part] += len(unit)
        for index in unit:
            parts[index] = part
    return parts


def _most_wanting(counts: dict[Split, int]) -> Split:
    """Returns the part that the next face belongs to: an empty one, else the one that is furthest behind its share."""
    total = sum(counts.values()) + 1
    empty = [part for part in SPLITS if not counts[part]]
    return empty[0] if empty else max(SPLITS, key=lambda part: SHARES[part] * total - counts[part])

"""Which faces look the same: a perceptual hash of each, and the groups that near hashes form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

# Verified on 9,000 distinct real faces, 40 million pairs: no two come this near in both directions (of the 188 pairs
# within 3 bits horizontally, the nearest is 7 bits apart vertically), while 98 of 100 faces stay this near to a copy of
# themselves that was scaled, made brighter, saved again at JPEG quality 50, or given noise. Of the same pairs, with one
# face mirrored, 196 are within 3 bits horizontally; one of them is 5 bits apart vertically, the next is 9.
MAX_HORIZONTAL_BITS: Final = 3
MAX_VERTICAL_BITS: Final = 5

_BANDS: Final = 4  # one more than `MAX_HORIZONTAL_BITS`: hashes that near agree in at least one band
_BAND_BITS: Final = 64 // _BANDS
_COMPARED_AT_ONCE: Final = 2_000_000
"""Pairs, about, between two questions whether to go on: some dozens of milliseconds."""
_JOINED: Final = 20
"""For how many pairs one counts that is near, and joined: it costs as much."""

_CHUNK: Final = 64
"""Faces that are hashed at once."""


def dhash(faces: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hashes what faces look like: near hashes, near looks.

    Args:
        faces: uint8 (N, 128, 128), luma, 1 or more; a few dozen at once take half as long as one by one.

    Returns:
        uint64 (N, 2): the difference hashes (dHash) along rows and along columns: for each of 8x8 cells, whether it is
        brighter than the one before.
    """
    return _compare_cells(_shrink(faces))


def dhash_mirrored(faces: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns `dhash` of faces and of their mirror images, which networks answer alike: uint64 (N, 2, 2).

    The second cannot be told from the first: where two cells are as bright, neither is brighter in either of them.

    Args:
        faces: as above.
    """
    small = _shrink(faces)
    return np.stack([_compare_cells(small), _compare_cells(np.ascontiguousarray(small[:, :, ::-1]))], axis=1)


def _shrink(faces: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns faces of 16x16 pixels, uint8 (N, 16, 16): a whole factor is quick, and mirrors to the pixel."""
    # All of them as one tall image: no block that is averaged reaches into another face.
    tall = cv2.resize(faces.reshape(-1, 128), (16, len(faces) * 16), interpolation=cv2.INTER_AREA)
    return tall.reshape(-1, 16, 16).astype(np.uint8, copy=False)


def _compare_cells(small: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns which of 8x8 cells are brighter than the one before, uint64 (N, 2), of faces of 16x16 pixels."""
    count = len(small)
    rows = cv2.resize(small.reshape(-1, 16), (9, count * 8), interpolation=cv2.INTER_AREA).reshape(count, 8, 9)
    wide = np.ascontiguousarray(small.transpose(1, 0, 2)).reshape(16, count * 16)
    columns = cv2.resize(wide, (count * 8, 9), interpolation=cv2.INTER_AREA).reshape(9, count, 8).transpose(1, 0, 2)
    bits = np.stack([rows[:, :, 1:] > rows[:, :, :-1], columns[:, 1:] > columns[:, :-1]], axis=1)
    return np.packbits(bits.reshape(count, 2, 64), axis=2).view(np.uint64).reshape(count, 2)


def dhash_all(
    faces: NDArray[np.uint8], indices: NDArray[np.intp], check_cancelled: Callable[[], None] = lambda: None
) -> NDArray[np.uint64]:
    """Returns `dhash_mirrored` of any number of faces, uint64 (n, 2, 2), with no more than a few dozen in memory.

    Args:
        faces: uint8 (N, 128, 128), perhaps mapped from a file.
        indices: of those to hash, (n,).
        check_cancelled: called several times a second; what it raises ends the work.
    """
    hashes = [np.zeros((0, 2, 2), np.uint64)]
    for start in range(0, len(indices), _CHUNK):
        check_cancelled()
        hashes.append(dhash_mirrored(np.array(faces[indices[start : start + _CHUNK]])))
    return np.concatenate(hashes)


def near_duplicates(
    hashes: NDArray[np.uint64], check_cancelled: Callable[[], None] = lambda: None
) -> NDArray[np.int64]:
    """Groups faces that look the same or like mirror images, directly or through others that look like both.

    Args:
        hashes: uint64 (N, 2, 2), of `dhash_mirrored`.
        check_cancelled: called several times a second; what it raises ends the work. Ten thousand faces take a moment;
            as many drawings that look nearly the same, or differ in one direction alone, take up to a minute,
            and the time grows by the square of their number.

    Returns:
        int64 (N,): each face's group; faces of one group share the number, which is one of their indices.
    """
    # Equal hashes first: a thousand copies of one face must not become half a million pairs.
    distinct, where = _distinct(hashes.reshape(-1, 2))
    own, mirrored = where.reshape(-1, 2).T
    parents = np.arange(len(distinct))
    for left, right in chain([(own, mirrored)], _near_pairs(distinct, check_cancelled)):
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            _join(parents, a, b)
    while (parents != (roots := parents[parents])).any():
        parents = roots
    _, first, group = np.unique(roots[own], return_index=True, return_inverse=True)
    return first[group].astype(np.int64)


def near_any(hashes: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Returns which hashes are near any of the others, bool (N,).

    Args:
        hashes: uint64 (N, 2), of `dhash`.
        others: uint64 (M, 2), the same.
    """
    near = np.zeros(len(hashes), bool)
    for keys, other_keys in zip(_band_keys(hashes), _band_keys(others), strict=True):
        order = np.argsort(other_keys, kind="stable")
        ends_by_key = np.bincount(other_keys, minlength=1 << _BAND_BITS).cumsum()
        ends = ends_by_key[keys]
        starts = np.where(keys == 0, 0, ends_by_key[keys - 1])  # of key 0, the index wraps to one that is not taken
        # As for pairs within one set: each hash meets the first, second, … of those that share its band.
        left = np.flatnonzero(~near & (starts < ends))
        step = 0
        while len(left):
            apart = np.bitwise_count(hashes[left] ^ others[order[starts[left] + step]])
            near[left[(apart[:, 0] <= MAX_HORIZONTAL_BITS) & (apart[:, 1] <= MAX_VERTICAL_BITS)]] = True
            step += 1
            left = left[~near[left] & (starts[left] + step < ends[left])]
    return near


def _distinct(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """Returns the hashes without copies, and each one's index into these: a quicker `np.unique`."""
    order = np.lexsort(hashes.T[::-1])
    ordered = hashes[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    where = np.empty(len(hashes), np.intp)
    where[order] = np.cumsum(new) - 1
    return ordered[new], where


def _near_pairs(
    hashes: NDArray[np.uint64], check_cancelled: Callable[[], None]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields the pairs of near hashes, as arrays of their indices; some more than once.

    Only hashes that agree in one of four bands are compared. A band takes every fourth bit: neighbouring bits tend to
    agree on all faces, and bands made of those would hold everyone.
    """
    compared = 0
    for keys in _band_keys(hashes):
        order = np.argsort(keys, kind="stable")
        _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        # Each hash in a bucket of n meets those after it: distance 1, 2, … n-1 along `order`.
        ends = np.repeat(starts + counts, counts)
        left = np.arange(len(order))
        horizontal = hashes[order, 0]  # in order: hashes that are compared lie near each other in memory
        for step in range(1, int(counts.max(initial=1))):
            left = left[left + step < ends[left]]
            if compared >= _COMPARED_AT_ONCE:
                compared = 0
                check_cancelled()
            apart = np.bitwise_count(horizontal[left] ^ horizontal[left + step])
            near = left[apart <= MAX_HORIZONTAL_BITS]  # few: their other direction costs little
            a, b = order[near], order[near + step]
            both = np.bitwise_count(hashes[a, 1] ^ hashes[b, 1]) <= MAX_VERTICAL_BITS
            compared += len(left) + _JOINED * int(both.sum())
            if both.any():
                yield a[both], b[both]


def _band_keys(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.uint16]]:
    """Yields the bits of each band, uint16 (N,)."""
    bits = np.unpackbits(hashes[:, :1].copy().view(np.uint8), axis=1)
    for band in range(_BANDS):
        yield np.packbits(bits[:, band::_BANDS], axis=1).view(np.uint16)[:, 0]


def _root(parents: NDArray[np.int64], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = int(parents[index])
    return index


def _join(parents: NDArray[np.int64], a: int, b: int) -> None:
    parents[_root(parents, a)] = _root(parents, b)

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.records.dataset import Split
from trainer.data import seen
from trainer.data.near_duplicates import near_any, near_duplicates
from trainer.data.seen import find_seen, train_on_seen


def hashes(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), np.uint64, endpoint=False)


def flipped(values: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Returns hashes that differ in so many bits of the horizontal part."""
    return values ^ np.array([[(1 << bits) - 1, 0]], np.uint64)


def parts_of(*, train: int, validation: int, test: int) -> list[Split]:
    counts: dict[Split, int] = {"train": train, "validation": validation, "test": test}
    return [part for part, count in counts.items() for _ in range(count)]


@pytest.fixture
def starter_hashes(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint64]:
    path = tmp_path_factory.mktemp("starter") / "seen.npy"
    known = hashes(500, seed=1)
    np.save(path, known)
    monkeypatch.setattr(seen, "SEEN", path)
    return known


@pytest.mark.parametrize(("bits", "expected"), [(0, True), (3, True), (4, False)])
def test_a_face_was_seen_where_its_hash_is_as_near_as_a_near_duplicates(
    bits: int, expected: bool, starter_hashes: NDArray[np.uint64]
) -> None:
    assert find_seen(flipped(starter_hashes[:100], bits)).tolist() == [expected] * 100
    assert not find_seen(hashes(100)).any()


def test_near_any_finds_the_pairs_that_grouping_both_sets_finds() -> None:
    # Few distinct bits: many share a band and are near, or nearly so.
    random = np.random.default_rng(3)
    values = random.integers(0, 2**5, (400, 2)).astype(np.uint64) << np.uint64(30)
    known, asked = values[:200], values[200:]
    apart = np.bitwise_count(asked[:, None] ^ known[None])
    expected = ((apart[..., 0] <= 3) & (apart[..., 1] <= 5)).any(axis=1)
    assert near_any(asked, known).tolist() == expected.tolist()


def test_seen_faces_of_the_held_out_parts_train_with_their_near_duplicates(starter_hashes: NDArray[np.uint64]) -> None:
    values = hashes(10)
    values[8] = starter_hashes[0]  # seen, and held out
    values[9] = flipped(starter_hashes[:1], 2)[0]  # its near-duplicate
    parts = parts_of(train=4, validation=2, test=4)
    moved = train_on_seen(parts, near_duplicates(values), values)
    assert moved == [*parts[:8], "train", "train"]


def test_where_most_were_seen_the_parts_stay(starter_hashes: NDArray[np.uint64]) -> None:
    parts = parts_of(train=7, validation=1, test=2)
    values = starter_hashes[:10]
    assert train_on_seen(parts, near_duplicates(values), values) == parts

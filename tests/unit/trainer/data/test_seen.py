from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.faces.labels import Label
from tests.support.builders.hashes import with_mirrored
from trainer.data import seen
from trainer.data.near_duplicates import near_any, near_duplicates
from trainer.data.seen import choose_seen, find_seen
from trainer.data.split import split


def hashes(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), np.uint64, endpoint=False)


def flipped(values: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Returns hashes that differ in so many bits of the horizontal part."""
    return values ^ np.array([[(1 << bits) - 1, 0]], np.uint64)


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
    asked = with_mirrored(flipped(starter_hashes[:100], bits))
    assert find_seen(asked).tolist() == [expected] * 100
    assert find_seen(asked[:, ::-1]).tolist() == [expected] * 100  # the mirror images were seen
    assert not find_seen(with_mirrored(hashes(100))).any()


def test_near_any_finds_the_pairs_that_grouping_both_sets_finds() -> None:
    # Few distinct bits: many share a band and are near, or nearly so.
    random = np.random.default_rng(3)
    values = random.integers(0, 2**5, (400, 2)).astype(np.uint64) << np.uint64(30)
    known, asked = values[:200], values[200:]
    apart = np.bitwise_count(asked[:, None] ^ known[None])
    expected = ((apart[..., 0] <= 3) & (apart[..., 1] <= 5)).any(axis=1)
    assert near_any(asked, known).tolist() == expected.tolist()


def test_seen_faces_must_train_and_their_near_duplicates_with_them(starter_hashes: NDArray[np.uint64]) -> None:
    values = hashes(10)
    values[8] = starter_hashes[0]
    values[9] = flipped(starter_hashes[:1], 2)[0]  # a near-duplicate of the face before
    both = with_mirrored(values)
    assert np.flatnonzero(choose_seen(near_duplicates(both), both)).tolist() == [8, 9]


def test_where_most_were_seen_none_must_train(starter_hashes: NDArray[np.uint64]) -> None:
    values = with_mirrored(np.concatenate([starter_hashes[:6], hashes(4)]))
    assert not choose_seen(near_duplicates(values), values).any()


@pytest.mark.parametrize("count", [24, 60, 300])
def test_what_was_seen_trains_and_all_parts_keep_their_shares_and_both_genders(
    count: int, starter_hashes: NDArray[np.uint64]
) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        values = hashes(count, seed=seed + 10)
        known = random.random(count) < 0.34
        values[known] = starter_hashes[random.choice(500, int(known.sum()), replace=False)]
        labels = [Label(int(random.integers(90)), i % 2, int(random.integers(5))) for i in range(count)]
        both = with_mirrored(values)
        groups = near_duplicates(both)
        seen = choose_seen(groups, both)
        parts = split(labels, [random.bytes(32) for _ in labels], groups, seen)
        assert {part for part, was_seen in zip(parts, seen, strict=True) if was_seen} == {"train"}
        assert {(label.gender, part) for label, part in zip(labels, parts, strict=True)} == {
            (gender, part) for gender in (0, 1) for part in ("train", "validation", "test")
        }
        assert abs(parts.count("test") - 0.2 * count) <= max(2, 0.05 * count)
        assert abs(parts.count("validation") - 0.1 * count) <= max(2, 0.05 * count)

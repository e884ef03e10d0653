from __future__ import annotations

import hashlib
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.faces.decode import ImageLimits, decode_face
from shared.faces.labels import Label
from shared.records.dataset import SPLITS, Split, age_band
from tests.support.builders.archives import face_jpeg
from tests.support.builders.hashes import with_mirrored
from trainer.data.near_duplicates import (
    MAX_HORIZONTAL_BITS,
    MAX_VERTICAL_BITS,
    dhash,
    dhash_mirrored,
    near_duplicates,
)
from trainer.data.split import SHARES, split

LABELS = st.builds(Label, st.integers(0, 120), st.integers(0, 1), st.integers(0, 4))


def digests(count: int) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(count)]


def alone(count: int) -> NDArray[np.int64]:
    return np.arange(count)


def face(seed: int) -> NDArray[np.uint8]:
    return decode_face(face_jpeg(seed), ImageLimits(1 << 20, 1 << 20)).pixels


def saved_again(original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    data = cv2.imencode(".jpg", original, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    return decode_face(data, ImageLimits(1 << 20, 1 << 20)).pixels


def test_a_face_has_the_same_hash_alone_and_among_others() -> None:
    faces = np.stack([face(seed) for seed in range(33)])
    alone = np.concatenate([dhash(each[np.newaxis]) for each in faces])
    np.testing.assert_array_equal(dhash(faces), alone)
    mirror_images = np.ascontiguousarray(faces[:, :, ::-1])
    np.testing.assert_array_equal(dhash_mirrored(faces), np.stack([alone, dhash(mirror_images)], axis=1))


@settings(deadline=None)
@given(st.data(), st.lists(LABELS, min_size=1, max_size=150))
def test_the_split_depends_on_content_alone_and_keeps_groups_together(data: st.DataObject, labels: list[Label]) -> None:
    count = len(labels)
    groups = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count)))
    order = data.draw(st.permutations(range(count)))
    content = digests(count)
    parts = split(labels, content, groups)
    shuffled = split([labels[i] for i in order], [content[i] for i in order], groups[order])
    assert [parts[i] for i in order] == shuffled
    for group in set(groups.tolist()):
        assert len({parts[i] for i in np.flatnonzero(groups == group)}) == 1


@settings(deadline=None)
@given(st.lists(LABELS, min_size=6, max_size=400))
def test_every_stratum_has_its_shares_as_far_as_counts_allow(labels: list[Label]) -> None:
    parts = split(labels, digests(len(labels)), alone(len(labels)))
    strata = Counter((label.gender, label.ethnicity, age_band(label.age)) for label in labels)
    placed = Counter(
        (label.gender, label.ethnicity, age_band(label.age), part) for label, part in zip(labels, parts, strict=True)
    )
    for stratum, count in strata.items():
        for part in SPLITS:
            assert abs(placed[*stratum, part] - SHARES[part] * count) <= 2.5
    for gender in (0, 1):
        count = sum(label.gender == gender for label in labels)
        for part in SPLITS:
            there = sum(label.gender == gender and p == part for label, p in zip(labels, parts, strict=True))
            assert abs(there - SHARES[part] * count) <= 1.5
            assert there > 0 or count < 3


def test_a_thousand_faces_split_seventy_ten_twenty() -> None:
    labels = [Label(i % 100, i % 2, i % 5) for i in range(1000)]
    assert Counter(split(labels, digests(1000), alone(1000))) == {"train": 700, "validation": 100, "test": 200}


@pytest.mark.parametrize("females", [3, 10, 17])
def test_twenty_faces_put_both_genders_in_every_part(females: int) -> None:
    labels = [Label(30, int(i < females), 0) for i in range(20)]
    parts = split(labels, digests(20), alone(20))
    assert {(label.gender, part) for label, part in zip(labels, parts, strict=True)} == {
        (gender, part) for gender in (0, 1) for part in SPLITS
    }


def test_large_groups_train_and_the_rest_still_fills_every_part() -> None:
    labels = [Label(30, i % 2, 0) for i in range(200)]
    groups = np.array([1000 + i // 40 if i < 80 and i % 2 == 0 else i for i in range(200)])
    parts: list[Split] = split(labels, digests(200), groups)
    assert {parts[i] for i in range(0, 80, 2)} == {"train"}
    assert {(i % 2, part) for i, part in enumerate(parts)} == {(g, part) for g in (0, 1) for part in SPLITS}


@pytest.mark.parametrize(("people", "copies"), [(30, 3), (80, 3), (24, 10), (99, 50), (6, 4), (7, 1), (6, 100)])
def test_people_with_several_copies_each_are_in_every_part(people: int, copies: int) -> None:
    labels = [Label(20 + i % people, i % people % 2, 0) for i in range(people * copies)]
    groups = np.array([i % people for i in range(people * copies)])
    parts = split(labels, digests(people * copies), groups)
    for person in range(people):
        assert len({parts[i] for i in range(person, people * copies, people)}) == 1
    for gender in (0, 1):
        own = [part for label, part in zip(labels, parts, strict=True) if label.gender == gender]
        assert set(own) == set(SPLITS)
        if people > 20:
            assert abs(own.count("train") / len(own) - 0.7) < 0.1


def test_groups_of_uneven_sizes_are_in_every_part() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        sizes = rng.integers(1, 60, rng.integers(3, 12))
        groups = np.concatenate(
            [np.repeat(np.arange(len(sizes)), sizes), np.repeat(100 + np.arange(len(sizes)), sizes)]
        )
        labels = [Label(30, int(group >= 100), 0) for group in groups]
        parts = split(labels, digests(len(labels)), groups)
        assert {(label.gender, part) for label, part in zip(labels, parts, strict=True)} == {
            (gender, part) for gender in (0, 1) for part in SPLITS
        }


def test_the_split_is_that_of_every_version_before() -> None:
    # A model is compared with its predecessor on the faces held out for both: they must not move with an upgrade.
    labels = [Label(i * 7 % 100, i % 2, i * i % 5) for i in range(160)]
    groups = np.array([i % 8 if i < 32 and i % 8 in {0, 2} else i // 6 * 6 if i % 6 < 2 else i for i in range(160)])
    content = [digest[:30] + bytes(2) if i % 3 else bytes(30) + digest[:2] for i, digest in enumerate(digests(160))]
    parts = split(labels, content, groups)
    letters = {"train": ".", "validation": "v", "test": "t"}
    assert "".join(letters[part] for part in parts) == (
        "......tt.........t...t...t..t.tttt.......tvvtvv..........t.......t....t.tt.t...."
        ".v..vv....vvv...tt..v...t..v....t.....v...ttt.....tt....v....t.v....t.ttt......v"
    )


def test_copies_of_a_photo_that_were_scaled_brightened_or_saved_again_are_found() -> None:
    hashes = []
    for seed in range(40):
        original = face(seed)
        smaller = cv2.resize(original, (100, 100), interpolation=cv2.INTER_AREA)
        copies = [
            original,
            cv2.resize(smaller, (128, 128)).astype(np.uint8),
            cv2.convertScaleAbs(original, alpha=1.08, beta=4).astype(np.uint8),
            saved_again(original),
        ]
        hashes.append(dhash_mirrored(np.stack(copies)))
    groups = near_duplicates(np.concatenate(hashes))
    together = [len(set(groups[i : i + 4].tolist())) == 1 for i in range(0, 160, 4)]
    assert sum(together) >= 36
    assert all(not set(groups[i : i + 4].tolist()) & set(groups[i + 4 :].tolist()) for i in range(0, 160, 4))


def test_mirror_images_and_their_copies_are_found() -> None:
    originals = np.stack([face(seed) for seed in range(40)])
    mirror_images = np.ascontiguousarray(originals[:, :, ::-1])
    copies = np.stack([saved_again(each) for each in mirror_images])
    groups = near_duplicates(dhash_mirrored(np.concatenate([originals, mirror_images, copies])))
    assert (groups[:40] == groups[40:80]).all()
    assert (groups[:40] == groups[80:]).sum() >= 36
    assert len(set(groups[:40].tolist())) == 40


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_groups_are_those_of_comparing_every_pair(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (count, 2), np.uint64)
    for i in range(1, count):  # a chain of relatives near the limits
        if rng.random() < 0.6:
            relative = rng.integers(i)
            hashes[i] = with_mirrored(hashes[relative : relative + 1])[0, int(rng.random() < 0.3)]
            for direction in (0, 1):
                for bit in rng.integers(0, 64, rng.integers(0, 7)):
                    hashes[i, direction] ^= np.uint64(1) << np.uint64(bit)
    both = with_mirrored(hashes)
    apart = np.bitwise_count(hashes[:, None, None] ^ both[None])
    near = ((apart[..., 0] <= MAX_HORIZONTAL_BITS) & (apart[..., 1] <= MAX_VERTICAL_BITS)).any(axis=2)
    reach = near.astype(float)
    for _ in range(7):  # paths twice as long each time
        reach = ((reach @ reach) > 0).astype(float)
    groups = near_duplicates(both)
    assert ((groups[:, None] == groups[None]) == (reach > 0)).all()


def test_grouping_faces_that_differ_in_one_direction_alone_can_be_ended() -> None:
    """Each is compared with each: for 60,000 of them it would take minutes."""
    hashes = np.zeros((60_000, 2), np.uint64)
    hashes[:, 1] = np.random.default_rng(0).integers(0, 2**64, 60_000, np.uint64)

    class Cancelled(Exception):
        pass

    asked = 0

    def check_cancelled() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Cancelled

    started = time.monotonic()
    with pytest.raises(Cancelled):
        near_duplicates(with_mirrored(hashes), check_cancelled)
    assert time.monotonic() - started < 10


def test_a_hundred_thousand_faces_are_grouped_in_seconds_even_where_many_are_blank() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (100_000, 2), np.uint64)
    hashes[:30_000] = 0
    hashes[30_000:32_000, 0] = rng.integers(0, 2**16, 2_000, np.uint64)
    started = time.monotonic()
    groups = near_duplicates(with_mirrored(hashes))
    assert time.monotonic() - started < 20
    assert len(set(groups[:30_000].tolist())) == 1
    assert len(set(groups[32_000:].tolist())) == 68_000

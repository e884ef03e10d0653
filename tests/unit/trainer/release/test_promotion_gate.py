import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from shared.records.dataset import FACES_CSV, FACES_NPY, FaceRow, Split, write_faces_csv
from shared.records.model_card import CardStart, GateResult
from shared.records.registry import Registry
from shared.store.files import FileStore
from tests.support.builders.models import ModelBuilder, brightness_model, constant_model
from trainer.data import seen
from trainer.data.near_duplicates import dhash
from trainer.release.promotion_gate import compare_registered, difference_interval, is_beyond_chance, pass_gate

DARK, MIDDLE, BRIGHT = 60, 135, 190
"""Gray levels; the model for tests takes what is above 127.5 for female."""
Part = tuple[Split, NDArray[np.uint8], int]
"""A part of the split, faces for it, and their gender: 1 is female."""


@pytest.fixture
def builder(tmp_path: Path) -> ModelBuilder:
    return ModelBuilder(FileStore(tmp_path / "store"))


def faces(count: int, level: int, seed: int) -> NDArray[np.uint8]:
    """Draws faces around a gray level, of which no two look alike: uint8 (count, 128, 128)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(level - 50, level + 50, (count, 16, 16)).astype(np.uint8)
    return np.stack([cv2.resize(face, (128, 128), interpolation=cv2.INTER_NEAREST) for face in coarse])


def dataset(store: FileStore, name: str, parts: Sequence[Part], ages: Sequence[int] | None = None) -> str:
    """Writes a decoded dataset into the store. Returns what stands for its archive's SHA-256."""
    sha256 = name * 64
    rows = [
        FaceRow(0, f"{name}.jpg", 30, gender, 0, split, 128, 128)
        for split, pixels, gender in parts
        for _ in range(len(pixels))
    ]
    for index, row in enumerate(rows):
        row.index = index
        row.age = ages[index] if ages else row.age
    table, array = io.StringIO(newline=""), io.BytesIO()
    write_faces_csv(table, rows)
    np.save(array, np.concatenate([pixels for _, pixels, _ in parts]))
    store.put(f"datasets/{sha256}/{FACES_CSV}", table.getvalue().encode())
    store.put(f"datasets/{sha256}/{FACES_NPY}", array.getvalue())
    return sha256


def both(split: Split, count: int, seed: int, *, swapped: bool = False) -> list[Part]:
    """Returns so many dark male and as many bright female faces; with `swapped` labels, if need be."""
    return [
        (split, faces(count, DARK, seed), int(swapped)),
        (split, faces(count, BRIGHT, seed + 1), int(not swapped)),
    ]


def compare_new(builder: ModelBuilder, data: bytes, dataset_name: str) -> GateResult:
    """Registers a model without promoting it, and compares it with the champion."""
    return compare_registered(builder.store, builder.register(data, promote=False, dataset=dataset_name))


def test_the_first_model_passes_and_the_champion_is_not_compared_with_itself(builder: ModelBuilder) -> None:
    data = dataset(builder.store, "a", both("test", 20, 1))
    version = builder.register(brightness_model(), promote=False, dataset=data)
    assert compare_registered(builder.store, version).passed
    builder.registry.promote(version, "a test needs it")
    result = compare_registered(builder.store, version)
    assert (result.passed, result.champion) == (True, version)


def test_a_first_model_that_gives_one_answer_only_does_not_pass(builder: ModelBuilder) -> None:
    data = dataset(builder.store, "a", both("test", 20, 1))
    probability = np.linspace(0.5, 1, 20, dtype=np.float32)
    version = builder.register(constant_model(0.9), promote=False, dataset=data, probability=probability)
    result = compare_registered(builder.store, version)
    assert not result.passed
    assert result.reason == "the model predicts female for all of 20 held-out faces: it gives one answer only"


def test_the_better_model_passes_and_an_equal_one_does_not(builder: ModelBuilder) -> None:
    data = dataset(builder.store, "a", [*both("test", 30, 1), ("test", faces(10, MIDDLE, 3), 0)])
    champion = builder.register(brightness_model(), dataset=data)  # takes the ten for women
    better = compare_new(builder, brightness_model(threshold=160), data)
    assert better.passed
    assert better.champion == champion
    assert better.faces == 70
    assert better.balanced_accuracy == 1
    assert better.champion_balanced_accuracy == pytest.approx((1 + 30 / 40) / 2)
    assert better.difference_low is not None
    assert better.difference_high is not None
    assert 0 < better.difference_low < 0.125 < better.difference_high
    assert better.reason.startswith(
        "balanced accuracy 100.0% against 87.5% of version 1 (difference +12.5 points, 95 % "
    )
    assert better.reason.endswith("on 70 held-out faces of a dataset, which neither has learned from")
    assert not compare_new(builder, brightness_model(threshold=128), data).passed


def test_a_model_of_95_men_and_4_women_does_not_replace_one_of_as_many_of_both(builder: ModelBuilder) -> None:
    """It is right on nearly all faces of its own archive: it calls nearly everybody a man."""
    balanced: list[Part] = [
        ("test", faces(24, DARK, 1), 0),
        ("test", faces(6, BRIGHT, 2), 0),
        ("test", faces(30, BRIGHT, 3), 1),
    ]
    before = dataset(builder.store, "a", [*both("train", 30, 5), *balanced])
    # On these alone, "male" for everybody is right about 19 of 20 faces, and the champion about 15.
    men: list[Part] = [("test", faces(15, DARK, 7), 0), ("test", faces(4, MIDDLE, 9), 0)]
    after = dataset(builder.store, "b", [*men, ("test", faces(1, DARK, 8), 1)])
    builder.register(brightness_model(), dataset=before)
    men_only = compare_new(builder, constant_model(0.1), after)
    assert not men_only.passed
    assert men_only.reason == "the model predicts male for all of 80 held-out faces: it gives one answer only"
    nearly = compare_new(builder, brightness_model(threshold=BRIGHT), after)
    assert not nearly.passed
    assert nearly.reason.startswith("recall of female faces falls from 96.8% to ")
    assert "60 held-out faces of a dataset" in nearly.reason


def test_where_the_genders_are_reversed_nothing_is_promoted(builder: ModelBuilder) -> None:
    before = dataset(builder.store, "a", [*both("train", 30, 1), *both("test", 20, 3)])
    after = dataset(builder.store, "b", [*both("train", 30, 5, swapped=True), *both("test", 20, 7, swapped=True)])
    builder.register(brightness_model(), dataset=before)
    result = compare_new(builder, brightness_model(steepness=-20), after)
    assert not result.passed
    assert result.labels_reversed
    assert result.reason == (
        "the labels of a dataset look reversed: version 1 has a balanced accuracy of 0.0% on its 40 held-out faces, "
        "far below the 50 % of a guess; check which gender is 0 and which is 1"
    )


def test_a_champion_that_merely_guesses_does_not_make_labels_look_reversed(builder: ModelBuilder) -> None:
    data = dataset(builder.store, "a", [("test", faces(20, DARK, 1), 0), ("test", faces(20, DARK, 2), 1)])
    builder.register(constant_model(0.1), dataset=data)
    assert not compare_new(builder, brightness_model(threshold=DARK), data).labels_reversed


def test_a_gender_that_is_predicted_worse_stops_a_model_that_is_better_on_the_whole(builder: ModelBuilder) -> None:
    """Twenty men more are right, eight women fewer."""
    parts: list[Part] = [
        ("test", faces(40, DARK, 1), 0),
        ("test", faces(20, MIDDLE, 2), 0),
        ("test", faces(8, MIDDLE, 3), 1),
        ("test", faces(52, BRIGHT, 4), 1),
    ]
    data = dataset(builder.store, "a", parts)
    builder.register(brightness_model(), dataset=data)
    result = compare_new(builder, brightness_model(threshold=160), data)
    assert not result.passed
    assert result.balanced_accuracy is not None
    assert result.champion_balanced_accuracy is not None
    assert result.balanced_accuracy > result.champion_balanced_accuracy
    assert result.reason.startswith("recall of female faces falls from 100.0% to 86.7% on 60 faces, more than chance")


def test_the_champions_own_held_out_faces_count_too(builder: ModelBuilder) -> None:
    # The new model is perfect on its own archive, where faces are brighter, and worse on the champion's.
    before = dataset(builder.store, "a", both("test", 40, 1))
    brighter: list[Part] = [("test", faces(12, 150, 3), 0), ("test", faces(12, 200, 4), 1)]
    after = dataset(builder.store, "b", brighter)
    builder.register(brightness_model(), dataset=before)
    new = brightness_model(threshold=195)
    result = compare_new(builder, new, after)
    assert result.faces == 104
    assert not result.passed
    assert result.reason.startswith("recall of female faces falls")
    # Were the champion's archive gone, nothing would speak against the new one.
    builder.store.delete(f"datasets/{before}/{FACES_NPY}")
    assert compare_new(builder, new, after).passed


def test_faces_that_either_model_has_learned_from_are_left_out(builder: ModelBuilder) -> None:
    known, validated = faces(40, BRIGHT, 1), faces(40, DARK, 2)
    held_out_then = both("test", 25, 3)
    before = dataset(builder.store, "a", [("train", known, 1), ("validation", validated, 0), *held_out_then])
    # The same and some more, split anew: all of it is held out.
    grown: list[Part] = [("test", known + np.uint8(10), 0), ("test", validated + np.uint8(10), 1)]
    after = dataset(builder.store, "b", [*grown, *held_out_then, *both("test", 15, 9)])
    builder.register(brightness_model(), dataset=before)
    result = compare_new(builder, brightness_model(threshold=100), after)
    assert result.faces == 80  # each face that is held out of both counts once
    assert not result.labels_reversed


def keep_table(builder: ModelBuilder, version: int, table: bytes) -> None:
    """Writes into a version's card which faces its dataset had, and how they were split."""
    own = {"table_sha256": hashlib.sha256(table).hexdigest()}
    builder.store.update_json(
        builder.registry.card_key(version), lambda card: {**card, "dataset": {**card["dataset"], **own}}
    )


def test_faces_of_a_dataset_that_was_submitted_again_with_other_faces_are_not_compared_on(
    builder: ModelBuilder,
) -> None:
    data = dataset(builder.store, "a", [*both("train", 30, 5), *both("test", 30, 1)])
    table = builder.store.get(f"datasets/{data}/{FACES_CSV}")
    champion = builder.register(brightness_model(), dataset=data)
    keep_table(builder, champion, table)
    assert compare_new(builder, brightness_model(threshold=128), data).faces == 60
    stale = builder.register(brightness_model(threshold=128), promote=False, dataset=data)
    keep_table(builder, stale, table)

    dataset(builder.store, "a", [*both("test", 30, 5), *both("train", 29, 1)])  # of which the champion has learned
    for version, named in (
        (builder.register(brightness_model(threshold=128), promote=False, dataset=data), champion),
        (stale, stale),
    ):
        result = compare_registered(builder.store, version)
        assert (result.passed, result.faces) == (False, 0)
        assert f"a dataset was submitted again after version {named} was trained on it" in result.reason

    other = dataset(builder.store, "b", [*both("test", 12, 30), *both("test", 30, 5)])
    assert compare_new(builder, brightness_model(threshold=128), other).faces == 24


@pytest.mark.parametrize("role", ["start", "teacher", "starter", "file"])
def test_faces_that_the_new_models_start_or_teacher_has_learned_from_are_left_out(
    builder: ModelBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    held_out, fresh = both("test", 25, 3), both("test", 15, 5)
    then = dataset(builder.store, "a", [*both("train", 20, 1), *held_out, *fresh])
    grown: list[Part] = [("train", pixels, gender) for _, pixels, gender in held_out]  # split anew
    between = dataset(builder.store, "b", [*grown, *both("test", 10, 7)])
    now = dataset(builder.store, "d", [*both("train", 20, 9), *both("test", 20, 11)])
    builder.register(brightness_model(), dataset=then)
    start = CardStart(name="gender:2", source="faces", archive_sha256=between, faces=50)
    hashes = dhash(np.concatenate([pixels for _, pixels, _ in held_out]))
    if role == "starter":
        np.save(tmp_path / "seen.npy", hashes)
        monkeypatch.setattr(seen, "SEEN", tmp_path / "seen.npy")
    if role in {"starter", "file"}:
        start = start.changed(name="starter", archive_sha256="c" * 64)
    builder.register(brightness_model(threshold=110), promote=False, dataset=between)
    version = builder.register(
        brightness_model(threshold=100),
        promote=False,
        dataset=now,
        start=None if role == "teacher" else start,
        distil="gender:2" if role == "teacher" else "none",
    )
    if role == "file":
        buffer = io.BytesIO()
        np.save(buffer, hashes)
        builder.store.put(Registry.start_seen_key(version), buffer.getvalue())
    result = compare_registered(builder.store, version)
    assert "40 held-out faces of a dataset and 30 held-out faces of a dataset" in result.reason
    assert result.faces == 70


def test_a_champions_dataset_whose_edits_are_gone_is_compared_on_by_the_labels_of_its_archive(
    builder: ModelBuilder,
) -> None:
    """It was deleted, and the edits with it, and its archive was submitted again."""
    then = dataset(builder.store, "a", [*both("train", 20, 1), *both("test", 25, 3)])
    now = dataset(builder.store, "b", both("test", 20, 5))
    builder.register(brightness_model(), dataset=then, edits="e" * 64)
    assert compare_new(builder, brightness_model(threshold=100), now).faces == 90


@pytest.mark.parametrize(("men", "women", "found"), [(9, 20, "9 male and 20 female"), (20, 9, "20 male and 9 female")])
def test_too_few_faces_of_a_gender_do_not_decide(men: int, women: int, found: str, builder: ModelBuilder) -> None:
    known = faces(40, DARK, 1)
    builder.register(brightness_model(threshold=230), dataset=dataset(builder.store, "a", [("train", known, 0)]))
    parts: list[Part] = [("test", faces(men, DARK, 2), 0), ("test", faces(women, BRIGHT, 3), 1), ("test", known, 0)]
    result = compare_new(builder, brightness_model(), dataset(builder.store, "b", parts))
    assert not result.passed
    assert result.reason == (
        f"found {found} faces that neither model has learned from (29 held-out faces of a dataset), "
        "expected 10 or more of each gender to compare on"
    )


def test_a_group_that_lost_by_more_than_chance_is_named(builder: ModelBuilder) -> None:
    # Of old women, who are less bright here, the new model takes a fifth for men; all others gain.
    parts: list[Part] = [
        ("test", faces(60, MIDDLE, 1), 0),
        ("test", faces(60, DARK, 2), 0),
        ("test", faces(80, BRIGHT, 3), 1),
    ]
    old: list[Part] = [("test", faces(20, MIDDLE, 4), 1), ("test", faces(80, BRIGHT, 5), 1)]
    data = dataset(builder.store, "a", [*parts, *old], ages=[30] * 200 + [75] * 100)
    builder.register(brightness_model(), dataset=data)
    result = compare_new(builder, brightness_model(threshold=160), data)
    named = {group.name: group for group in result.lost_groups}
    assert {"70+", "female", "female, White, 70+"} <= named.keys()
    assert (named["70+"].count, named["70+"].champion, named["70+"].accuracy) == (100, 1.0, 0.8)
    assert "30-39" not in named
    assert "70+ (100 faces: 100.0% → 80.0%)" in result.reason


def test_a_fall_is_beyond_chance_by_mcnemars_exact_test() -> None:
    right = np.ones(1000, bool)
    for lost, won, expected in ((5, 0, False), (6, 0, True), (10, 3, False), (12, 3, True), (3, 12, False)):
        before, now = right.copy(), right.copy()
        now[:lost] = False
        before[lost : lost + won] = False
        assert is_beyond_chance(now, before) is expected, (lost, won)


def test_what_was_compared_before_registration_is_not_compared_again(
    builder: ModelBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(builder.store, "a", both("test", 20, 1))
    champion = builder.register(brightness_model(), dataset=data)
    known = GateResult(passed=True, reason="known", champion=champion)
    version = builder.register(brightness_model(threshold=100), promote=False, dataset=data, gate=known)
    assert compare_registered(builder.store, version) == known
    builder.registry.promote(builder.register(brightness_model(threshold=110), dataset=data), "another champion")
    assert compare_registered(builder.store, version).reason != "known"


def test_a_champion_that_cannot_be_run_is_no_fault_of_the_new_model(builder: ModelBuilder) -> None:
    data = dataset(builder.store, "a", both("test", 20, 1))
    champion = builder.register(brightness_model(), dataset=data)
    builder.damage(champion, b"no ONNX file")
    result = compare_new(builder, brightness_model(), data)
    assert (result.passed, result.champion) == (False, champion)
    assert result.reason.startswith("it cannot be compared with version 1: ")


def test_the_better_version_is_promoted_and_any_other_challenges(builder: ModelBuilder) -> None:
    data = dataset(builder.store, "a", [*both("test", 30, 1), ("test", faces(10, MIDDLE, 3), 0)])
    first = builder.register(brightness_model(), promote=False, dataset=data)
    assert pass_gate(builder.store, first, promote=True).promoted
    better = builder.register(brightness_model(threshold=160), promote=False, dataset=data)
    outcome = pass_gate(builder.store, better, promote=True)
    assert (outcome.promoted, outcome.challenges) == (True, False)
    assert outcome.reason.startswith("gate: balanced accuracy 100.0% against 87.5% of version 1 ")
    assert builder.registry.history()[-1].reason == outcome.reason
    equal = builder.register(brightness_model(threshold=161), promote=False, dataset=data)
    outcome = pass_gate(builder.store, equal, promote=True)
    assert (outcome.promoted, outcome.challenges) == (False, True)
    aliases = builder.registry.aliases()
    assert (aliases.champion, aliases.previous, aliases.challenger) == (better, first, equal)


def test_where_only_a_person_promotes_a_better_version_becomes_the_challenger(builder: ModelBuilder) -> None:
    data = dataset(builder.store, "a", [*both("test", 30, 1), ("test", faces(10, MIDDLE, 3), 0)])
    first = builder.register(brightness_model(), promote=False, dataset=data)
    outcome = pass_gate(builder.store, first, promote=False)
    assert (outcome.promoted, outcome.challenges) == (False, False)
    assert builder.registry.aliases().champion is None
    builder.registry.promote(first, "a person")
    better = builder.register(brightness_model(threshold=160), promote=False, dataset=data)
    outcome = pass_gate(builder.store, better, promote=False)
    assert (outcome.promoted, outcome.challenges) == (False, True)
    assert outcome.reason.startswith("gate: a person has to promote it; balanced accuracy 100.0% against 87.5%")
    assert (builder.registry.aliases().champion, builder.registry.aliases().challenger) == (first, better)


@pytest.mark.parametrize("faces", [10, 40])
def test_the_interval_of_the_difference_covers_it_with_few_faces_too(faces: int) -> None:
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1], faces).astype(np.uint8)
    covered = 0
    for _ in range(400):
        right_before = random.random(2 * faces) < 0.9
        right = np.where(random.random(2 * faces) < 0.1, random.random(2 * faces) < 0.5, right_before)  # -4 points
        low, high = difference_interval(labels, right, right_before)
        assert low < high
        covered += low <= -0.04 <= high
    assert covered / 400 > 0.94

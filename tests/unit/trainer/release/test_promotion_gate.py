import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from shared.records.dataset import FACES_CSV, FACES_NPY, FaceRow, Split, write_faces_csv
from shared.store.files import FileStore
from tests.model_builder import ModelBuilder, brightness_model, constant_model
from trainer.release.promotion_gate import judge

DARK, BRIGHT = 60, 190
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


def dataset(store: FileStore, name: str, parts: Sequence[Part]) -> str:
    """Writes a decoded dataset into the store. Returns what stands for its archive's SHA-256."""
    sha256 = name * 64
    rows = [
        FaceRow(0, f"{name}.jpg", 30, gender, 0, split, 128, 128)
        for split, pixels, gender in parts
        for _ in range(len(pixels))
    ]
    for index, row in enumerate(rows):
        row.index = index
    table, array = io.StringIO(newline=""), io.BytesIO()
    write_faces_csv(table, rows)
    np.save(array, np.concatenate([pixels for _, pixels, _ in parts]))
    store.put(f"datasets/{sha256}/{FACES_CSV}", table.getvalue().encode())
    store.put(f"datasets/{sha256}/{FACES_NPY}", array.getvalue())
    return sha256


def test_the_first_model_passes_and_the_champion_is_not_compared_to_itself(builder: ModelBuilder) -> None:
    version = builder.register(brightness_model(), promote=False)
    assert judge(builder.store, version).passed
    builder.registry.promote(version, "a test needs it")
    verdict = judge(builder.store, version)
    assert (verdict.passed, verdict.champion) == (True, version)


def test_the_better_model_passes_and_an_equal_one_does_not(builder: ModelBuilder) -> None:
    held_out: list[Part] = [("test", faces(30, BRIGHT, 1), 1), ("test", faces(10, DARK, 2), 0)]
    data = dataset(builder.store, "a", held_out)
    champion = builder.register(constant_model(0.9), dataset=data)
    better = builder.register(brightness_model(), promote=False, dataset=data)
    verdict = judge(builder.store, better)
    assert verdict.passed
    assert verdict.reason == "accuracy 1.000 against 0.750 of version 1, on the same 40 held-out faces of a dataset"
    assert verdict.champion == champion
    assert not judge(builder.store, builder.register(constant_model(0.8), promote=False, dataset=data)).passed


def test_faces_that_the_champion_has_learned_from_are_left_out(builder: ModelBuilder) -> None:
    # The champion knows a face by its brightness: right on what it was trained on, wrong on everything else.
    by_heart: list[Part] = [("train", faces(40, BRIGHT, 1), 1), ("validation", faces(40, DARK, 2), 0)]
    held_out_then = faces(25, DARK, 3)
    before = dataset(builder.store, "a", [*by_heart, ("test", held_out_then, 1)])
    # The same and some more, split anew: all of it is to be examined on.
    brighter = [(split, pixels + np.uint8(10), gender) for split, pixels, gender in by_heart]
    grown: list[Part] = [("test", pixels, gender) for _, pixels, gender in brighter]
    after = dataset(builder.store, "b", [*grown, ("test", held_out_then, 1), ("test", faces(15, DARK, 4), 1)])
    builder.register(brightness_model(), dataset=before)
    newcomer = builder.register(constant_model(0.9), promote=False, dataset=after)
    verdict = judge(builder.store, newcomer)
    assert verdict.passed
    assert verdict.reason.endswith("on the same 40 held-out faces of a dataset that version 1 has not learned from")


def test_where_hardly_a_face_is_new_to_the_champion_it_stays(builder: ModelBuilder) -> None:
    known, new = faces(40, DARK, 1), faces(19, DARK, 2)
    before = dataset(builder.store, "a", [("train", known, 0)])
    after = dataset(builder.store, "b", [("test", known, 1), ("test", new, 1)])
    champion = builder.register(brightness_model(), dataset=before)
    verdict = judge(builder.store, builder.register(constant_model(0.9), promote=False, dataset=after))
    assert not verdict.passed
    assert verdict.champion == champion
    assert verdict.reason == (
        "found 19 of 59 held-out faces of a dataset that version 1 has not learned from, "
        "expected at least 20 to compare on"
    )


def test_what_a_dataset_that_is_gone_has_taught_is_not_known(builder: ModelBuilder) -> None:
    after = dataset(builder.store, "b", [("test", faces(5, DARK, 1), 1)])
    builder.register(brightness_model(), dataset="a" * 64)
    verdict = judge(builder.store, builder.register(constant_model(0.9), promote=False, dataset=after))
    assert verdict.passed
    assert "on the same 5 held-out faces" in verdict.reason

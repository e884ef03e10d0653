from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.model.loader import ServedModel
from inference.monitoring import drift as drift_module
from inference.monitoring.drift import BLOCK_IMAGES, MIN_IMAGES, WINDOW_BLOCKS, Drift, stability_index
from shared.records.registry import Registry
from tests.support.builders.models import brightness_model
from tests.support.inference_loops import Loops, open_loops

SIGNALS = {"luma", "contrast", "predicted_female", "confidence"}


def drawn(count: int, seed: int, *, brightness: float = 128, contrast: float = 40) -> NDArray[np.uint8]:
    """Returns noise whose mean and spread differ from image to image as those of faces do: uint8 (count, 128, 128)."""
    random = np.random.default_rng(seed)
    means = random.normal(brightness, 25, (count, 1, 1)).astype(np.float32)
    spreads = np.abs(random.normal(contrast, 8, (count, 1, 1))).astype(np.float32)
    pattern = np.where(np.indices((128, 128)).sum(axis=0) % 2 == 0, 1, -1).astype(np.float32)
    whole = spreads * pattern
    whole += means
    faces: NDArray[np.uint8] = np.clip(whole, 0, 255, out=whole).astype(np.uint8)
    return faces


@functools.cache
def trained_on() -> NDArray[np.uint8]:
    return drawn(2000, 0)


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}") as made:
        yield made


@pytest.fixture
def drift(loops: Loops) -> Drift:
    return Drift(loops.metrics, lambda: loops.models.champion)


def champion(loops: Loops) -> ServedModel:
    """Registers a model whose card is of `trained_on` and of its answers to faces like these."""
    answers = 1 / (1 + np.exp(-20 * (drawn(2000, 1).mean(axis=(1, 2)) / 255 - 0.5)))
    loops.builder.register(brightness_model(), faces=trained_on(), probability=answers.astype(np.float32))
    loops.models.refresh()
    assert loops.models.champion is not None
    return loops.models.champion


def stream(drift: Drift, model: ServedModel, faces: NDArray[np.uint8]) -> None:
    for start in range(0, len(faces), 64):
        batch = faces[start : start + 64]
        drift.observe(model, batch, model.predict(batch).tolist())


def score(loops: Loops, signal: str) -> float:
    return loops.value("genderline_drift_score", signal=signal)


def test_the_index_of_equal_histograms_is_nothing_and_of_others_what_the_formula_gives() -> None:
    even = np.array([50_000, 50_000])
    assert stability_index(even, even * 3) == pytest.approx(0, abs=1e-6)
    # (0.7 - 0.5) ln(0.7 / 0.5) + (0.3 - 0.5) ln(0.3 / 0.5)
    assert stability_index(even, np.array([70_000, 30_000])) == pytest.approx(0.1695, abs=1e-4)
    assert np.isfinite(stability_index(np.array([100, 0]), np.array([0, 100])))


def test_images_like_those_of_the_card_show_no_drift(loops: Loops, drift: Drift) -> None:
    stream(drift, champion(loops), drawn(4000, 2))
    summary = drift.summary()
    assert set(summary["scores"]) == SIGNALS
    assert max(summary["scores"].values()) < 0.1
    assert loops.value("genderline_drift_window_images") == summary["images"] > 3500


@pytest.mark.parametrize(
    ("faces", "drifted"),
    [
        (drawn(2000, 3, brightness=190), {"luma", "predicted_female", "confidence"}),
        (drawn(2000, 4, contrast=80), {"contrast"}),
    ],
    ids=["brighter", "harsher"],
)
def test_images_unlike_those_of_the_card_show_in_the_signals_they_change(
    loops: Loops, drift: Drift, faces: NDArray[np.uint8], drifted: set[str]
) -> None:
    stream(drift, champion(loops), faces)
    assert {signal for signal in SIGNALS if score(loops, signal) > 0.25} == drifted


def test_there_is_no_score_before_there_are_enough_images(loops: Loops, drift: Drift) -> None:
    model = champion(loops)
    stream(drift, model, drawn(MIN_IMAGES - 64, 3, brightness=190))
    assert drift.summary() == {"images": MIN_IMAGES - BLOCK_IMAGES, "scores": {}}
    assert score(loops, "luma") == 0
    stream(drift, model, drawn(64, 3, brightness=190))
    assert score(loops, "luma") > 0.25


def test_what_is_long_past_leaves_the_window(loops: Loops, drift: Drift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_module, "WINDOW_BLOCKS", 4)
    model = champion(loops)
    stream(drift, model, drawn(1024, 3, brightness=190))
    assert score(loops, "luma") > 0.25
    stream(drift, model, drawn(1024, 2))  # of which a fourth is measured now
    assert drift.summary()["images"] == 4 * BLOCK_IMAGES
    assert score(loops, "luma") > 0.25
    stream(drift, model, drawn(3 * 1024, 5))
    assert drift.summary()["images"] == 4 * BLOCK_IMAGES
    assert score(loops, "luma") < 0.1
    assert WINDOW_BLOCKS * BLOCK_IMAGES == 4096


def test_a_new_champion_starts_anew_and_answers_of_other_models_are_left_out(loops: Loops, drift: Drift) -> None:
    first = champion(loops)
    stream(drift, first, drawn(1024, 3, brightness=190))
    before = drift.summary()
    assert before["images"] == 1024
    assert score(loops, "luma") > 0.25
    second = champion(loops)
    # No image has come yet, and the old model's scores are gone: they would be taken for the new one's.
    assert drift.summary() == {"images": 0, "scores": {}}
    assert [score(loops, signal) for signal in SIGNALS] == [0, 0, 0, 0]
    stream(drift, first, drawn(1024, 2))
    assert drift.summary() == {"images": 0, "scores": {}}
    stream(drift, second, drawn(1024, 2))
    assert drift.summary()["images"] == 1024


def test_a_card_without_enough_faces_or_of_an_older_release_gives_no_score_for_what_it_lacks(
    loops: Loops, drift: Drift
) -> None:
    version = loops.builder.register(brightness_model(), faces=trained_on())  # 20 held-out faces
    card = Registry(loops.store).card(version).as_dict()
    del card["inputs"]["contrast_histogram"]
    loops.store.put(f"models/gender/{version}/card.json", json.dumps(card).encode())
    loops.models.refresh()
    assert loops.models.champion is not None
    stream(drift, loops.models.champion, drawn(1024, 2))
    assert set(drift.summary()["scores"]) == {"luma"}


def test_an_answer_that_is_no_number_is_left_out(loops: Loops, drift: Drift) -> None:
    model = champion(loops)
    faces = drawn(1024, 2)
    answers = model.predict(faces).tolist()
    answers[::2] = [float("nan")] * len(answers[::2])
    drift.observe(model, faces[:512], answers[:512])
    drift.observe(model, faces[512:], answers[512:])
    drift.observe(model, faces[:256], answers[1:512:2])
    assert set(drift.summary()["scores"]) == SIGNALS
    assert max(drift.summary()["scores"].values()) < 0.1

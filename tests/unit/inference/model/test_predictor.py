import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.model.loader import ServedModel
from inference.model.predictor import grouped
from inference.monitoring.throughput import ThroughputMeter
from shared.errors import InvalidImage, InvalidModel
from tests import model_builder as build
from tests.inference_loops import Loops, open_loops
from tests.model_builder import brightness_answer, brightness_model, image_of

LEVELS = [0, 60, 120, 135, 200, 255, 10, 90]


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}", batch_size=3) as made:
        yield made


@pytest.fixture
def model(loops: Loops) -> ServedModel:
    return loops.models.get(loops.builder.register(brightness_model()))


def test_every_image_has_its_outcome_in_order_over_several_batches(loops: Loops, model: ServedModel) -> None:
    outcomes = loops.predictor.predict(model, [image_of(level) for level in LEVELS])
    assert outcomes == pytest.approx([brightness_answer(level) for level in LEVELS], abs=1e-4)


def test_a_broken_image_costs_its_own_entry_only(loops: Loops, model: ServedModel) -> None:
    images = [image_of(0), b"no image", image_of(255), image_of(255)[:60], image_of(200)]
    outcomes = loops.predictor.predict(model, images)
    assert [isinstance(outcome, InvalidImage) for outcome in outcomes] == [False, True, False, True, False]
    good = [outcome for outcome in outcomes if isinstance(outcome, float)]
    assert good == pytest.approx([brightness_answer(level) for level in (0, 255, 200)], abs=1e-4)


def test_a_batch_of_broken_images_only_never_reaches_the_model(loops: Loops, model: ServedModel) -> None:
    assert all(isinstance(outcome, InvalidImage) for outcome in loops.predictor.predict(model, [b"", b"x", b"y"]))
    assert loops.value("genderline_model_run_seconds_count") == 0


def test_no_images_are_no_outcomes(loops: Loops, model: ServedModel) -> None:
    assert loops.predictor.predict(model, []) == []


def test_a_decode_pool_gives_the_same(loops: Loops, model: ServedModel) -> None:
    images = [image_of(level, kind) for level in LEVELS for kind in ("png", "jpg")] + [b"no image"]
    alone = loops.predictor.predict(model, images)
    with ThreadPoolExecutor(3) as pool:
        pooled = replace(loops.predictor, pool=pool).predict(model, images)
    assert pooled[:-1] == alone[:-1]
    assert str(pooled[-1]) == str(alone[-1])


def test_an_answer_that_is_no_number_is_that_images_error_and_never_nan_in_a_reply(loops: Loops) -> None:
    model = loops.models.get(loops.builder.register(brightness_model(build.dark_is_not_a_number)))
    outcomes = loops.predictor.predict(model, [image_of(200), image_of(0), image_of(100)])
    assert outcomes[0] == pytest.approx(brightness_answer(200), abs=1e-4)
    assert isinstance(outcomes[1], InvalidModel)
    assert str(outcomes[1]) == "version 1 found no probability for this image"
    assert loops.value("genderline_predictions_total", outcome="failed") == 1


def test_times_sizes_and_outcomes_are_counted(loops: Loops, model: ServedModel) -> None:
    loops.predictor.predict(model, [image_of(0), image_of(255), b"broken", image_of(255)])
    assert loops.value("genderline_predictions_total", outcome="ok") == 3
    assert loops.value("genderline_predictions_total", outcome="invalid") == 1
    assert loops.value("genderline_predicted_gender_total", gender="female") == 2
    assert loops.value("genderline_predicted_gender_total", gender="male") == 1
    assert loops.value("genderline_batch_size_sum") == 3
    assert loops.value("genderline_batch_size_count") == 2
    assert loops.value("genderline_decode_seconds_count") == 2
    assert loops.value("genderline_model_run_seconds_count") == 2


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 300))
def test_groups_keep_all_items_in_order_and_only_a_lone_one_is_above_the_limit(sizes: list[int], limit: int) -> None:
    groups = list(grouped(sizes, lambda size: size, limit))
    assert [size for group in groups for size in group] == sizes
    assert all(sum(group) <= limit or len(group) == 1 for group in groups)
    assert all(sum(left) + right[0] > limit for left, right in itertools.pairwise(groups))


def test_speed_tells_of_the_last_ten_seconds() -> None:
    now = np.array(100.0)
    throughput = ThroughputMeter(clock=lambda: float(now))
    assert throughput.summary() == {"images_per_second": 0.0, "latency_p50_ms": None, "latency_p99_ms": None}
    for milliseconds in range(1, 101):
        throughput.add(2, milliseconds / 1000)
    throughput.add(50)  # of a job: no latency
    assert throughput.summary() == {"images_per_second": 25.0, "latency_p50_ms": 51.0, "latency_p99_ms": 100.0}
    now += 10.5
    assert throughput.summary()["images_per_second"] == 0.0
    assert throughput.summary()["latency_p99_ms"] is None


def test_observers_are_told_of_every_run_and_what_goes_wrong_with_one_costs_no_answer(
    loops: Loops, model: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[int, list[int], list[float]]] = []

    def broken(*_: object) -> None:
        raise RuntimeError("a bug in who watches")

    def good(asked: ServedModel, faces: NDArray[np.uint8], probabilities: Sequence[float]) -> None:
        told.append((asked.version, faces[:, 0, 0].tolist(), list(probabilities)))

    predictor = replace(loops.predictor, observers=[broken, good])
    outcomes = predictor.predict(model, [image_of(0), b"no image", image_of(255), image_of(200)])
    answers = [outcome for outcome in outcomes if isinstance(outcome, float)]
    assert [(version, levels) for version, levels, _ in told] == [(1, [0, 255]), (1, [200])]
    assert [probability for *_, given in told for probability in given] == answers
    assert caplog.text.count("an observer of the predictions failed") == 2

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.model.loader import ServedModel
from inference.monitoring.throughput import ThroughputMeter
from shared.errors import GenderlineError, InvalidImage, InvalidModel
from tests.support.builders import models as build
from tests.support.builders.archives import png_header_only
from tests.support.builders.models import brightness_answer, brightness_model, image_of
from tests.support.inference_loops import Loops, open_loops

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


def test_an_answer_that_is_no_number_is_that_images_error_and_never_nan_in_a_reply(loops: Loops) -> None:
    model = loops.models.get(loops.builder.register(brightness_model(build.dark_is_not_a_number)))
    outcomes = loops.predictor.predict(model, [image_of(200), image_of(0), image_of(100)])
    loops.predictor.count(outcomes)
    assert outcomes[0] == pytest.approx(brightness_answer(200), abs=1e-4)
    assert isinstance(outcomes[1], InvalidModel)
    assert str(outcomes[1]) == "version 1 found no probability for this image"
    assert loops.value("genderline_predictions_total", outcome="failed") == 1


def test_times_sizes_and_outcomes_are_counted(loops: Loops, model: ServedModel) -> None:
    loops.predictor.count(loops.predictor.predict(model, [image_of(0), image_of(255), b"broken", image_of(255)]))
    assert loops.value("genderline_predictions_total", outcome="ok") == 3
    assert loops.value("genderline_predictions_total", outcome="invalid") == 1
    assert loops.value("genderline_predicted_gender_total", gender="female") == 2
    assert loops.value("genderline_predicted_gender_total", gender="male") == 1
    assert loops.value("genderline_batch_size_sum") == 3
    assert loops.value("genderline_batch_size_count") == 2
    assert loops.value("genderline_decode_seconds_count") == 2
    assert loops.value("genderline_model_run_seconds_count") == 2


class Failing:
    """A model that fails on some faces: those of one level; or on all of them."""

    version = 1

    def __init__(self, level: int | None) -> None:
        self._level = level

    def predict(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._level is None or (faces == self._level).any():
            raise RuntimeError("a bug that a face provokes")
        return (faces[:, 0, 0] / 255).astype(np.float32)


def test_a_face_that_the_model_fails_on_costs_its_own_entry_only(loops: Loops) -> None:
    model = cast(ServedModel, Failing(200))
    results = loops.predictor.predict(model, [image_of(51), image_of(200), image_of(102)])
    assert results[0] == pytest.approx(0.2)
    assert results[2] == pytest.approx(0.4)
    assert isinstance(results[1], GenderlineError)
    assert results[1].code == "internal"
    (alone,) = loops.predictor.predict(model, [image_of(200)])
    assert isinstance(alone, GenderlineError)


def test_a_model_that_fails_on_any_face_is_nobodys_fault_but_its_own(loops: Loops) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        loops.predictor.predict(cast(ServedModel, Failing(None)), [image_of(51), image_of(200)])


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


def test_images_of_one_message_share_their_pixels(tmp_path: Path) -> None:
    claim = png_header_only(1000, 1000)
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}", max_image_pixels=1_000_000) as loops:
        model = loops.models.get(loops.builder.register(brightness_model()))
        outcomes = loops.predictor.predict(model, [claim] * 3 + [image_of(255)])
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [None, None, "image_too_large", None]

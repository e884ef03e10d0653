import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.training.calibrate import MAX_TEMPERATURE, MIN_TEMPERATURE, calibrated_loss, fit_temperature


def draw(temperature: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too large by `temperature`."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, count)
    labels = random.random(count) < 1 / (1 + np.exp(-honest))
    return (honest * temperature).astype(np.float32), labels.astype(np.uint8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_spoiled_the_logits_is_found(temperature: float) -> None:
    assert fit_temperature(*draw(temperature, 20_000)) == pytest.approx(temperature, rel=0.05)


def test_calibrating_lowers_the_log_loss() -> None:
    logits, labels = draw(3.0, 2000)

    def loss(temperature: float) -> float:
        return float(np.mean(np.logaddexp(0, np.where(labels == 1, -logits, logits) / temperature)))

    fitted = fit_temperature(logits, labels)
    assert loss(fitted) < loss(1.0)
    assert loss(fitted) <= min(loss(fitted * 1.05), loss(fitted / 1.05))


def test_without_faces_the_temperature_is_one() -> None:
    assert fit_temperature(np.empty(0, np.float32), np.empty(0, np.uint8)) == pytest.approx(1)


def test_a_few_faces_without_an_error_do_not_make_the_model_surer() -> None:
    logits = np.array([-3, -2, 2, 3], np.float32)
    assert fit_temperature(logits, np.array([0, 0, 1, 1], np.uint8)) == pytest.approx(1, abs=0.1)


def test_logits_that_are_always_wrong_meet_the_upper_bound() -> None:
    logits = np.array([-5, 5] * 500, np.float32)
    assert fit_temperature(logits, np.array([1, 0] * 500, np.uint8)) == pytest.approx(MAX_TEMPERATURE)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(0, 1)), max_size=50))
def test_every_input_gives_a_temperature_within_bounds(faces: list[tuple[float, int]]) -> None:
    logits = np.array([logit for logit, _ in faces], np.float32)
    labels = np.array([label for _, label in faces], np.uint8)
    fitted = fit_temperature(logits, labels)
    assert MIN_TEMPERATURE * 0.999 <= fitted <= MAX_TEMPERATURE * 1.001


def plain_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, np.where(labels == 1, -logits, logits))))


def test_the_calibrated_loss_does_not_mind_how_sure_a_network_is_of_itself() -> None:
    honest, labels = draw(1.0, 20_000)
    assert calibrated_loss(honest, labels) == pytest.approx(plain_loss(honest, labels), rel=1e-3)
    for factor in np.array([0.5, 3.0], np.float32):
        assert calibrated_loss(honest * factor, labels) == pytest.approx(calibrated_loss(honest, labels), rel=1e-3)
        assert plain_loss(honest * factor, labels) > 1.05 * plain_loss(honest, labels)


def test_of_two_networks_the_calibrated_loss_prefers_the_one_that_tells_more_faces_apart() -> None:
    honest, labels = draw(1.0, 2000)
    noise = np.random.default_rng(1).normal(0, 1, len(honest)).astype(np.float32)
    better, worse = honest * 4, (honest + noise) * np.float32(0.7)
    assert plain_loss(better, labels) > plain_loss(worse, labels)
    assert calibrated_loss(better, labels) < calibrated_loss(worse, labels)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_leaves_no_loss(broken: float) -> None:
    assert np.isnan(calibrated_loss(np.array([1.0, broken], np.float32), np.array([1, 0], np.uint8)))

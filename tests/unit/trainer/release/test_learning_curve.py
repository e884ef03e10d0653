"""What more faces would be worth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.release.learning_curve import measure_learning_curve


def noisy(faces: int, seed: int = 1, *, female: float = 0.5) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Returns features of which many together, each hardly, tell the gender: there is much to learn."""
    random = np.random.default_rng(seed)
    labels = (random.random(faces) < female).astype(np.uint8)
    return (random.normal(size=(faces, 100)) + 0.15 * (2.0 * labels - 1)[:, None]).astype(np.float32), labels


def test_where_more_faces_help_the_curve_rises_and_the_gain_is_its_slope() -> None:
    features, labels = noisy(3600)
    curve = measure_learning_curve(features, labels, np.arange(1600), np.arange(1600, 3600))
    assert curve is not None
    assert [point.faces for point in curve.points] == [200, 400, 800, 1600]
    accuracies = [point.accuracy for point in curve.points]
    assert accuracies == sorted(accuracies)
    assert curve.gain == pytest.approx(np.polyfit(range(4), accuracies, 1)[0])
    assert curve.gain > 0.005


def test_of_a_rare_gender_there_is_as_much_to_learn() -> None:
    features, labels = noisy(3600, female=0.06)
    curve = measure_learning_curve(features, labels, np.arange(1600), np.arange(1600, 3600))
    assert curve is not None
    assert curve.points[0].accuracy < 0.8  # of all faces, calling each one male would be right about 94 %
    assert curve.gain > 0.02


def test_where_everything_is_known_twice_the_faces_are_worth_nothing() -> None:
    features, labels = noisy(1000)
    features[:, 0] += 100 * labels
    curve = measure_learning_curve(features, labels, np.arange(800), np.arange(800, 1000))
    assert curve is not None
    assert curve.gain == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("train", "points"), [(79, 0), (80, 2), (320, 4)])
def test_few_faces_give_fewer_points_or_no_curve(train: int, points: int) -> None:
    features, labels = noisy(train + 100)
    curve = measure_learning_curve(features, labels, np.arange(train), np.arange(train, train + 100))
    assert (0 if curve is None else len(curve.points)) == points


def test_parts_of_one_gender_alone_do_not_count() -> None:
    features, labels = noisy(500)
    labels[:400] = 1
    assert measure_learning_curve(features, labels, np.arange(400), np.arange(400, 500)) is None


def test_of_many_faces_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.release.learning_curve.MOST_FACES", 400)
    features, labels = noisy(1100)
    curve = measure_learning_curve(features, labels, np.arange(1000), np.arange(1000, 1100))
    assert curve is not None
    assert curve.points[-1].faces == 400

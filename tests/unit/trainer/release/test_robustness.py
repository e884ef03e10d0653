import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.release.robustness import CHANGES, measure_robustness


def faces(count: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(60, 200, (count, 16, 16)).astype(np.uint8)
    return np.stack([cv2.resize(face, (128, 128), interpolation=cv2.INTER_NEAREST) for face in coarse])


def test_every_change_but_the_first_changes_a_face_and_keeps_its_form() -> None:
    (face,) = faces(1)
    unchanged, *others = CHANGES.values()
    assert np.array_equal(unchanged(face), face)
    before = face.copy()
    for change in others:
        changed = change(face)
        assert changed.shape == (128, 128)
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, face)
    assert np.array_equal(face, before)


def test_what_a_change_costs_is_measured_on_the_same_faces() -> None:
    some = faces(40)
    labels = (np.arange(40) < 30).astype(np.uint8)
    some[labels == 1] += 50  # the model below tells the genders apart by their brightness
    luma = (some[labels == 0].mean(axis=(1, 2)).max() + some[labels == 1].mean(axis=(1, 2)).min()) / 2
    found = {row.change: row for row in measure_robustness(some, labels, lambda batch: batch.mean(axis=(1, 2)) > luma)}
    assert list(found) == list(CHANGES)
    assert {row.faces for row in found.values()} == {40}
    assert (found["unchanged"].accuracy, found["unchanged"].balanced_accuracy) == (1, 1)
    # In the dark it takes everybody for male: right about 10 of 40, and about one gender of two.
    assert (found["dark"].accuracy, found["dark"].balanced_accuracy) == (0.25, 0.5)
    assert found["blurred"].accuracy == 1

"""Wrong labels are found by probabilities that no network has learned by heart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.records.dataset import FaceRow
from tests.drawn import draw_face
from trainer.data.dataset import Dataset
from trainer.release.out_of_fold import predict_out_of_fold

FACES = 400
FLIPPED = 0.05
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def single_thread() -> None:
    torch.set_num_threads(1)  # more would wait for one another on a busy machine


def drawn(seed: int) -> tuple[Dataset, NDArray[np.bool_]]:
    """Returns drawn faces, all of which train, and which of them carry the wrong label."""
    random = np.random.default_rng(seed)
    truth = np.arange(FACES) % 2
    wrong = np.zeros(FACES, bool)
    wrong[random.choice(FACES, round(FLIPPED * FACES), replace=False)] = True
    faces = np.stack([draw_face(random, int(gender)) for gender in truth])
    labels = np.where(wrong, 1 - truth, truth)
    rows = [FaceRow(i, f"{i}.png", 30, int(label), 0, "train", 128, 128) for i, label in enumerate(labels)]
    return Dataset("0" * 64, faces, rows), wrong


def flag_by_confident_learning(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns which labels cleanlab's rule calls wrong: bool (N,).

    That is `find_label_issues(filter_by="confident_learning")` of cleanlab 2.9: a face counts for a class if its
    probability is at least the mean of that class over the faces that are labelled so; if that is another class than
    its label, the label is called wrong. Written out here, since it is all that would be used of the package.
    """
    both = np.stack([1 - probabilities, probabilities], axis=1)
    thresholds = np.array([both[labels == gender, gender].mean() for gender in (0, 1)])
    confident = np.where(both >= thresholds, both, -1)
    chosen = np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), labels)
    flags: NDArray[np.bool_] = chosen != labels
    return flags


@pytest.mark.parametrize("seed", [1, 2])
def test_nine_of_ten_wrong_labels_are_among_the_first_7_percent_and_no_worse_than_by_cleanlabs_rule(seed: int) -> None:
    dataset, wrong = drawn(seed)
    learned_by_heart = dataset.labels.astype(np.float32)  # as a network that has learned each wrong label would say

    out_of_fold = predict_out_of_fold(dataset, learned_by_heart, CPU)

    order = np.argsort(np.where(dataset.labels == 1, out_of_fold, 1 - out_of_fold), kind="stable")
    assert wrong[order[: round(0.07 * FACES)]].sum() >= 0.9 * wrong.sum()
    flags = flag_by_confident_learning(dataset.labels, out_of_fold)
    assert flags.sum() > 0
    assert wrong[order[: flags.sum()]].mean() >= wrong[flags].mean()


def test_faces_that_the_network_has_not_learned_from_keep_its_word_and_each_other_face_gets_one() -> None:
    dataset, _ = drawn(3)
    for row in dataset.rows[300:]:
        row.split = "test"
    given = np.full(FACES, 0.25, np.float32)
    done: list[int] = []

    out_of_fold = predict_out_of_fold(dataset, given, CPU, lambda count, _total: done.append(count))

    assert (out_of_fold[300:] == given[300:]).all()
    assert (out_of_fold[:300] != given[:300]).all()
    assert done[-1] == 300
    alone = Dataset(dataset.sha256, dataset.faces[:3], dataset.rows[:3])
    assert (predict_out_of_fold(alone, given[:3], CPU) == given[:3]).all()

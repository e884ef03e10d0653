"""Wrong labels are found by probabilities that no network has learned by heart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.records.dataset import FaceRow
from tests.support.builders.drawn import draw_face
from trainer.data.dataset import Dataset
from trainer.release.features import embed_faces
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

    out_of_fold = predict_out_of_fold(dataset, learned_by_heart, embed_faces(dataset.faces, CPU))

    order = np.argsort(np.where(dataset.labels == 1, out_of_fold, 1 - out_of_fold), kind="stable")
    assert wrong[order[: round(0.07 * FACES)]].sum() >= 0.9 * wrong.sum()
    flags = flag_by_confident_learning(dataset.labels, out_of_fold)
    assert flags.sum() > 0
    assert wrong[order[: flags.sum()]].mean() >= wrong[flags].mean()


def test_right_labels_of_a_rare_gender_do_not_fill_the_list_of_suspects() -> None:
    random = np.random.default_rng(1)
    labels = (np.arange(1000) % 20 == 0).astype(np.uint8)
    features = (random.normal(size=(1000, 100)) + 0.1 * (2.0 * labels - 1)[:, None]).astype(np.float32)
    rows = [FaceRow(i, f"{i}.png", 30, int(label), 0, "train", 128, 128) for i, label in enumerate(labels)]
    dataset = Dataset("0" * 64, np.empty((0, 128, 128), np.uint8), rows)

    out_of_fold = predict_out_of_fold(dataset, labels.astype(np.float32), features)

    first = np.argsort(np.where(labels == 1, out_of_fold, 1 - out_of_fold), kind="stable")[:50]
    assert labels[first].mean() < 0.5


def test_copies_of_a_photo_do_not_vouch_for_its_label() -> None:
    random = np.random.default_rng(1)
    people, copies = 200, 4
    labels = np.repeat(random.integers(0, 2, people), copies).astype(np.uint8)  # which nothing in the features tells
    features = np.repeat(random.normal(size=(people, 256)), copies, axis=0).astype(np.float32)
    rows = [FaceRow(i, f"{i}.png", 30, int(label), 0, "train", 128, 128) for i, label in enumerate(labels)]
    plain = Dataset("0" * 64, np.empty((0, 128, 128), np.uint8), rows)
    grouped = dataclasses.replace(plain, alike={index: index // copies for index in range(len(labels))})

    def share_confirmed(dataset: Dataset) -> float:
        out_of_fold = predict_out_of_fold(dataset, labels.astype(np.float32), features)
        return float(((out_of_fold >= 0.5) == (labels == 1)).mean())

    assert share_confirmed(plain) > 0.9
    assert 0.3 < share_confirmed(grouped) < 0.7


def test_held_out_faces_are_judged_by_the_network_and_by_a_classifier_that_does_not_share_its_errors() -> None:
    dataset, wrong = drawn(3)
    for row in dataset.rows[300:]:
        row.split = "test"
    misled = np.full(FACES, 0.5, np.float32)
    done: list[int] = []
    features = embed_faces(dataset.faces, CPU, lambda count, _total: done.append(count))

    out_of_fold = predict_out_of_fold(dataset, misled, features)

    held_out, given = out_of_fold[300:], dataset.labels[300:]
    confidence = np.where(given == 1, held_out, 1 - held_out)
    assert confidence[wrong[300:]].max() < confidence[~wrong[300:]].mean()
    surer = predict_out_of_fold(dataset, misled + np.float32(0.2), features)
    np.testing.assert_allclose(surer[300:] - held_out, 0.1, atol=1e-5)  # half of its word is the network's
    assert (surer[:300] == out_of_fold[:300]).all()  # none of that of a face that it has learned from
    assert done[-1] == FACES


def test_a_single_face_of_a_gender_keeps_the_networks_word() -> None:
    dataset, _ = drawn(3)
    alone = Dataset(dataset.sha256, dataset.faces[:3], dataset.rows[:3])
    given = np.full(3, 0.25, np.float32)

    assert (predict_out_of_fold(alone, given, embed_faces(alone.faces, CPU)) == given).all()

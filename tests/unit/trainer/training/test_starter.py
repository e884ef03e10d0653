from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.faces.decode import ImageLimits, decode_face
from shared.records.dataset import FaceRow, Split
from tests.support.builders.archives import face_jpeg
from trainer.data.dataset import Dataset
from trainer.training.device import DeviceFaces
from trainer.training.model import build_network
from trainer.training.starter import STARTER_NETWORK, Starter, load_starter, save_starter, starter_helps
from trainer.training.train import predict_logits

CPU = torch.device("cpu")
FACES = 120
LIMITS = ImageLimits(10**6, 10**6)


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    return np.stack([decode_face(face_jpeg(seed, seed % 2), LIMITS).pixels for seed in range(FACES)])


@pytest.fixture(scope="module")
def predicted(faces: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The genders that the starter gives the faces: drawings, so not those in their names."""
    network = build_network(STARTER_NETWORK, dropout=0.0)
    network.load_state_dict(load_starter().weights)
    return (predict_logits(network, DeviceFaces(faces, CPU), np.arange(FACES)) >= 0).astype(np.uint8)


def dataset(faces: NDArray[np.uint8], genders: NDArray[np.uint8]) -> Dataset:
    def part(index: int) -> Split:
        return "train" if index < FACES - 20 else "validation" if index < FACES - 10 else "test"

    rows = [
        FaceRow(index, f"{index}.jpg", 30, int(gender), 0, part(index), width=200, height=200)
        for index, gender in enumerate(genders)
    ]
    return Dataset("a" * 64, faces, rows)


def test_a_starter_is_read_as_it_was_written(tmp_path: Path) -> None:
    weights = {"conv.weight": torch.randn(3, 3), "norm.num_batches_tracked": torch.tensor(7)}
    save_starter(Starter(weights, {"name": "starter", "source": "drawn"}), tmp_path)
    read = load_starter(tmp_path)
    assert read.card == {"name": "starter", "source": "drawn"}
    assert read.weights["norm.num_batches_tracked"] == 7
    assert torch.equal(read.weights["conv.weight"], weights["conv.weight"].half().float())


def test_the_shipped_starter_fits_its_network_and_says_where_it_comes_from() -> None:
    starter = load_starter()
    build_network(STARTER_NETWORK, dropout=0.0).load_state_dict(starter.weights)
    assert "CC BY 4.0" in starter.card["source"]
    assert starter.card["network"] == STARTER_NETWORK


def test_the_starter_helps_where_it_tells_the_labels_apart(
    faces: NDArray[np.uint8], predicted: NDArray[np.uint8]
) -> None:
    assert starter_helps(dataset(faces, predicted), CPU)
    assert not starter_helps(dataset(faces, 1 - predicted), CPU)


def test_the_starter_does_not_help_where_labels_are_random(faces: NDArray[np.uint8]) -> None:
    labels = np.random.default_rng(1).integers(0, 2, FACES).astype(np.uint8)
    assert not starter_helps(dataset(faces, labels), CPU)


@pytest.mark.parametrize("rare", [0, 1])
@pytest.mark.parametrize("right", [1, 2])
def test_a_face_or_two_that_the_starter_is_right_about_prove_nothing(
    faces: NDArray[np.uint8], predicted: NDArray[np.uint8], rare: int, right: int
) -> None:
    labels = np.full(FACES, 1 - rare, np.uint8)
    labels[np.flatnonzero(predicted == rare)[:right]] = rare
    assert not starter_helps(dataset(faces, labels), CPU)


def test_the_starter_does_not_help_where_it_has_seen_the_held_out_faces(
    faces: NDArray[np.uint8], predicted: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.training.starter.find_seen", lambda hashes: np.ones(len(hashes), bool))
    assert not starter_helps(dataset(faces, predicted), CPU)

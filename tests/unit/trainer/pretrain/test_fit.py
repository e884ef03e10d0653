from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.faces.labels import UNKNOWN
from trainer.data.dataset import Targets
from trainer.pretrain.fit import CLASSES, Plan, SoftLoss, fit, hard_targets, planned_epochs, predict
from trainer.training.device import seeded
from trainer.training.model import build_network

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FACES = torch.rand(32, 1, 80, 80, generator=torch.Generator().manual_seed(0))
ORIGIN = {"archive": "a" * 64, "began_from": None}
PLAN = Plan(
    epochs=2, rate=0.001, weight_decay=0.01, dropout=0.1, averaging=0.9, mixup=0.2, erasing=0.5, batch_size=8, seed=3
)


@pytest.fixture(autouse=True)
def single_thread() -> None:
    torch.set_num_threads(1)


def take(indices: NDArray[np.intp]) -> torch.Tensor:
    return FACES[torch.from_numpy(indices)]


def targets() -> NDArray[np.float32]:
    ones = np.ones(len(FACES), np.uint8)
    return hard_targets(Targets(female=ones, age_bands=2 * ones.astype(np.int8), ethnicities=ones.astype(np.int8)))


def fresh() -> SoftLoss:
    with seeded(CPU, 1):
        return SoftLoss(build_network("small", dropout=0.1), 0.3)


def train(
    checkpoint: Path,
    plan: Plan = PLAN,
    origin: dict[str, str | None] = ORIGIN,
    *,
    killed_after: int | None = None,
    epochs: list[int] | None = None,
) -> dict[str, torch.Tensor]:
    def on_epoch(epoch: int, _model: SoftLoss, _loss: float) -> None:
        if epochs is not None:
            epochs.append(epoch)
        if epoch == killed_after:
            raise KeyboardInterrupt

    every = np.arange(len(FACES))
    return fit(fresh(), take, targets(), every, plan, CPU, checkpoint, on_epoch, origin=origin).state_dict()


def test_labels_become_probabilities_and_unknown_ones_count_for_nothing() -> None:
    made = hard_targets(
        Targets(
            female=np.array([1, 0], np.uint8),
            age_bands=np.array([0, UNKNOWN], np.int8),
            ethnicities=np.array([UNKNOWN, 3], np.int8),
        )
    )
    assert made.shape == (2, sum(CLASSES))
    assert made[:, 0].tolist() == [1, 0]
    assert made[0, 1:].tolist() == [1] + [0] * (sum(CLASSES) - 2)
    assert made[1].nonzero()[0].tolist() == [1 + CLASSES[1] + 3]


def test_training_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed.pt", killed_after=1)
    epochs: list[int] = []
    resumed = train(tmp_path / "killed.pt", epochs=epochs)
    assert epochs == [2]
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_a_checkpoint_of_another_plan_is_left_alone(tmp_path: Path) -> None:
    train(tmp_path / "state.pt")
    epochs: list[int] = []
    train(tmp_path / "state.pt", replace(PLAN, seed=4), epochs=epochs)
    assert epochs == [1, 2]


@pytest.mark.parametrize("other", [{"archive": "b" * 64}, {"began_from": "2026-11-29T12:00:00Z"}])
def test_a_checkpoint_of_another_archive_or_starter_is_left_alone(tmp_path: Path, other: dict[str, str | None]) -> None:
    train(tmp_path / "state.pt")
    epochs: list[int] = []
    train(tmp_path / "state.pt", origin=ORIGIN | other, epochs=epochs)
    assert epochs == [1, 2]
    assert planned_epochs(tmp_path / "state.pt") == [2, 2]


def test_a_shorter_plan_takes_over_and_the_checkpoint_tells(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "state.pt", replace(PLAN, epochs=9), killed_after=1)
    epochs: list[int] = []
    train(tmp_path / "state.pt", PLAN, epochs=epochs)
    assert epochs == [2]
    assert planned_epochs(tmp_path / "state.pt") == [9, 2]


def test_what_is_taught_is_learned(tmp_path: Path) -> None:
    plan = replace(PLAN, epochs=15, mixup=0.0, erasing=0.0, rate=0.01)
    model = fresh()
    note = lambda *_: None  # noqa: E731
    trained = fit(model, take, targets(), np.arange(32), plan, CPU, tmp_path / "state.pt", note, origin=ORIGIN)
    said = predict(trained.probabilities, take, np.arange(32), CPU)
    assert said[:, 0].min() > 0.8
    assert (said[:, 1 : 1 + CLASSES[1]].argmax(1) == 2).all()


def test_a_face_and_its_mirror_image_are_said_the_same_of() -> None:
    model = fresh().eval()
    with torch.inference_mode():
        said, mirrored = model.probabilities(FACES), model.probabilities(FACES.flip(-1))
    assert torch.allclose(said, mirrored, atol=1e-5)
    assert torch.allclose(said[:, 1 : 1 + CLASSES[1]].sum(1), torch.ones(len(FACES)))


def test_the_student_learns_what_the_teacher_says_of_the_changed_faces(tmp_path: Path) -> None:
    asked: list[torch.Tensor] = []

    class Sure(SoftLoss):
        def probabilities(self, faces: torch.Tensor) -> torch.Tensor:
            asked.append(faces)
            return torch.zeros(len(faces), sum(CLASSES))  # male, whatever the labels say

    def loss(name: str, taught: float) -> float:
        losses: list[float] = []
        teacher = Sure(build_network("small", dropout=0.1), 0.3)
        note = lambda _epoch, _model, loss: losses.append(loss)  # noqa: E731
        every = np.arange(len(FACES))
        fit(
            *(fresh(), take, targets(), every, PLAN, CPU, tmp_path / name, note),
            origin=ORIGIN,
            teacher=teacher,
            taught=taught,
        )
        return losses[-1]

    assert loss("by the teacher", 1.0) < loss("by both", 0.5) < loss("by the labels", 0.0)
    assert len(asked) == 3 * PLAN.epochs * len(FACES) / PLAN.batch_size
    assert not any(torch.equal(faces, FACES[: len(faces)]) for faces in asked)

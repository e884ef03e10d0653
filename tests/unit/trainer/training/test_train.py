import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from shared.records.runs import EpochRow
from trainer.data.dataset import Targets
from trainer.training.calibrate import calibrated_loss
from trainer.training.checkpoint import CheckpointError, load
from trainer.training.device import DeviceFaces
from trainer.training.loss import Teacher
from trainer.training.model import NETWORKS, FaceNetwork, build_network, reference
from trainer.training.process_group import ProcessGroup
from trainer.training.recipe import Recipe
from trainer.training.schedule import first_candidate, learning_rate_at, split_into_batches
from trainer.training.throughput import measure_throughput
from trainer.training.train import (
    Hooks,
    Interrupted,
    Progress,
    Trained,
    TrainingDiverged,
    TrainingJob,
    predict_logits,
    train,
)

CPU = torch.device("cpu")
TRAINING, VALIDATION = np.arange(26), np.arange(26, 36)
RECIPE = Recipe(
    init="scratch",
    network="reference",
    learning_rate=0.004,
    epochs=2,
    batch_size=10,
    patience=2,
    mirror=True,
    precision="float32",
    averaging=0.5,
    seed=3,
)
"""Three steps an epoch."""


def tiny(dropout: float) -> FaceNetwork:
    """A network that takes no time, with everything that holds state: normalisation and dropout."""
    features = nn.Sequential(
        nn.Conv2d(1, 4, kernel_size=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(6),
        nn.Flatten(),
    )
    return FaceNetwork(features, 100, dropout, side=32)


@pytest.fixture(scope="module", autouse=True)
def tiny_network() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "reference", tiny)
        yield


def drawn_faces(count: int = 36) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Noise, with a bright square where the label is female: two genders that can be told apart."""
    random = np.random.default_rng(0)
    faces = random.integers(0, 80, (count, 128, 128), dtype=np.uint8)
    labels = (np.arange(count) % 2).astype(np.uint8)
    faces[labels == 1, 40:90, 40:90] += 150
    return faces, labels


def run(**changes: Any) -> Trained:
    faces, labels = drawn_faces()
    job = TrainingJob(
        faces,
        Targets(labels, age_bands=np.arange(len(labels), dtype=np.uint8) % 8, ethnicities=labels),
        training=TRAINING,
        validation=VALIDATION,
        recipe=RECIPE,
        dataset_sha256="a" * 64,
    )
    of_job = {field.name: changes.pop(field.name) for field in dataclasses.fields(job) if field.name in changes}
    resume = changes.pop("resume", None)
    hooks = Hooks(**({"checkpoint_s": 3600} | changes))
    return train(dataclasses.replace(job, **of_job), device=CPU, group=ProcessGroup(), hooks=hooks, resume=resume)


def after(calls: int) -> Callable[[], bool]:
    """Says stop the `calls`-th time it is asked."""
    asked = iter(range(1, 1_000_000))
    return lambda: next(asked) >= calls


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[Trained, list[bytes]]:
    checkpoints: list[bytes] = []
    return run(checkpoint_s=0, on_checkpoint=checkpoints.append), checkpoints


def losses(history: list[EpochRow]) -> list[tuple[float, ...]]:
    return [(row.train_loss, row.train_accuracy, row.val_loss, row.val_accuracy) for row in history]


def assert_same(found: Trained, expected: Trained) -> None:
    assert losses(found.history) == losses(expected.history)
    assert found.best_epoch == expected.best_epoch
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name


@pytest.mark.parametrize("asked", [1, 3, 4, 6])
def test_a_run_interrupted_anywhere_resumes_to_the_same_bits(
    uninterrupted: tuple[Trained, list[bytes]], asked: int
) -> None:
    # Asked before each of three steps, once in validation, and so on: before any step, in mid-epoch, in validation,
    # in the second epoch.
    saved: list[bytes] = []
    with pytest.raises(Interrupted):
        run(should_stop=after(asked), on_checkpoint=saved.append)
    assert len(saved) == 1
    assert_same(run(resume=load(saved[0])), uninterrupted[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "compact"])
def test_every_network_resumes_to_the_same_bits_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "reference", reference)
    recipe = RECIPE.model_copy(update={"epochs": 1, "network": name})
    saved: list[bytes] = []
    with pytest.raises(Interrupted):
        run(recipe=recipe, should_stop=after(3), on_checkpoint=saved.append)
    assert_same(run(recipe=recipe, resume=load(saved[0])), run(recipe=recipe))


def test_a_run_resumes_to_the_same_bits_from_a_checkpoint_after_any_step(
    uninterrupted: tuple[Trained, list[bytes]],
) -> None:
    expected, checkpoints = uninterrupted
    positions = [(point.epoch, point.step) for point in map(load, checkpoints)]
    assert positions == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 0)]
    assert_same(run(resume=load(checkpoints[4])), expected)


def test_resuming_leaves_the_checkpoint_usable_again(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    expected, checkpoints = uninterrupted
    point = load(checkpoints[4])
    assert_same(run(resume=point), expected)
    assert_same(run(resume=point), expected)


def test_resuming_in_bfloat16_gives_the_same_bits_too() -> None:
    recipe = RECIPE.model_copy(update={"precision": "bfloat16"})
    saved: list[bytes] = []
    expected = run(recipe=recipe, checkpoint_s=0, on_checkpoint=saved.append)
    assert expected.history[0].train_loss != run().history[0].train_loss
    for data in saved[1], saved[4]:
        assert_same(run(recipe=recipe, resume=load(data)), expected)


def test_a_run_of_few_steps_does_not_keep_the_weights_that_it_began_with(
    uninterrupted: tuple[Trained, list[bytes]],
) -> None:
    recipe = RECIPE.model_copy(update={"averaging": 0.998})
    kept, averaged = run(recipe=RECIPE.model_copy(update={"averaging": 0.0})), run(recipe=recipe)
    first = load(uninterrupted[1][0]).model

    def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return float((one["gender.weight"] - other["gender.weight"]).norm())

    start = {"gender.weight": first["network.gender.weight"]}
    assert 0 < distance(averaged.weights, kept.weights) < distance(start, kept.weights) / 2


def test_without_auxiliary_targets_only_the_gender_is_learned() -> None:
    recipe = RECIPE.model_copy(update={"auxiliary": 0.0})
    saved: list[bytes] = []
    run(recipe=recipe, on_checkpoint=saved.append)
    assert not [name for name in load(saved[-1]).model if name.startswith("heads")]
    assert set(run().weights) == set(run(recipe=recipe).weights)


def test_throughput_is_measured_in_faces_a_second() -> None:
    assert 1 < measure_throughput(RECIPE.model_copy(update={"batch_size": 4}), CPU) < 1e6


def test_a_run_that_had_ended_is_not_trained_again(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    expected, checkpoints = uninterrupted
    epochs: list[EpochRow] = []
    again = run(resume=load(checkpoints[-1]), on_epoch=epochs.append)
    assert epochs == []
    assert_same(again, expected)


def test_resuming_adds_up_the_time_spent(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    earlier = dataclasses.replace(load(uninterrupted[1][-1]), spent_s=1000.0)
    assert run(resume=earlier).seconds == pytest.approx(1000, abs=60)
    assert run(resume=earlier).seconds > 1000


def test_a_taught_run_learns_something_else_and_resumes_to_the_same_bits(
    uninterrupted: tuple[Trained, list[bytes]],
) -> None:
    teacher = Teacher("reference", run().weights)
    saved: list[bytes] = []
    taught = run(teacher=teacher, checkpoint_s=0, on_checkpoint=saved.append)
    assert not torch.equal(taught.weights["gender.weight"], uninterrupted[0].weights["gender.weight"])
    assert_same(run(teacher=teacher, resume=load(saved[2])), taught)


def test_another_seed_gives_other_weights(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    other = run(recipe=RECIPE.model_copy(update={"seed": 4, "epochs": 1}))
    assert other.history[0].train_loss != uninterrupted[0].history[0].train_loss


def test_training_leaves_torchs_own_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run(recipe=RECIPE.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.slow
def test_genders_that_can_be_told_apart_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "reference", reference)
    recipe = Recipe(
        init="scratch",
        network="reference",
        mirror=True,
        precision="float32",
        epochs=3,
        patience=3,
        batch_size=4,
        augment=False,
        dropout=0.0,
        learning_rate=0.0005,
    )
    trained = run(recipe=recipe)
    best = trained.history[trained.best_epoch - 1]
    assert best.val_accuracy == 1.0
    assert best.val_loss == min(row.val_loss for row in trained.history[1:])


def validation_loss(trained: Trained, faces: NDArray[np.uint8]) -> float:
    network = build_network("reference", dropout=0.4, mirror=True)
    network.load_state_dict(trained.weights)
    logits = predict_logits(network, DeviceFaces(faces, CPU), VALIDATION)
    return calibrated_loss(logits, drawn_faces()[1][VALIDATION])


def test_an_early_epoch_that_looks_better_by_luck_is_not_kept() -> None:
    # The labels of the validation faces are swapped, so that each epoch looks worse than the one before.
    faces, _ = drawn_faces()
    faces[VALIDATION] = faces[VALIDATION[::-1]]
    recipe = RECIPE.model_copy(update={"epochs": 6, "patience": 1000, "batch_size": 4, "augment": False})
    trained = run(faces=faces, recipe=recipe)
    losses = [row.val_loss for row in trained.history]
    assert len(losses) == 6
    assert min(losses[:3]) < min(losses[3:])
    assert trained.best_epoch == 4 + losses[3:].index(min(losses[3:]))


@pytest.mark.parametrize(("schedule", "epochs", "first"), [("cosine", 64, 33), ("cosine", 1, 1), ("constant", 64, 1)])
def test_an_epoch_is_kept_from_the_middle_of_the_cosine_on(schedule: str, epochs: int, first: int) -> None:
    assert first_candidate(RECIPE.model_copy(update={"schedule": schedule, "epochs": epochs})) == first


@pytest.mark.parametrize("init", ["starter", "gender:3"])
def test_from_learned_weights_any_epoch_may_be_kept(init: str) -> None:
    assert first_candidate(RECIPE.model_copy(update={"schedule": "cosine", "epochs": 64, "init": init})) == 1


def test_training_stops_early_and_returns_the_weights_of_its_best_epoch() -> None:
    # Swapped labels: what helps in training hurts in validation, so no epoch is better than the first.
    faces, _ = drawn_faces()
    faces[VALIDATION] = faces[VALIDATION[::-1]]
    recipe = Recipe(
        init="scratch",
        network="reference",
        mirror=True,
        precision="float32",
        schedule="constant",
        epochs=20,
        patience=1,
        batch_size=4,
        augment=False,
        dropout=0.0,
        learning_rate=0.01,
    )
    saved: list[bytes] = []
    trained = run(faces=faces, recipe=recipe, on_checkpoint=saved.append)
    assert len(trained.history) < 20
    assert len(trained.history) == trained.best_epoch + 1
    assert validation_loss(trained, faces) == pytest.approx(trained.history[-2].val_loss, rel=1e-4)
    assert validation_loss(trained, faces) < trained.history[-1].val_loss
    again = run(faces=faces, recipe=recipe, resume=load(saved[-1]))
    assert len(again.history) == len(trained.history)

    falling = run(faces=faces, recipe=recipe.model_copy(update={"schedule": "cosine"}))
    assert 11 <= falling.best_epoch == len(falling.history) - 1  # never before an epoch may be kept


def test_from_a_start_only_what_helps_the_validation_faces_is_learned() -> None:
    start = tiny(0.0).state_dict()
    recipe = RECIPE.model_copy(update={"init": "starter", "epochs": 20, "patience": 20, "learning_rate": 0.01})
    helped = run(recipe=recipe, start=start)
    assert helped.share > 0.5

    faces, _ = drawn_faces()
    faces[VALIDATION] = faces[VALIDATION[::-1]]  # what helps in training hurts in validation
    hurt = run(recipe=recipe, start=start, faces=faces)
    assert hurt.share == 0
    assert torch.equal(hurt.weights["gender.weight"], start["gender.weight"])
    assert validation_loss(hurt, faces) < min(row.val_loss for row in hurt.history)


def test_a_run_interrupted_after_its_last_epoch_still_looks_for_the_share() -> None:
    recipe = RECIPE.model_copy(update={"init": "starter"})
    start, saved = tiny(0.0).state_dict(), list[bytes]()
    whole = run(recipe=recipe, start=start)
    with pytest.raises(Interrupted):
        run(recipe=recipe, start=start, on_checkpoint=saved.append, should_stop=after(2 * 4 + 3))
    again = run(recipe=recipe, start=start, resume=load(saved[-1]))
    assert_same(again, whole)
    assert again.share == whole.share


def test_progress_says_where_training_stands() -> None:
    steps: list[Progress] = []
    run(on_step=steps.append)
    assert (steps[0].epoch, steps[0].epochs, steps[0].step, steps[0].steps) == (1, 2, 1, 3)
    for step in steps:
        assert step.images_per_second > 0
        assert step.eta_s > 0
        assert step.loss > 0
        assert 0 <= step.accuracy <= 1


def test_progress_comes_about_twice_a_second_and_not_at_every_step() -> None:
    steps: list[Progress] = []
    trained = run(on_step=steps.append, recipe=RECIPE.model_copy(update={"batch_size": 2}))
    assert 1 <= len(steps) <= trained.seconds * 2 + 1
    assert len(steps) < 26


def test_each_epoch_is_told_once_with_its_figures(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    rows: list[EpochRow] = []
    trained = run(on_epoch=rows.append)
    assert rows == trained.history
    assert [row.epoch for row in rows] == [1, 2]
    for row in rows:
        assert row.learning_rate == learning_rate_at(RECIPE, row.epoch * 3 - 1, 6)
        assert 0 < row.seconds < 60
        assert row.images_per_second > len(TRAINING) / row.seconds


def test_an_epochs_accuracy_counts_each_training_face_once(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    for row in uninterrupted[0].history:
        right = row.train_accuracy * len(TRAINING)
        assert right == pytest.approx(round(right), abs=1e-9)


def test_a_read_only_memory_map_trains_to_the_same_bits(
    tmp_path: Path, uninterrupted: tuple[Trained, list[bytes]]
) -> None:
    np.save(tmp_path / "faces.npy", drawn_faces()[0])
    assert_same(run(faces=np.load(tmp_path / "faces.npy", mmap_mode="r")), uninterrupted[0])


class Steep(FaceNetwork):
    """A network whose logits overflow after one step at a learning rate of 1."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), 128 * 128, 0.0)

    def decide(self, embedding: torch.Tensor) -> torch.Tensor:
        return super().decide(embedding) ** 11


def test_the_step_size_warms_up_and_falls_along_half_a_cosine_or_stays() -> None:
    rates = [learning_rate_at(RECIPE, step, 200) for step in range(200)]
    top = rates.index(max(rates))
    assert top == 10
    assert rates[top] == RECIPE.learning_rate
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[105] == pytest.approx(RECIPE.learning_rate / 2)
    assert 0 < rates[-1] < RECIPE.learning_rate / 1000
    constant = RECIPE.model_copy(update={"schedule": "constant"})
    assert {learning_rate_at(constant, step, 200) for step in range(200)} == {RECIPE.learning_rate}


@pytest.mark.parametrize("checkpoint_s", [0, 3600])
def test_a_diverging_loss_ends_the_run_with_the_learning_rate_named(
    checkpoint_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "reference", lambda _: Steep())
    saved: list[bytes] = []
    with pytest.raises(TrainingDiverged, match=r"in epoch 1: found a loss of (nan|inf), .* below 1$") as caught:
        run(
            recipe=RECIPE.model_copy(update={"schedule": "constant", "learning_rate": 1.0, "batch_size": 4}),
            checkpoint_s=checkpoint_s,
            on_checkpoint=saved.append,
        )
    assert caught.value.code == "training_diverged"
    assert all(torch.isfinite(load(data).sums).all() for data in saved)


@pytest.mark.parametrize(("training", "validation"), [(1, 5), (5, 0)])
def test_too_few_faces_are_refused(training: int, validation: int) -> None:
    with pytest.raises(ValueError, match=f"found {training} training and {validation} validation faces"):
        run(training=TRAINING[:training], validation=VALIDATION[:validation])


def test_a_checkpoint_of_another_run_is_refused(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    with pytest.raises(CheckpointError, match="another dataset"):
        run(resume=load(uninterrupted[1][0]), dataset_sha256="b" * 64)


def test_a_checkpoint_whose_weights_do_not_fit_is_refused(uninterrupted: tuple[Trained, list[bytes]]) -> None:
    unfit = dataclasses.replace(load(uninterrupted[1][0]), model={"0.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="do not fit the network"):
        run(resume=unfit)


@pytest.mark.parametrize(
    ("count", "batch_size"), [(2, 2), (3, 2), (5, 64), (65, 64), (64, 64), (129, 64), (7, 3), (9, 2)]
)
def test_batches_hold_every_face_once_and_never_one_alone(count: int, batch_size: int) -> None:
    indices = np.arange(100, 100 + count)
    batches = split_into_batches(indices, batch_size, seed=1, epoch=1)
    assert sorted(np.concatenate(batches)) == list(indices)
    sizes = {len(batch) for batch in batches}
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)
    assert max(sizes) - min(sizes) <= 1


def test_the_order_of_faces_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(i) for batch in split_into_batches(np.arange(50), 8, seed=seed, epoch=epoch) for i in batch]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    run(recipe=RECIPE.model_copy(update={"epochs": 1}))
    assert capfd.readouterr() == ("", "")

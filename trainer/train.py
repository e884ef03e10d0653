"""Training: faces and labels in, the weights of the best epoch out; stopped anywhere, it resumes to the same bits.

Nothing random outlives a step: the order of the faces follows from the seed and the epoch; dropout and augmentation
from the seed, the epoch and the step. A checkpoint between two steps is therefore the whole state.

Several processes may train one network: each goes through the same steps with its share of every batch.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shared.errors import GenderlineError
from trainer.augment import augment
from trainer.checkpoint import Checkpoint, CheckpointError, dump
from trainer.device import DeviceFaces, seeded
from trainer.model import build_network
from trainer.objective import Objective, Targets, targets_on
from trainer.recipe import FULL_SIDE, Recipe
from trainer.team import Team

PROGRESS_EVERY_S: Final = 0.5
WARM_UP_SHARE: Final = 0.05
EVALUATION_BATCH: Final = 256
VALIDATION_SHARE: Final = 1 / 3
"""What a face costs in validation, without backward pass, as a share of its cost in training; for the time left."""
MEASURED_S: Final = 1.5
"""How long `measure_speed` measures, after as many steps as `FIRST_STEPS`, in which libraries warm up."""
FIRST_STEPS: Final = 3

Weights = dict[str, torch.Tensor]


class Interrupted(Exception):
    """Training was asked to stop; the checkpoint just given to `on_checkpoint` carries on from here."""


class TrainingDiverged(GenderlineError):
    """The loss stopped being a finite number."""

    default_code = "training_diverged"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training is.

    Attributes:
        epoch: the epoch under way, from 1, of at most `epochs`.
        step: steps done in it, of `steps`.
        images_per_second: training faces in the last few seconds, per second.
        eta_s: seconds left if no early stopping cuts it short.
        loss: mean training loss in this epoch so far.
        accuracy: share of this epoch's training faces that were right so far, as augmented.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    eta_s: float
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class EpochRow:
    """A finished epoch: a row of `history.csv`.

    Attributes:
        side: of the faces in this epoch, in pixels, in training and validation.
        train_loss: mean over the epoch's steps, with dropout and augmentation.
        train_accuracy: likewise.
        val_loss: mean log loss on the validation faces after the epoch.
        val_accuracy: likewise.
        seconds: the epoch with its validation.
        images_per_second: training faces per second, without validation.
    """

    epoch: int
    side: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to.

    Attributes:
        weights: the state of the network after its best epoch, on the CPU.
        best_epoch: the one with the lowest validation loss, among those with faces of full size.
        seconds: time spent, over all processes that had a part in it.
    """

    weights: Weights
    history: list[EpochRow]
    best_epoch: int
    seconds: float


def train(
    faces: NDArray[np.uint8],
    targets: Targets,
    *,
    training: NDArray[np.intp],
    validation: NDArray[np.intp],
    recipe: Recipe,
    dataset_sha256: str,
    device: torch.device,
    team: Team | None = None,
    resume: Checkpoint | None = None,
    checkpoint_s: float = 60.0,
    on_checkpoint: Callable[[bytes], None],
    on_step: Callable[[Progress], None],
    on_epoch: Callable[[EpochRow], None],
    should_stop: Callable[[], bool],
) -> Trained:
    """Trains a network until its validation loss has not fallen for `recipe.patience` epochs of full size.

    Args:
        faces: uint8 (N, 128, 128), luma; may be a memory map.
        targets: what the file names say about them.
        training: indices of the faces to learn from, 2 or more.
        validation: indices of the faces that decide which epoch is best, 1 or more.
        recipe: what to do.
        dataset_sha256: names the data in checkpoints.
        device: where to compute; on a CPU with the same number of threads, resuming gives the same bits.
        team: the processes that train together, each of which calls this with the same arguments, but for the
            callbacks: those of the leader count. None is a team of one.
        resume: where an interrupted run of the same recipe and data stood; None starts anew.
        checkpoint_s: seconds between checkpoints; 0 makes one after every step.
        on_checkpoint: gets checkpoints as bytes for `checkpoint.load`: regularly, when interrupted, and at the end.
        on_step: gets the progress, about twice a second.
        on_epoch: gets each finished epoch; again, with the same losses, where a run resumes from before its end.
        should_stop: asked before every step.

    Raises:
        Interrupted: `should_stop` said so.
        TrainingDiverged: the loss is not finite.
        CheckpointError: `resume` belongs to another run.
        ValueError: there are too few faces.
    """
    if len(training) < 2 or len(validation) < 1:
        raise ValueError(
            f"found {len(training)} training and {len(validation)} validation faces; expected 2 and 1, or more"
        )
    team = team or Team()
    source = DeviceFaces(faces, device)
    labels = targets_on(device, targets)
    with seeded(device, recipe.seed):
        network = build_network(recipe.network, dropout=recipe.dropout)
        objective = Objective(network, recipe.auxiliary).to(device)
    optimizer = _optimizer(objective, recipe)
    average = _average(network, recipe)
    best: nn.Module = network if average is None else average.module

    epoch, step = 1, 0
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, seen; summed where they are computed
    epoch_s = spent_s = 0.0
    history: list[EpochRow] = []
    best_epoch, best_loss, best_network = 0, float("inf"), _copied(best)
    if resume is not None:
        resume.require(recipe.as_dict(), dataset_sha256)
        _restore(objective, optimizer, average, resume)
        epoch, step = resume.epoch, resume.step
        sums.copy_(resume.sums)
        epoch_s, spent_s = resume.epoch_s, resume.spent_s
        history = [EpochRow(**row) for row in resume.history]
        best_epoch, best_loss, best_network = resume.best_epoch, resume.best_loss, resume.best_network
    shared_objective = team.wrap(objective, device)

    started = saved = time.monotonic()
    epoch_started = started - epoch_s
    reported = -float("inf")
    speed = _Speed()

    def save() -> None:
        nonlocal saved
        now = time.monotonic()
        _require_finite(sums[0].item(), recipe, epoch)
        if team.leads:
            on_checkpoint(
                dump(
                    Checkpoint(
                        recipe=recipe.as_dict(),
                        dataset_sha256=dataset_sha256,
                        epoch=epoch,
                        step=step,
                        objective=objective.state_dict(),
                        optimizer=optimizer.state_dict(),
                        average=average.state_dict() if average is not None else {},
                        sums=sums,
                        epoch_s=now - epoch_started,
                        spent_s=spent_s + now - started,
                        history=[asdict(row) for row in history],
                        best_epoch=best_epoch,
                        best_loss=best_loss,
                        best_network=best_network,
                    )
                )
            )
        saved = time.monotonic()

    def side_of(number: int) -> int:
        return recipe.side(number) if network.any_side else FULL_SIDE

    def cost_of(number: int) -> float:
        return (side_of(number) / FULL_SIDE) ** 2

    small_epochs = sum(side_of(number) != FULL_SIDE for number in range(1, recipe.epochs + 1))
    while epoch <= recipe.epochs and epoch - 1 - max(best_epoch, small_epochs) < recipe.patience:
        batches = split_into_batches(training, recipe.batch_size, seed=recipe.seed, epoch=epoch, least=2 * team.size)
        side = side_of(epoch)

        network.train()
        step_started = time.monotonic()
        while step < len(batches):
            if team.agree(should_stop()):
                save()
                raise Interrupted
            batch = team.share(batches[step])
            rate = learning_rate_at(recipe, (epoch - 1) * len(batches) + step, recipe.epochs * len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            with seeded(device, recipe.seed, epoch, step + 1, *([team.rank] if team.rank else [])) as generator:
                total, loss, correct = _forward(
                    shared_objective, recipe, source.take(batch), labels[torch.from_numpy(batch)], side, generator
                )
                optimizer.zero_grad()
                # Gradients are averaged over the team, whose parts of a batch may differ by a face.
                (total * (len(batch) * team.size / len(batches[step]))).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if average is not None:
                average.update_parameters(network)
            counted = torch.stack([loss.double() * len(batch), correct.double(), sums.new_tensor(len(batch))])
            sums += team.sum(counted)
            step += 1

            now = time.monotonic()
            speed.add(now - step_started, len(batches[step - 1]), cost_of(epoch))
            if team.leads and now - reported >= PROGRESS_EVERY_S:
                reported = now
                loss_sum, correct_sum, seen = sums.tolist()
                _require_finite(loss_sum, recipe, epoch)
                left = (len(training) - seen) * cost_of(epoch)
                left += sum(len(training) * cost_of(number) for number in range(epoch + 1, recipe.epochs + 1))
                left *= 1 + len(validation) / len(training) * VALIDATION_SHARE
                on_step(
                    Progress(
                        epoch=epoch,
                        epochs=recipe.epochs,
                        step=step,
                        steps=len(batches),
                        images_per_second=speed.per_second,
                        eta_s=left / speed.cost_per_second,
                        loss=loss_sum / seen,
                        accuracy=correct_sum / seen,
                    )
                )
            if team.agree(now - saved >= checkpoint_s):
                save()
            step_started = time.monotonic()
        trained_s = time.monotonic() - epoch_started

        def told_to_stop() -> bool:
            return team.size == 1 and should_stop()

        try:
            mine = predict_logits(best, source, team.share(validation), side=side, should_stop=told_to_stop)
        except Interrupted:
            save()
            raise
        val_loss, val_accuracy = _loss_and_accuracy(team.joined(mine), targets.female[validation])
        loss_sum, correct_sum, seen = sums.tolist()
        _require_finite(loss_sum + val_loss, recipe, epoch)
        if side == FULL_SIDE and val_loss < best_loss:
            best_epoch, best_loss, best_network = epoch, val_loss, _copied(best)
        now = time.monotonic()
        row = EpochRow(
            epoch=epoch,
            side=side,
            train_loss=loss_sum / seen,
            train_accuracy=correct_sum / seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=optimizer.param_groups[0]["lr"],
            seconds=now - epoch_started,
            images_per_second=seen / max(trained_s, 1e-9),
        )
        history.append(row)
        if team.leads:
            on_epoch(row)
        epoch, step, epoch_started = epoch + 1, 0, now
        sums.zero_()

    save()  # so that whatever comes after training can be interrupted without training again
    return Trained(best_network, history, best_epoch, spent_s + time.monotonic() - started)


def split_into_batches(
    training: NDArray[np.intp], batch_size: int, *, seed: int, epoch: int, least: int = 2
) -> list[NDArray[np.intp]]:
    """Shuffles an epoch's faces and cuts them into batches of nearly equal size.

    Equal sizes weigh all faces alike, and there is no last batch of one face, on which batch normalisation fails.

    Args:
        training: indices, 2 or more.
        batch_size: the most faces in a batch (more where a batch of less than `least` would be left).
        seed: the run's.
        epoch: from 1.
        least: the fewest faces in a batch, where there are as many.

    Returns:
        Batches that hold each index once; the same for the same arguments.
    """
    order = np.random.default_rng((seed, epoch)).permutation(training)
    count = min(-(-len(order) // batch_size), max(1, len(order) // least))
    return np.array_split(order, count)


def learning_rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """Returns the step size for a step, counted from 0 over the whole run of `steps`.

    `cosine` rises for the first twentieth, as the statistics of normalisation settle, and then falls along half a
    cosine (Loshchilov and Hutter, "SGDR", 2017, without restarts).
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warm_up = WARM_UP_SHARE * steps
    if step < warm_up:
        return recipe.learning_rate * (step + 1) / (warm_up + 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def measure_speed(recipe: Recipe, device: torch.device) -> float:
    """Measures how many faces of full size a second the recipe trains on, in one process, in a second or two."""
    faces = torch.zeros((recipe.batch_size, 1, FULL_SIDE, FULL_SIDE), dtype=torch.uint8, device=device)
    targets = torch.zeros((recipe.batch_size, 3), dtype=torch.int64, device=device)
    with seeded(device, recipe.seed) as generator:
        network = build_network(recipe.network, dropout=recipe.dropout)
        objective = Objective(network, recipe.auxiliary).to(device)
        optimizer = _optimizer(objective, recipe)
        started = 0.0
        for step in itertools.count():
            if step == FIRST_STEPS:
                started = time.monotonic()
            loss, _, _ = _forward(objective, recipe, faces, targets, FULL_SIDE, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits until the device is done
            elapsed = time.monotonic() - started
            if step > FIRST_STEPS and elapsed >= MEASURED_S:
                return (step - FIRST_STEPS + 1) * recipe.batch_size / elapsed
    raise AssertionError("the loop above ends by its return")


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    source: DeviceFaces,
    indices: NDArray[np.intp],
    *,
    side: int = FULL_SIDE,
    should_stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32]:
    """Returns the network's logits, float32 (n,), for the faces at `indices`; leaves it in evaluation mode.

    Args:
        network: faces float32 (n, 1, side, side) in [0, 1] → logits.
        source: all faces.
        indices: which of them, in this order.
        side: to which the faces are shrunk first.
        should_stop: asked before every batch.

    Raises:
        Interrupted: `should_stop` said so.
    """
    network.eval()
    logits = [torch.empty(0)]
    for start in range(0, len(indices), EVALUATION_BATCH):
        if should_stop():
            raise Interrupted
        faces = _shrunk(source.take(indices[start : start + EVALUATION_BATCH]), side)
        logits.append(network(faces).float().cpu())
    return torch.cat(logits).numpy()


def _forward(
    objective: nn.Module,
    recipe: Recipe,
    faces: torch.Tensor,
    targets: torch.Tensor,
    side: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what `Objective` says of faces uint8 (n, 1, 128, 128), as this recipe shows them."""
    inputs = _shrunk(faces, side)
    if recipe.augment:
        inputs = augment(inputs, generator)
    with torch.autocast(faces.device.type, dtype=torch.bfloat16, enabled=faces.device.type == "cuda"):
        total, loss, correct = objective(inputs, targets)
    return total, loss, correct


def _shrunk(faces: torch.Tensor, side: int) -> torch.Tensor:
    inputs = faces.float().div_(255)
    if side != FULL_SIDE:
        inputs = functional.interpolate(inputs, size=(side, side), mode="bilinear", antialias=True)
    return inputs


def _optimizer(objective: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Decays the weights of layers, not their biases nor the scales of normalisation, which decay would only bend."""
    parameters = list(objective.parameters())
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _loss_and_accuracy(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> tuple[float, float]:
    exact = torch.from_numpy(logits).double()
    loss = functional.binary_cross_entropy_with_logits(exact, torch.from_numpy(labels.astype(np.float64)))
    return loss.item(), float(np.mean((logits >= 0) == (labels > 0)))


def _average(network: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """Returns what keeps a moving average of the weights, where the recipe wants one."""
    if not recipe.averaging:
        return None
    formula = get_ema_multi_avg_fn(recipe.averaging)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=formula, use_buffers=True)


def _require_finite(loss: float, recipe: Recipe, epoch: int) -> None:
    if not np.isfinite(loss):
        raise TrainingDiverged(
            f"training diverged in epoch {epoch}: found a loss of {loss}, expected a finite number; "
            f"try a learning_rate below {recipe.learning_rate:g}"
        )


def _copied(module: nn.Module) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _restore(
    objective: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None, checkpoint: Checkpoint
) -> None:
    try:
        objective.load_state_dict(checkpoint.objective)
        optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))  # it would keep and change the tensors
        if average is not None:
            average.load_state_dict(checkpoint.average)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's weights do not fit the network: {error}") from None


class _Speed:
    """Faces per second over the last few seconds of training; for the time left, in faces of full size."""

    _WINDOW_S = 10.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int, float]] = deque()
        self._seconds = self._faces = self._cost = 0.0

    def add(self, seconds: float, faces: int, cost: float) -> None:
        """Counts a step over faces that cost `cost` faces of full size each."""
        self._steps.append((seconds, faces, faces * cost))
        self._count(self._steps[-1], 1)
        while self._seconds > self._WINDOW_S and len(self._steps) > 1:
            self._count(self._steps.popleft(), -1)

    def _count(self, step: tuple[float, int, float], sign: int) -> None:
        self._seconds += sign * step[0]
        self._faces += sign * step[1]
        self._cost += sign * step[2]

    @property
    def per_second(self) -> float:
        return self._faces / max(self._seconds, 1e-9)

    @property
    def cost_per_second(self) -> float:
        return self._cost / max(self._seconds, 1e-9)

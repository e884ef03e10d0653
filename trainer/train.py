"""Training: faces and labels in, the weights of the best epoch out; stopped anywhere, it resumes to the same bits.

Nothing random outlives a step: the order of the faces follows from the seed and the epoch; dropout and augmentation
from the seed, the epoch and the step. A checkpoint between two steps is therefore the whole state.
"""

from __future__ import annotations

import copy
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

from shared.errors import GenderlineError
from shared.params import TrainingParams
from trainer.augment import augment
from trainer.checkpoint import Checkpoint, CheckpointError, dump
from trainer.device import DeviceFaces, seeded
from trainer.model import build_network

PROGRESS_EVERY_S: Final = 0.5
WARM_UP_SHARE: Final = 0.05
EVALUATION_BATCH: Final = 256
VALIDATION_SHARE: Final = 1 / 3
"""What a face costs in validation, without backward pass, as a share of its cost in training; for the time left."""

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
        train_loss: mean over the epoch's steps, with dropout and augmentation.
        train_accuracy: likewise.
        val_loss: mean log loss on the validation faces after the epoch.
        val_accuracy: likewise.
        seconds: the epoch with its validation.
        images_per_second: training faces per second, without validation.
    """

    epoch: int
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
        best_epoch: the one with the lowest validation loss.
        seconds: time spent, over all processes that had a part in it.
    """

    weights: Weights
    history: list[EpochRow]
    best_epoch: int
    seconds: float


def train(
    faces: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    training: NDArray[np.intp],
    validation: NDArray[np.intp],
    params: TrainingParams,
    dataset_sha256: str,
    device: torch.device,
    resume: Checkpoint | None = None,
    checkpoint_s: float = 60.0,
    on_checkpoint: Callable[[bytes], None],
    on_step: Callable[[Progress], None],
    on_epoch: Callable[[EpochRow], None],
    should_stop: Callable[[], bool],
) -> Trained:
    """Trains a network until its validation loss has not fallen for `params.patience` epochs.

    Args:
        faces: uint8 (N, 128, 128), luma; may be a memory map.
        labels: uint8 (N,), 1 where the label is female.
        training: indices of the faces to learn from, 2 or more.
        validation: indices of the faces that decide which epoch is best, 1 or more.
        params: what the user chose.
        dataset_sha256: names the data in checkpoints.
        device: where to compute; on a CPU with the same number of threads, resuming gives the same bits.
        resume: where an interrupted run of the same parameters and data stood; None starts anew.
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
    source = DeviceFaces(faces, device)
    targets = torch.from_numpy(labels.astype(np.float32)).to(device)
    with seeded(device, params.seed):
        network = build_network(params.network, dropout=params.dropout).to(device)
    # With no weight decay this is plain Adam.
    optimizer = torch.optim.AdamW(network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)

    epoch, step = 1, 0
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, seen; summed where they are computed
    epoch_s = spent_s = 0.0
    history: list[EpochRow] = []
    best_epoch, best_loss, best_network = 0, float("inf"), _copied(network)
    if resume is not None:
        resume.require(params.as_dict(), dataset_sha256)
        _restore(network, optimizer, resume)
        epoch, step = resume.epoch, resume.step
        sums.copy_(resume.sums)
        epoch_s, spent_s = resume.epoch_s, resume.spent_s
        history = [EpochRow(**row) for row in resume.history]
        best_epoch, best_loss, best_network = resume.best_epoch, resume.best_loss, resume.best_network

    started = saved = time.monotonic()
    epoch_started = started - epoch_s
    reported = -float("inf")
    speed = _Speed()

    def save() -> None:
        nonlocal saved
        now = time.monotonic()
        _require_finite(sums[0].item(), params, epoch)
        on_checkpoint(
            dump(
                Checkpoint(
                    params=params.as_dict(),
                    dataset_sha256=dataset_sha256,
                    epoch=epoch,
                    step=step,
                    network=network.state_dict(),
                    optimizer=optimizer.state_dict(),
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

    while epoch <= params.epochs and epoch - 1 - best_epoch < params.patience:
        batches = split_into_batches(training, params.batch_size, seed=params.seed, epoch=epoch)

        network.train()
        step_started = time.monotonic()
        while step < len(batches):
            if should_stop():
                save()
                raise Interrupted
            batch = batches[step]
            rate = learning_rate_at(params, (epoch - 1) * len(batches) + step, params.epochs * len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            with seeded(device, params.seed, epoch, step + 1) as generator:
                inputs = _normalised(source.take(batch))
                if params.augment:
                    inputs = augment(inputs, generator)
                target = targets[batch]
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                    logits = network(inputs)
                logits = logits.float()
                loss = functional.binary_cross_entropy_with_logits(logits, target)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                correct = ((logits >= 0) == (target > 0.5)).sum()
                sums += torch.stack([loss.double() * len(batch), correct.double(), sums.new_tensor(len(batch))])
            step += 1

            now = time.monotonic()
            speed.add(now - step_started, len(batch))
            if now - reported >= PROGRESS_EVERY_S:
                reported = now
                loss_sum, correct_sum, seen = sums.tolist()
                _require_finite(loss_sum, params, epoch)
                epochs_left = params.epochs - epoch
                faces_left = len(training) * (epochs_left + 1) - seen
                faces_left += len(validation) * (epochs_left + 1) * VALIDATION_SHARE
                on_step(
                    Progress(
                        epoch=epoch,
                        epochs=params.epochs,
                        step=step,
                        steps=len(batches),
                        images_per_second=speed.per_second,
                        eta_s=faces_left / speed.per_second,
                        loss=loss_sum / seen,
                        accuracy=correct_sum / seen,
                    )
                )
            if now - saved >= checkpoint_s:
                save()
            step_started = time.monotonic()
        trained_s = time.monotonic() - epoch_started

        try:
            logits_now = predict_logits(network, source, validation, should_stop=should_stop)
        except Interrupted:
            save()
            raise
        val_loss, val_accuracy = _loss_and_accuracy(logits_now, labels[validation])
        loss_sum, correct_sum, seen = sums.tolist()
        _require_finite(loss_sum + val_loss, params, epoch)
        if val_loss < best_loss:
            best_epoch, best_loss, best_network = epoch, val_loss, _copied(network)
        now = time.monotonic()
        row = EpochRow(
            epoch=epoch,
            train_loss=loss_sum / seen,
            train_accuracy=correct_sum / seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=optimizer.param_groups[0]["lr"],
            seconds=now - epoch_started,
            images_per_second=seen / max(trained_s, 1e-9),
        )
        history.append(row)
        on_epoch(row)
        epoch, step, epoch_started = epoch + 1, 0, now
        sums.zero_()

    save()  # so that whatever comes after training can be interrupted without training again
    return Trained(best_network, history, best_epoch, spent_s + time.monotonic() - started)


def split_into_batches(training: NDArray[np.intp], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.intp]]:
    """Shuffles an epoch's faces and cuts them into batches of nearly equal size.

    Equal sizes weigh all faces alike, and there is no last batch of one face, on which batch normalisation fails.

    Args:
        training: indices, 2 or more.
        batch_size: the most faces in a batch (one more where a batch of one would be left).
        seed: the run's.
        epoch: from 1.

    Returns:
        Batches of 2 faces or more that hold each index once; the same for the same seed and epoch.
    """
    order = np.random.default_rng((seed, epoch)).permutation(training)
    count = min(-(-len(order) // batch_size), len(order) // 2)
    return np.array_split(order, count)


def learning_rate_at(params: TrainingParams, step: int, steps: int) -> float:
    """Returns the step size for a step, counted from 0 over the whole run of `steps`.

    `cosine` rises for the first twentieth, as the statistics of normalisation settle, and then falls along half a
    cosine (Loshchilov and Hutter, "SGDR", 2017, without restarts).
    """
    if params.schedule == "constant":
        return params.learning_rate
    warm_up = WARM_UP_SHARE * steps
    if step < warm_up:
        return params.learning_rate * (step + 1) / (warm_up + 1)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    source: DeviceFaces,
    indices: NDArray[np.intp],
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32]:
    """Returns the network's logits, float32 (n,), for the faces at `indices`; leaves it in evaluation mode.

    Raises:
        Interrupted: `should_stop`, asked before every batch, said so.
    """
    network.eval()
    logits = []
    for start in range(0, len(indices), EVALUATION_BATCH):
        if should_stop():
            raise Interrupted
        logits.append(network(_normalised(source.take(indices[start : start + EVALUATION_BATCH]))).float().cpu())
    return torch.cat(logits).numpy()


def _normalised(faces: torch.Tensor) -> torch.Tensor:
    return faces.float().div_(255)


def _loss_and_accuracy(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> tuple[float, float]:
    exact = torch.from_numpy(logits).double()
    loss = functional.binary_cross_entropy_with_logits(exact, torch.from_numpy(labels.astype(np.float64)))
    return loss.item(), float(np.mean((logits >= 0) == (labels > 0)))


def _require_finite(loss: float, params: TrainingParams, epoch: int) -> None:
    if not np.isfinite(loss):
        raise TrainingDiverged(
            f"training diverged in epoch {epoch}: found a loss of {loss}, expected a finite number; "
            f"try a learning_rate below {params.learning_rate:g}"
        )


def _copied(network: nn.Module) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}


def _restore(network: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    try:
        network.load_state_dict(checkpoint.network)
        optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))  # it would keep and change the tensors
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's weights do not fit the network: {error}") from None


class _Speed:
    """Faces per second over the last few seconds of training."""

    _WINDOW_S = 10.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds = 0.0
        self._faces = 0

    def add(self, seconds: float, faces: int) -> None:
        self._steps.append((seconds, faces))
        self._seconds += seconds
        self._faces += faces
        while self._seconds > self._WINDOW_S and len(self._steps) > 1:
            oldest_seconds, oldest_faces = self._steps.popleft()
            self._seconds -= oldest_seconds
            self._faces -= oldest_faces

    @property
    def per_second(self) -> float:
        return self._faces / max(self._seconds, 1e-9)

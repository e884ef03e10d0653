"""Training: faces and labels in, the best weights out. Interrupted anywhere, it resumes to the same bits.

No random state outlives a step: the order of the faces follows from the seed and the epoch; dropout and augmentation
follow from the seed, the epoch and the step. A checkpoint between two steps is therefore the whole state.

Several processes may train one network: each takes the same steps with its shard of every batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared.errors import GenderlineError
from shared.records.runs import EpochRow
from trainer.data.dataset import Dataset, Targets
from trainer.training.balance import weigh_genders
from trainer.training.blend import blend, choose_share
from trainer.training.calibrate import calibrated_loss, calibrated_losses
from trainer.training.checkpoint import Checkpoint, CheckpointError, dump
from trainer.training.device import DeviceFaces, seeded, to_device
from trainer.training.loss import MultiTaskLoss, Teacher, targets_to_device
from trainer.training.model import build_network
from trainer.training.process_group import ProcessGroup
from trainer.training.recipe import Recipe, epoch_cost
from trainer.training.schedule import averaging_at, first_candidate, learning_rate_at, split_into_batches
from trainer.training.starter import Weights, load_starter
from trainer.training.step import TrainStep
from trainer.training.throughput import ThroughputMeter

PROGRESS_EVERY_S: Final = 0.5
EVALUATION_BATCH: Final = 256
_SHARE_FACES: Final = 10_000
"""Validation faces that say how far to go from a start; more would not change the answer, only take longer."""


class Interrupted(Exception):
    """Training was asked to stop; the checkpoint just given to `on_checkpoint` continues from here."""


class TrainingDiverged(GenderlineError):
    """The loss stopped being a finite number."""

    default_code = "training_diverged"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of training.

    Attributes:
        epoch: the epoch under way, from 1, of at most `epochs`.
        step: steps done in it, of `steps`.
        images_per_second: training faces in the last few seconds, per second.
        eta_s: seconds left if no early stopping cuts it short.
        loss: mean training loss in this epoch so far.
        accuracy: share of this epoch's training faces predicted correctly so far, as augmented.
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
class TrainingJob:
    """What to train on, and how: the same in every process that trains.

    Attributes:
        faces: uint8 (N, 128, 128), luma; may be a memory map.
        targets: of all faces.
        training: indices of the faces to learn from, 2 or more.
        validation: indices of the faces that choose the epoch, 1 or more.
        recipe: the training parameters.
        dataset_sha256: names the data in checkpoints.
        start: the weights that `recipe.init` names; None takes the starter's, where it names any.
        teacher: what `recipe.distil` names; None where it names none.

    Raises:
        ValueError: there are too few faces.
    """

    faces: NDArray[np.uint8]
    targets: Targets
    training: NDArray[np.intp]
    validation: NDArray[np.intp]
    recipe: Recipe
    dataset_sha256: str
    start: Weights | None = None
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        if len(self.training) < 2 or len(self.validation) < 1:
            raise ValueError(
                f"found {len(self.training)} training and {len(self.validation)} validation faces; "
                "expected 2 and 1, or more"
            )

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, recipe: Recipe, start: Weights | None = None, teacher: Teacher | None = None
    ) -> TrainingJob:
        """Returns the job of training on a dataset's training part."""
        return cls(
            faces=dataset.faces,
            targets=dataset.targets,
            training=dataset.part("train"),
            validation=dataset.part("validation"),
            recipe=recipe,
            dataset_sha256=dataset.sha256,
            start=start,
            teacher=teacher,
        )


def _ignore(_: Any) -> None:
    """Does nothing."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What training calls on its way. Of several processes, only the main process's hooks are called.

    Attributes:
        on_checkpoint: gets checkpoints as bytes for `checkpoint.load`: regularly, when interrupted, and at the end.
        on_step: gets the progress, about twice a second.
        on_epoch: gets each finished epoch; again, with the same losses, where a run resumes from before its end.
        should_stop: asked before every step.
        checkpoint_s: seconds between checkpoints; 0 makes one after every step.
    """

    on_checkpoint: Callable[[bytes], None] = _ignore
    on_step: Callable[[Progress], None] = _ignore
    on_epoch: Callable[[EpochRow], None] = _ignore
    should_stop: Callable[[], bool] = lambda: False
    checkpoint_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of training.

    Attributes:
        weights: the state of the network after its best epoch, or on the way there from the start, on the CPU.
        best_epoch: the epoch with the lowest validation loss, from `first_candidate` on where training came so far.
        share: of the way from the start to that epoch's weights; 1 where training began from random ones.
        seconds: time spent, over all processes that continued the run one after the other.
    """

    weights: Weights
    history: list[EpochRow]
    best_epoch: int
    share: float
    seconds: float


def train(
    job: TrainingJob,
    *,
    device: torch.device,
    group: ProcessGroup,
    hooks: Hooks,
    resume: Checkpoint | None = None,
) -> Trained:
    """Trains a network until the last epoch, or until its validation loss has not fallen for `recipe.patience` epochs.

    From a start, `choose_share` then says how far to go from it towards the best epoch's weights.

    Args:
        job: the same in every process of the group.
        device: where to compute; on a CPU with the same number of threads, resuming gives the same bits.
        group: the processes that train together, each of which calls this.
        hooks: called on the way.
        resume: the checkpoint of an interrupted run of the same recipe and data; None starts anew.

    Raises:
        Interrupted: `hooks.should_stop` said so.
        TrainingDiverged: the loss is not finite.
        CheckpointError: `resume` belongs to another run.
    """
    recipe = job.recipe
    source = DeviceFaces(job.faces, device)
    targets = targets_to_device(job.targets, device)
    gender_weights = weigh_genders(job.targets.female[job.training])
    start = None if recipe.init == "scratch" else job.start or load_starter().weights
    with seeded(device, recipe.seed):
        network = build_network(recipe.network, dropout=recipe.dropout, mirror=recipe.mirror)
        if start is not None:
            network.load_state_dict(start)
        model = MultiTaskLoss(network, recipe.auxiliary, gender_weights).to(device)
    teacher = None if job.teacher is None else job.teacher.build(device)
    take_step = TrainStep(model, recipe, device, teacher=teacher)
    average = take_step.average
    best: nn.Module = network if average is None else average.module

    epoch, step = 1, 0
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, seen: summed where they are computed
    epoch_s = spent_s = 0.0
    history: list[EpochRow] = []
    best_epoch, best_loss, best_network = 0, float("inf"), _copy_weights(best)
    if resume is not None:
        resume.require(recipe.as_dict(), job.dataset_sha256)
        _restore(model, take_step, resume)
        epoch, step = resume.epoch, resume.step
        sums.copy_(resume.sums)
        epoch_s, spent_s = resume.epoch_s, resume.spent_s
        history = [EpochRow(**row) for row in resume.history]
        best_epoch, best_loss, best_network = resume.best_epoch, resume.best_loss, resume.best_network
    take_step.ddp = group.wrap_ddp(model, device)

    def validate(faces: NDArray[np.intp]) -> NDArray[np.float32]:
        """Returns the logits of some faces by `best`."""
        stop = hooks.should_stop if group.size == 1 else lambda: False
        return group.all_gather(predict_logits(best, source, group.shard(faces), should_stop=stop))

    started = saved = time.monotonic()
    epoch_started = started - epoch_s
    reported = -float("inf")
    throughput = ThroughputMeter()

    def save() -> None:
        nonlocal saved
        now = time.monotonic()
        _require_finite(sums[0].item(), recipe, epoch)
        if group.is_main:
            hooks.on_checkpoint(
                dump(
                    Checkpoint(
                        recipe=recipe.as_dict(),
                        dataset_sha256=job.dataset_sha256,
                        epoch=epoch,
                        step=step,
                        model=model.state_dict(),
                        optimizer=take_step.optimizer.state_dict(),
                        average=average.state_dict() if average is not None else {},
                        sums=sums,
                        epoch_s=now - epoch_started,
                        spent_s=spent_s + now - started,
                        history=[row.as_dict() for row in history],
                        best_epoch=best_epoch,
                        best_loss=best_loss,
                        best_network=best_network,
                    )
                )
            )
        saved = time.monotonic()

    # Patience begins where an epoch may be kept: before that, steps are too large to tell whether more will come.
    while epoch <= recipe.epochs and epoch - max(best_epoch + 1, first_candidate(recipe)) < recipe.patience:
        batches = split_into_batches(
            job.training, recipe.batch_size, seed=recipe.seed, epoch=epoch, least=2 * group.size
        )

        network.train()
        step_started = time.monotonic()
        while step < len(batches):
            if group.broadcast(hooks.should_stop()):
                save()
                raise Interrupted
            batch = group.shard(batches[step])
            done = (epoch - 1) * len(batches) + step
            loss, correct = take_step(
                source.take(batch),
                targets[to_device(batch, device)],
                rate=learning_rate_at(recipe, done, recipe.epochs * len(batches)),
                decay=averaging_at(recipe, done),
                seeds=(recipe.seed, epoch, step + 1, *([group.rank] if group.rank else [])),
                # Gradients are averaged over the processes, whose shards of a batch may differ by a face.
                weight=len(batch) * group.size / len(batches[step]),
            )
            counted = torch.stack([loss.double() * len(batch), correct.double(), sums.new_full((), len(batch))])
            sums += group.all_reduce(counted)
            step += 1

            now = time.monotonic()
            reports, saves = group.broadcast_object(
                (now - reported >= PROGRESS_EVERY_S, now - saved >= hooks.checkpoint_s)
            )
            if reports:  # a GPU is some steps behind until it is asked for a number
                loss_sum, correct_sum, seen = sums.tolist()
            now = time.monotonic()
            throughput.add(now - step_started, len(batches[step - 1]))
            if reports:
                reported = now
                _require_finite(loss_sum, recipe, epoch)  # in all processes: they would wait for one that stopped alone
                left = len(job.training) * (recipe.epochs - epoch + 1) - seen
                left *= epoch_cost(len(job.training), len(job.validation)) / len(job.training)
                progress = Progress(
                    epoch=epoch,
                    epochs=recipe.epochs,
                    step=step,
                    steps=len(batches),
                    images_per_second=throughput.per_second,
                    eta_s=left / throughput.per_second,
                    loss=loss_sum / seen,
                    accuracy=correct_sum / seen,
                )
                if group.is_main:
                    hooks.on_step(progress)
            if saves:
                save()
            step_started = time.monotonic()
        loss_sum, correct_sum, seen = sums.tolist()  # as above: before the clock is read
        trained_s = time.monotonic() - epoch_started

        try:
            logits = validate(job.validation)
        except Interrupted:
            save()
            raise
        truth = job.targets.female[job.validation]
        val_loss = calibrated_loss(logits, truth, gender_weights)
        val_accuracy = float(np.mean((logits >= 0) == (truth > 0)))
        _require_finite(loss_sum + val_loss, recipe, epoch)
        if val_loss < best_loss or epoch == first_candidate(recipe):
            best_epoch, best_loss, best_network = epoch, val_loss, _copy_weights(best)
        now = time.monotonic()
        row = EpochRow(
            epoch=epoch,
            train_loss=loss_sum / seen,
            train_accuracy=correct_sum / seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=learning_rate_at(recipe, epoch * len(batches) - 1, recipe.epochs * len(batches)),
            seconds=now - epoch_started,
            images_per_second=seen / max(trained_s, 1e-9),
        )
        history.append(row)
        if group.is_main:
            hooks.on_epoch(row)
        epoch, step, epoch_started = epoch + 1, 0, now
        sums.zero_()

    save()  # so that what follows can be interrupted without training again
    share = 1.0
    if start is not None:
        some = job.validation[:: -(-len(job.validation) // _SHARE_FACES)]

        def losses(share: float) -> NDArray[np.float64]:
            if group.broadcast(hooks.should_stop()):
                raise Interrupted
            best.load_state_dict(blend(start, best_network, share))
            return calibrated_losses(validate(some), job.targets.female[some], gender_weights)

        share = choose_share(losses)
        best_network = blend(start, best_network, share)
    return Trained(best_network, history, best_epoch, share, spent_s + time.monotonic() - started)


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    source: DeviceFaces,
    indices: NDArray[np.intp],
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32]:
    """Returns the network's logits, float32 (n,), for the faces at `indices`; leaves it in evaluation mode.

    Args:
        network: faces float32 (n, 1, 128, 128) in [0, 1] → logits.
        source: all faces.
        indices: which of them, in this order.
        should_stop: asked before every batch.

    Raises:
        Interrupted: `should_stop` said so.
    """
    network.eval()
    logits: list[torch.Tensor] = []
    for start in range(0, len(indices), EVALUATION_BATCH):
        if should_stop():
            raise Interrupted
        faces = source.take(indices[start : start + EVALUATION_BATCH]).float().div_(255)
        logits.append(network(faces).float())
    return torch.cat(logits).cpu().numpy() if logits else np.empty(0, np.float32)


def _require_finite(loss: float, recipe: Recipe, epoch: int) -> None:
    if not np.isfinite(loss):
        raise TrainingDiverged(
            f"training diverged in epoch {epoch}: found a loss of {loss}, expected a finite number; "
            f"try a learning_rate below {recipe.learning_rate:g}"
        )


def _copy_weights(module: nn.Module) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _restore(model: nn.Module, step: TrainStep, checkpoint: Checkpoint) -> None:
    try:
        model.load_state_dict(checkpoint.model)
        step.restore(checkpoint.optimizer, checkpoint.average)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's weights do not fit the network: {error}") from None

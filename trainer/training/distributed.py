"""Training in several processes: the main process says what to train, and the members train along, run by run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, ParamSpec

import torch

from shared.store.base import Store
from trainer.data.dataset import Dataset, open_dataset
from trainer.training import checkpoint
from trainer.training.checkpoint import Checkpoint
from trainer.training.loss import Teacher
from trainer.training.process_group import ProcessGroup
from trainer.training.recipe import Recipe
from trainer.training.starter import Weights
from trainer.training.train import Hooks, Interrupted, Trained, TrainingDiverged, TrainingJob, train

P = ParamSpec("P")

_RAISED_BY_ALL: Final = (Interrupted, TrainingDiverged)
"""Errors that every process raises at the same step, since all of them decide by the same numbers."""


def train_distributed(
    group: ProcessGroup,
    dataset: Dataset,
    recipe: Recipe,
    device: torch.device,
    hooks: Hooks,
    *,
    resume: Checkpoint | None,
    start: Weights | None = None,
    teacher: Teacher | None = None,
) -> Trained:
    """Trains on a dataset of the store, together with every process in `run_member`.

    Args:
        group: this process is its main process.
        dataset: its training part is learned from, its validation part chooses the epoch.
        recipe: the training parameters.
        device: where this process computes.
        hooks: as in `train`.
        resume: as in `train`.
        start: as in `TrainingJob`.
        teacher: as in `TrainingJob`.

    Raises:
        Exception: raised by `train` or a hook. The members have stopped by then and wait for the next run, unless this
            process failed alone, in the middle of a step: then the group is aborted.
    """
    work: dict[str, Any] = {
        "sha256": dataset.sha256,
        "edits": dataset.edits,
        "recipe": recipe.as_dict(),
        "checkpoint_s": hooks.checkpoint_s,
        "start": start,
        "teacher": teacher,
    }
    work["resume"] = None if resume is None else checkpoint.dump(resume)
    errors = DeferredErrors()
    try:
        group.broadcast_object(work)
        return train(
            TrainingJob.from_dataset(dataset, recipe, start, teacher),
            device=device,
            group=group,
            resume=resume,
            hooks=replace(
                hooks,
                on_checkpoint=errors.wrap(hooks.on_checkpoint),
                on_step=errors.wrap(hooks.on_step),
                on_epoch=errors.wrap(hooks.on_epoch),
                should_stop=lambda: errors.first is not None or hooks.should_stop(),
            ),
        )
    except _RAISED_BY_ALL:
        raise
    except Exception:
        group.abort()
        raise
    finally:
        if errors.first is not None:
            raise errors.first


def run_member(group: ProcessGroup, store: Store, device: torch.device) -> None:
    """Trains along with the main process, run by run, until it calls `stop_members`.

    Args:
        group: this process is a member of it.
        store: the main process's store, which holds the datasets.
        device: where this process computes.
    """
    while (work := group.broadcast_object(None)) is not None:
        with open_dataset(store, work["sha256"], work["edits"]) as dataset:
            try:
                train(
                    TrainingJob.from_dataset(
                        dataset, Recipe.model_validate(work["recipe"]), work["start"], work["teacher"]
                    ),
                    device=device,
                    group=group,
                    resume=None if work["resume"] is None else checkpoint.load(work["resume"]),
                    hooks=Hooks(checkpoint_s=work["checkpoint_s"]),
                )
            except _RAISED_BY_ALL:
                continue  # the main process has raised the same, and decides what follows


def stop_members(group: ProcessGroup) -> None:
    """Ends `run_member` in every member; the main process's last call but `ProcessGroup.destroy`."""
    group.broadcast_object(None)


class DeferredErrors:
    """Keeps the first error of wrapped callbacks until all processes have stopped: they would wait forever otherwise.

    Attributes:
        first: the first error; None where there was none.
    """

    def __init__(self) -> None:
        self.first: Exception | None = None

    def wrap(self, callback: Callable[P, None]) -> Callable[P, None]:
        """Returns a callback that keeps its error instead of raising it, and does nothing after the first one."""

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            if self.first is None:
                try:
                    callback(*args, **kwargs)
                except Exception as error:
                    self.first = error

        return wrapped

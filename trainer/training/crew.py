"""How a team carries out one training: its leader says what to train, and the others train along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, ParamSpec

import torch

from shared.store.base import Store
from trainer.data.dataset import Dataset, open_dataset
from trainer.training import checkpoint
from trainer.training.checkpoint import Checkpoint
from trainer.training.distributed import Team
from trainer.training.recipe import Recipe
from trainer.training.train import EpochRow, Interrupted, Progress, Trained, TrainingDiverged, train

P = ParamSpec("P")

_BY_ALL: Final = (Interrupted, TrainingDiverged)
"""What every member raises at the same step, as all of them decide by the same numbers."""


def lead(
    team: Team,
    dataset: Dataset,
    recipe: Recipe,
    device: torch.device,
    *,
    resume: Checkpoint | None,
    checkpoint_s: float,
    on_checkpoint: Callable[[bytes], None],
    on_step: Callable[[Progress], None],
    on_epoch: Callable[[EpochRow], None],
    should_stop: Callable[[], bool],
) -> Trained:
    """Trains on a dataset of the store, with every member that follows.

    Args:
        team: whose leader this process is.
        dataset: its training part is learned from, its validation part decides which epoch is best.
        recipe: what to do.
        device: as in `train`, and so the rest.
        resume: likewise.
        checkpoint_s: likewise.
        on_checkpoint: likewise.
        on_step: likewise.
        on_epoch: likewise.
        should_stop: likewise.

    Raises:
        Exception: what `train` or a callback raises. The members have stopped by then, and follow again; unless this
            process failed alone, in the middle of a step: then the team is lost.
    """
    work = {"sha256": dataset.sha256, "recipe": recipe.as_dict(), "checkpoint_s": checkpoint_s}
    work["resume"] = None if resume is None else checkpoint.dump(resume)
    guard = _Guard()
    try:
        team.told(work)
        return _train(
            team,
            dataset,
            recipe,
            device,
            resume=resume,
            checkpoint_s=checkpoint_s,
            on_checkpoint=guard.kept(on_checkpoint),
            on_step=guard.kept(on_step),
            on_epoch=guard.kept(on_epoch),
            should_stop=lambda: guard.failure is not None or should_stop(),
        )
    except _BY_ALL:
        raise
    except Exception:
        team.lose()
        raise
    finally:
        if guard.failure is not None:
            raise guard.failure


def dismiss(team: Team) -> None:
    """Tells every member that there is no more work; the leader's last call but `Team.leave`."""
    team.told(None)


def follow(team: Team, store: Store, device: torch.device) -> None:
    """Trains along with the leader, run by run, until it dismisses the team.

    Args:
        team: whose member this process is.
        store: the leader's, where the datasets lie.
        device: where this member computes.
    """
    while (work := team.told(None)) is not None:
        with open_dataset(store, work["sha256"]) as dataset:
            try:
                _train(
                    team,
                    dataset,
                    Recipe.model_validate(work["recipe"]),
                    device,
                    resume=None if work["resume"] is None else checkpoint.load(work["resume"]),
                    checkpoint_s=work["checkpoint_s"],
                    on_checkpoint=_unheard,
                    on_step=_unheard,
                    on_epoch=_unheard,
                    should_stop=lambda: False,
                )
            except _BY_ALL:
                continue  # the leader has seen the same, and knows what it means


def _train(team: Team, dataset: Dataset, recipe: Recipe, device: torch.device, **others: Any) -> Trained:
    return train(
        dataset.faces,
        dataset.targets,
        training=dataset.part("train"),
        validation=dataset.part("validation"),
        recipe=recipe,
        dataset_sha256=dataset.sha256,
        device=device,
        team=team,
        **others,
    )


def _unheard(_: object) -> None:
    """What a member has to say: only the leader is listened to."""


class _Guard:
    """Keeps the first failure of a callback until all members have stopped: they would wait for the leader forever."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def kept(self, callback: Callable[P, None]) -> Callable[P, None]:
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            if self.failure is None:
                try:
                    callback(*args, **kwargs)
                except Exception as error:
                    self.failure = error

        return guarded

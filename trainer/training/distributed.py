"""Training in several processes, started by torchrun: the main process says what to train, and the members train along.

One process alone is a group of one.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, ParamSpec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from shared.store.base import Store
from trainer.data.dataset import Dataset, open_dataset
from trainer.training import checkpoint
from trainer.training.checkpoint import Checkpoint
from trainer.training.recipe import Recipe
from trainer.training.train import Hooks, Interrupted, Trained, TrainingDiverged, TrainingJob, train

P = ParamSpec("P")

COLLECTIVE_TIMEOUT: Final = timedelta(days=365)
"""Members wait for work as long as the main process waits for a dataset. Should one die, torchrun ends the others."""
ORPHANED_S: Final = 120.0
"""How long a main process without torchrun may take to save its run and stop the members."""
_RAISED_BY_ALL: Final = (Interrupted, TrainingDiverged)
"""Errors that every process raises at the same step, since all of them decide by the same numbers."""


# -- the processes


class ProcessGroup:
    """The processes that train one network together.

    Every method but `shard` and `abort` is a collective: all processes must call it, in the same order.

    Attributes:
        rank: 0 for the main process, which takes the messages and writes the files.
        size: the number of processes.
        local_size: the number of them on this machine.
        aborted: whether this process has given the group up.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_size: int = 1, on_abort: Callable[[], None] = lambda: None
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_size = local_size
        self.aborted = False
        self._on_abort = on_abort

    @classmethod
    def from_environment(cls, on_abort: Callable[[], None]) -> ProcessGroup:
        """Joins the group that torchrun describes in the environment; without torchrun, returns a group of one.

        Args:
            on_abort: called when this process gives the group up; the process must end soon.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, size = next(iter(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # on several machines each torchrun has a count of its own
            # torchrun keeps its store when it restarts a group, and with it the addresses of the processes before.
            store = PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
        return cls(rank, size, int(os.environ["LOCAL_WORLD_SIZE"]), on_abort)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self.rank == 0

    def wrap_ddp(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Returns the module with gradients, and on GPUs statistics of normalisation, that all processes share."""
        if self.size == 1:
            return module
        if device.type != "cuda":
            return DistributedDataParallel(module)
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(module, device_ids=[torch.cuda.current_device()])

    def shard(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Returns this process's shard of a batch; shards are nearly equal, and empty only where there are too few."""
        return np.array_split(indices, self.size)[self.rank]

    def broadcast(self, value: bool) -> bool:
        """Returns the main process's value."""
        return bool(self.broadcast_object(value)) if self.size > 1 else value

    def broadcast_object(self, value: Any) -> Any:
        """Returns the main process's object of plain values, bytes and arrays; the members may pass None."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all processes' values."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def all_gather(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns all processes' values, concatenated in the order of `shard`."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, values)
        return np.concatenate(parts)

    def abort(self) -> None:
        """Gives the group up, since this process failed alone; a group of one goes on.

        The other processes wait for it in the middle of a step, where no message reaches them: only its end frees them.
        """
        if self.size > 1:
            self.aborted = True
            self._on_abort()

    def destroy(self) -> None:
        """Takes this process out of the group; the last call."""
        if self.size > 1:
            distributed.destroy_process_group()


def watch_launcher(stop: threading.Event) -> None:
    """Sets `stop` when the process that started this one ends: without torchrun, a group could not be restarted."""
    _call_when_launcher_ends(stop.set)


def end_with_launcher(within_s: float = ORPHANED_S) -> None:
    """Ends this process, a member, when the process that started it ends and the main process does not stop it in time.

    A member that waits for a main process which is gone or stuck receives nothing else, and nobody is left to kill it.
    """

    def end() -> None:
        time.sleep(within_s)
        os._exit(1)

    _call_when_launcher_ends(end)


def _call_when_launcher_ends(act: Callable[[], None]) -> None:
    launcher = os.pidfd_open(os.getppid())

    def wait() -> None:
        select.select([launcher], [], [])
        act()

    threading.Thread(target=wait, name="watch launcher", daemon=True).start()


# -- their work


def train_distributed(
    group: ProcessGroup,
    dataset: Dataset,
    recipe: Recipe,
    device: torch.device,
    hooks: Hooks,
    *,
    resume: Checkpoint | None,
) -> Trained:
    """Trains on a dataset of the store, together with every process in `run_member`.

    Args:
        group: this process is its main process.
        dataset: its training part is learned from, its validation part chooses the epoch.
        recipe: the training parameters.
        device: where this process computes.
        hooks: as in `train`.
        resume: as in `train`.

    Raises:
        Exception: raised by `train` or a hook. The members have stopped by then and wait for the next run, unless this
            process failed alone, in the middle of a step: then the group is aborted.
    """
    work = {"sha256": dataset.sha256, "recipe": recipe.as_dict(), "checkpoint_s": hooks.checkpoint_s}
    work["resume"] = None if resume is None else checkpoint.dump(resume)
    errors = DeferredErrors()
    try:
        group.broadcast_object(work)
        return train(
            TrainingJob.from_dataset(dataset, recipe),
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
        with open_dataset(store, work["sha256"]) as dataset:
            try:
                train(
                    TrainingJob.from_dataset(dataset, Recipe.model_validate(work["recipe"])),
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

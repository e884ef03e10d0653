"""The processes that train one network together, started by torchrun, and how they agree; one is a group of one."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

COLLECTIVE_TIMEOUT: Final = timedelta(days=365)
"""Members wait for work as long as the main process waits for a dataset. Should one die, torchrun ends the others."""
ORPHANED_S: Final = 120.0
"""How long a main process without torchrun may take to save its run and stop the members."""


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

"""The processes that train one network together, started by torchrun; one process alone is a team of one."""

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

PATIENCE: Final = timedelta(days=365)
"""Members wait for work as long as the leader waits for a dataset. Should one die, torchrun ends the others."""

ORPHANED_S: Final = 120.0
"""How long a leader without torchrun may take to put its run down and dismiss the members."""


def watch_launcher(stop: threading.Event) -> None:
    """Sets `stop` when the process that started this one is gone: a team without torchrun could not be restarted."""
    _when_launcher_ends(stop.set)


def end_with_launcher(within_s: float = ORPHANED_S) -> None:
    """Ends this process, a member, when the one that started it is gone and the leader has not dismissed it in time.

    A member that waits for a leader which is gone or stuck listens to nothing else, and nobody is left to kill it.
    """

    def end() -> None:
        time.sleep(within_s)
        os._exit(1)

    _when_launcher_ends(end)


def _when_launcher_ends(act: Callable[[], None]) -> None:
    launcher = os.pidfd_open(os.getppid())

    def wait() -> None:
        select.select([launcher], [], [])
        act()

    threading.Thread(target=wait, name="watch launcher", daemon=True).start()


class Team:
    """What members have to agree on. Every method but `share` and `lose` must be called by all of them, in one order.

    Attributes:
        rank: 0 for the leader, which takes the messages and keeps the files.
        size: how many members there are.
        local_size: how many of them share this machine.
        lost: whether this member has given the team up.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_size: int = 1, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_size = local_size
        self.lost = False
        self._on_lost = on_lost

    @classmethod
    def from_environment(cls, on_lost: Callable[[], None]) -> Team:
        """Joins the team that torchrun describes in the environment; without torchrun it is a team of one.

        Args:
            on_lost: told when this member gives the team up; it must end soon.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # on several machines each torchrun has a count of its own
            # torchrun keeps its store when it restarts a team, and with it the addresses of those that are gone.
            store = PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        return cls(rank, size, int(os.environ["LOCAL_WORLD_SIZE"]), on_lost)

    @property
    def leads(self) -> bool:
        """Whether this member is the leader."""
        return self.rank == 0

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Returns the module such that gradients, and on GPUs the statistics of normalisation, are those of all."""
        if self.size == 1:
            return module
        if device.type != "cuda":
            return DistributedDataParallel(module)
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(module, device_ids=[torch.cuda.current_device()])

    def share(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Returns this member's part of a batch; nearly equal parts, empty ones only where there are too few."""
        return np.array_split(indices, self.size)[self.rank]

    def agree(self, value: bool) -> bool:
        """Returns what the leader says."""
        return bool(self.told(value)) if self.size > 1 else value

    def told(self, value: Any) -> Any:
        """Returns what the leader gave, any object of plain values, bytes and arrays; others may give None."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the members' values added up."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def joined(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the members' values one after the other: those of `share` in their order."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, values)
        return np.concatenate(parts)

    def lose(self) -> None:
        """Gives the team up, as this member failed alone; a team of one goes on.

        The others wait for it in the middle of a step, where nothing can be said to them: only its end frees them.
        """
        if self.size > 1:
            self.lost = True
            self._on_lost()

    def leave(self) -> None:
        """Takes this member out; the last call."""
        if self.size > 1:
            distributed.destroy_process_group()

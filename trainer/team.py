"""The processes that train one network together, started by torchrun; one process alone is a team of one."""

from __future__ import annotations

import os
import select
import threading
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE: Final = timedelta(days=365)
"""Members wait for work as long as the leader waits for a dataset. Should one die, torchrun ends the others."""


def watch_launcher(stop: threading.Event) -> None:
    """Sets `stop` when the process that started this one is gone: a team without torchrun could not be restarted."""
    launcher = os.pidfd_open(os.getppid())

    def wait() -> None:
        select.select([launcher], [], [])
        stop.set()

    threading.Thread(target=wait, name="watch launcher", daemon=True).start()


class Team:
    """What members have to agree on. Every method but `share` must be called by all of them, in the same order.

    Attributes:
        rank: 0 for the leader, which takes the messages and keeps the files.
        size: how many members there are.
        local_size: how many of them share this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.local_size = local_size

    @classmethod
    def from_environment(cls) -> Team:
        """Joins the team that torchrun describes in the environment; without torchrun it is a team of one."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        return cls(distributed.get_rank(), distributed.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))

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

    def leave(self) -> None:
        """Takes this member out; the last call."""
        if self.size > 1:
            distributed.destroy_process_group()

"""`python -m trainer` with the fault that the variable FAULT names, for tests of process groups.

Faults:
    diverging: the loss of the network `reference` is no number, from the first step on.
    failing NOTE: the main process runs out of memory in its third step, once; then the file NOTE exists.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.__main__ import main
from trainer.training import model
from trainer.training.step import TrainStep


class Diverging(model.FaceNetwork):
    """Its logits are no numbers."""

    def decide(self, embedding: torch.Tensor) -> torch.Tensor:
        return super().decide(embedding) * torch.nan


def fail_once(note: Path) -> None:
    """Lets the third step of this member fail, the first time that it comes to it."""
    take_step, taken = TrainStep.__call__, 0

    def failing(self: TrainStep, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal taken
        taken += isinstance(self.ddp, DistributedDataParallel)  # not where the throughput is measured
        if taken == 3 and not note.exists():
            note.touch()
            raise MemoryError("no memory for a step")
        return take_step(self, *args, **kwargs)

    TrainStep.__call__ = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    fault, *arguments = os.environ["FAULT"].split()
    if fault == "diverging":
        model.NETWORKS["reference"] = lambda dropout: Diverging(nn.Flatten(), model.SIDE**2, dropout)
    elif os.environ["RANK"] == "0":
        fail_once(Path(arguments[0]))
    sys.exit(main())

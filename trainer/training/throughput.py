"""Training throughput, in faces per second: measured before training starts, and while it runs."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import Final

import torch

from trainer.training.device import seeded
from trainer.training.loss import MultiTaskLoss, Teacher
from trainer.training.model import SIDE, build_network
from trainer.training.recipe import Recipe
from trainer.training.step import TrainStep

MEASURED_S: Final = 1.5
"""How long `measure_throughput` measures, after `WARM_UP_STEPS`."""
WARM_UP_STEPS: Final = 3
"""Steps that are not counted: libraries set themselves up in them."""


def measure_throughput(recipe: Recipe, device: torch.device, teacher: Teacher | None = None) -> float:
    """Measures how many faces per second the recipe trains on, in one process; takes a second or two."""
    faces = torch.zeros((recipe.batch_size, 1, SIDE, SIDE), dtype=torch.uint8, device=device)
    targets = torch.zeros((recipe.batch_size, 3), dtype=torch.int64, device=device)
    with seeded(device, recipe.seed):
        network = build_network(recipe.network, dropout=recipe.dropout, mirror=recipe.mirror)
        model = MultiTaskLoss(network, recipe.auxiliary).to(device)
        take_step = TrainStep(model, recipe, device, teacher=None if teacher is None else teacher.build(device))
        started = 0.0
        for step in itertools.count():
            if step == WARM_UP_STEPS:
                started = time.monotonic()
            loss, _ = take_step(faces, targets, rate=recipe.learning_rate, decay=0.9, seeds=(recipe.seed, step))
            loss.item()  # waits until the device is done
            elapsed = time.monotonic() - started
            if step > WARM_UP_STEPS and elapsed >= MEASURED_S:
                return (step - WARM_UP_STEPS + 1) * recipe.batch_size / elapsed
    raise AssertionError("the loop above ends by its return")


class ThroughputMeter:
    """Faces per second over the last few seconds of training."""

    _WINDOW_S = 10.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds = 0.0
        self._faces = 0

    def add(self, seconds: float, faces: int) -> None:
        """Counts a step."""
        self._steps.append((seconds, faces))
        self._seconds += seconds
        self._faces += faces
        while self._seconds > self._WINDOW_S and len(self._steps) > 1:
            seconds, faces = self._steps.popleft()
            self._seconds -= seconds
            self._faces -= faces

    @property
    def per_second(self) -> float:
        """Training faces per second."""
        return self._faces / max(self._seconds, 1e-9)

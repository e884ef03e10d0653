"""How fast training is: measured before it starts, and while it runs."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import Final

import torch

from trainer.device import seeded
from trainer.model import build_network
from trainer.objective import Objective
from trainer.recipe import FULL_SIDE, Recipe
from trainer.step import forward, optimizer_for

MEASURED_S: Final = 1.5
"""How long `measure_speed` measures, after as many steps as `FIRST_STEPS`, in which libraries warm up."""
FIRST_STEPS: Final = 3


def measure_speed(recipe: Recipe, device: torch.device) -> float:
    """Measures how many faces of full size a second the recipe trains on, in one process, in a second or two."""
    faces = torch.zeros((recipe.batch_size, 1, FULL_SIDE, FULL_SIDE), dtype=torch.uint8, device=device)
    targets = torch.zeros((recipe.batch_size, 3), dtype=torch.int64, device=device)
    with seeded(device, recipe.seed) as generator:
        network = build_network(recipe.network, dropout=recipe.dropout)
        objective = Objective(network, recipe.auxiliary).to(device)
        optimizer = optimizer_for(objective, recipe)
        started = 0.0
        for step in itertools.count():
            if step == FIRST_STEPS:
                started = time.monotonic()
            loss, _, _ = forward(objective, recipe, faces, targets, FULL_SIDE, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits until the device is done
            elapsed = time.monotonic() - started
            if step > FIRST_STEPS and elapsed >= MEASURED_S:
                return (step - FIRST_STEPS + 1) * recipe.batch_size / elapsed
    raise AssertionError("the loop above ends by its return")


class Speed:
    """Faces per second over the last few seconds of training; for the time left, in faces of full size."""

    _WINDOW_S = 10.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int, float]] = deque()
        self._seconds = self._faces = self._cost = 0.0

    def add(self, seconds: float, faces: int, cost: float) -> None:
        """Counts a step over faces that cost `cost` faces of full size each."""
        self._steps.append((seconds, faces, faces * cost))
        self._count(self._steps[-1], 1)
        while self._seconds > self._WINDOW_S and len(self._steps) > 1:
            self._count(self._steps.popleft(), -1)

    def _count(self, step: tuple[float, int, float], sign: int) -> None:
        self._seconds += sign * step[0]
        self._faces += sign * step[1]
        self._cost += sign * step[2]

    @property
    def per_second(self) -> float:
        """Training faces per second, of whatever size."""
        return self._faces / max(self._seconds, 1e-9)

    @property
    def cost_per_second(self) -> float:
        """The same in faces of full size."""
        return self._cost / max(self._seconds, 1e-9)

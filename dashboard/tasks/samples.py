"""The sample dataset at a click: generated in the background, then submitted like any other."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dashboard.tasks.background import BackgroundTask, TaskState
from shared.client import Client
from shared.faces.synthetic import draw_sample

SAMPLE_NAME: Final = "sample"
SAMPLE_IMAGES: Final = 1500
SAMPLE_BOUNDS: Final = (40, 20_000)
"""The fewest and the most images of a sample."""
_SEED: Final = 1


@dataclass(frozen=True, slots=True)
class SampleState(TaskState):
    """How far a sample dataset is: `done` of `total` faces.

    Attributes:
        run_id: the run that trains on it, once submitted.
    """

    run_id: str | None = None


class SampleTask(BackgroundTask[SampleState]):
    """Generates one sample dataset at a time.

    Args:
        client: submits it.
    """

    def __init__(self, client: Client) -> None:
        super().__init__("sample dataset", SampleState())
        self._client = client

    def generate(self, images: int, params: dict[str, Any] | None = None) -> None:
        """Starts generating and returns at once.

        Raises:
            Conflict: one is being generated already.
        """
        state = SampleState(total=images)
        self.start(state, lambda: self._generate(images, params), "a sample dataset is being generated already")

    def _generate(self, images: int, params: dict[str, Any] | None) -> None:
        with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
            path = Path(folder) / f"{SAMPLE_NAME}.zip"
            draw_sample(path, images, _SEED, faults=True, on_progress=self._report)
            self.update(run_id=self._client.submit_dataset(path, name=SAMPLE_NAME, params=params, move=True))

    def _report(self, done: int, total: int) -> None:
        self.raise_if_closed()
        self.update(done=done, total=total)

"""The sample dataset at a click: drawn in the background, then submitted like any other."""

from __future__ import annotations

import logging
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from shared.client import Client
from shared.errors import Conflict, GenderlineError
from shared.faces.synthetic import draw_sample

SAMPLE_NAME: Final = "sample"
_SEED: Final = 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampleState:
    """How far the drawing of a sample dataset is.

    Attributes:
        drawing: whether it goes on.
        done: faces drawn.
        total: faces asked for.
        run_id: the run that trains on it, once submitted.
        error: why there is none.
    """

    drawing: bool = False
    done: int = 0
    total: int = 0
    run_id: str | None = None
    error: str | None = None


class Samples:
    """Draws one sample dataset at a time.

    Args:
        client: submits it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._state = SampleState()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> SampleState:
        """How far the present one, or the last, is."""
        return self._state

    def draw(self, images: int, params: dict[str, Any] | None = None) -> None:
        """Starts drawing and returns at once.

        Raises:
            Conflict: one is being drawn already.
        """
        with self._lock:
            if self._state.drawing:
                raise Conflict("a sample dataset is being drawn already")
            self._state = SampleState(drawing=True, total=images)
            self._thread = threading.Thread(target=self._draw, args=(images, params), name="sample", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Gives up what is being drawn."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self, images: int, params: dict[str, Any] | None) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
                path = Path(folder) / f"{SAMPLE_NAME}.zip"
                draw_sample(path, images, _SEED, faults=True, on_progress=self._drawn)
                run_id = self._client.submit_dataset(path, name=SAMPLE_NAME, params=params, move=True)
            self._state = replace(self._state, drawing=False, run_id=run_id)
        except _GivenUp:
            self._state = replace(self._state, drawing=False, error="given up: the dashboard stopped")
        except (GenderlineError, OSError) as error:
            _LOG.error("no sample dataset: %s", error)
            self._state = replace(self._state, drawing=False, error=str(error))

    def _drawn(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _GivenUp
        self._state = replace(self._state, done=done, total=total)


class _GivenUp(Exception):
    """The dashboard stops: nobody waits for the sample any more."""

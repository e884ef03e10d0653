"""The challenger: it sees a share of what the champion answered, when there is time, and nobody sees its answers.

Nothing here may cost a reply anything. The loop that answers only copies a few faces into a bounded queue, and what
does not fit is dropped. The challenger runs in a thread of low priority, a few images at a time, and only begins while
that loop waits for messages, which is after its replies were sent. It is loaded in that thread, too.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.model.champion import Models
from inference.model.loader import ServedModel, release_freed_memory
from shared.errors import GenderlineError
from shared.measures.shadow import ShadowFigures, add_shadow_figures
from shared.runtime.settings import Settings
from shared.store.base import Store
from shared.telemetry.metrics import InferenceMetrics

_NICENESS: Final = 15
_CHUNK: Final = 8
"""Images in one run of the challenger: a message that comes meanwhile shares its core for a few ms at the most."""
_WAITING_IMAGES: Final = 256
_SETTLED_S: Final = 0.002
"""How long the loop must have waited for messages: replies that were just handed over are on their way by then."""
_PAUSE_S: Final = 0.02
_WAIT_S: Final = 0.5
_RECORD_EVERY_S: Final = 10.0
_RETRY_S: Final = 30.0
_TIMED_EVERY: Final = 8
"""Both models are timed on one chunk in so many: under load, the times of replies are no measure for the challenger."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Chunk:
    champion: ServedModel
    faces: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


class Shadow:
    """Runs the challenger beside the champion.

    Args:
        store: where the challenger lies and its figures go.
        settings: the share of traffic.
        models: which models are champion and challenger.
        metrics: told of outcomes and times.
    """

    def __init__(self, store: Store, settings: Settings, models: Models, metrics: InferenceMetrics) -> None:
        self._store = store
        self._models = models
        self._metrics = metrics
        self._share = settings.shadow_share
        self._random = random.Random()
        self._challenger: ServedModel | None = None
        self._queue: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()  # over `_waiting`
        self._idle_since = float("inf")
        # From here on only `run`'s thread writes.
        self._pair: tuple[int, int] | None = None  # versions of challenger and champion
        self._figures = self._unsaved = ShadowFigures()
        self._chunks = 0
        self._save_at = self._load_at = 0.0
        self._problem: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether the settings ask for any of this."""
        return self._share > 0

    @property
    def challenger(self) -> int | None:
        """The version that is loaded and sees images; None where there is none."""
        challenger = self._challenger
        return None if challenger is None else challenger.version

    # -- in the loop that answers

    def on_idle(self, idle: bool) -> None:
        """Notes that the loop begins or ends to wait for messages."""
        self._idle_since = time.monotonic() if idle else float("inf")

    def observe(self, model: ServedModel, faces: NDArray[np.uint8], probabilities: Sequence[float]) -> None:
        """Lets the challenger see a batch later, if it is of the share, and there is room.

        Args:
            model: who answered.
            faces: uint8 (N, 128, 128), luma.
            probabilities: of *female*, one a face.
        """
        if self._challenger is None or model is not self._models.champion or self._random.random() >= self._share:
            return
        with self._lock:
            kept = min(len(faces), _WAITING_IMAGES - self._waiting)
            self._waiting += kept
        if kept < len(faces):
            self._metrics.shadow_predictions.labels("dropped").inc(len(faces) - kept)
        if kept:
            copies, answers = faces[:kept].copy(), np.array(probabilities[:kept], np.float32)
            for start in range(0, kept, _CHUNK):
                part = slice(start, start + _CHUNK)
                self._queue.put(_Chunk(model, copies[part], answers[part]))

    # -- in a thread of its own

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`. Nothing that goes wrong here ends it, or the worker."""
        # On Linux niceness belongs to a thread.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        chunk: _Chunk | None = None
        while not stop.is_set():
            try:
                self._follow()
                if time.monotonic() >= self._save_at:
                    self._save()
                chunk = chunk or self._next()
                if chunk is None:
                    continue
                if time.monotonic() - self._idle_since < _SETTLED_S:
                    stop.wait(_PAUSE_S)
                    continue
                done, chunk = chunk, None
                self._compare(done)
            except Exception:
                _LOG.exception("shadowing failed; replies do not suffer")
                stop.wait(_WAIT_S)
        self._save()

    def summary(self) -> dict[str, Any] | None:
        """Returns, for the heartbeat, what this worker has seen of the challenger; None where there is none."""
        pair = self._pair
        return None if pair is None else {"version": pair[0], **self._figures.summary(), "problem": self._problem}

    def _next(self) -> _Chunk | None:
        with contextlib.suppress(queue.Empty):
            return self._queue.get(timeout=_WAIT_S)
        return None

    def _follow(self) -> None:
        """Loads the challenger that the aliases name, and lets go of one that they no longer name."""
        champion, wanted = self._models.champion, self._models.challenger
        pair = None
        if champion is not None and wanted is not None and wanted != champion.version:
            pair = (wanted, champion.version)
        if pair != self._pair:
            self._save()
            self._pair, self._problem = pair, None
            self._figures = self._unsaved = ShadowFigures()
            self._load_at = 0.0
            if self._challenger is not None and (pair is None or self._challenger.version != pair[0]):
                self._challenger = None
                release_freed_memory()
        if self._pair is not None and self._challenger is None and time.monotonic() >= self._load_at:
            self._load(self._pair[0])

    def _load(self, version: int) -> None:
        if version in self._models.left_running:
            # Perhaps by chance; but each death costs replies seconds, and the challenger is not worth another one.
            self._load_at = math.inf
            self._problem = "the worker died while it ran; the next start of this worker tries it again"
            _LOG.error("version %d cannot challenge, the champion serves: %s", version, self._problem)
            return
        try:
            self._challenger = self._models.load(version)
        except Exception as error:
            self._load_at = time.monotonic() + _RETRY_S
            self._problem = str(error)
            # Of our own errors the text is enough; anything else is a bug.
            trace = None if isinstance(error, GenderlineError) else error
            _LOG.error("version %d cannot challenge, the champion serves: %s", version, error, exc_info=trace)
            return
        self._problem = None
        self._chunks = 0
        _LOG.info("version %d challenges, with %g of the interactive traffic", version, self._share)

    def _compare(self, chunk: _Chunk) -> None:
        """Asks the challenger what the champion was asked."""
        with self._lock:
            self._waiting -= len(chunk.faces)
        challenger = self._challenger
        if challenger is None or chunk.champion is not self._models.champion:
            self._metrics.shadow_predictions.labels("dropped").inc(len(chunk.faces))
            return
        try:
            answers, times = self._answers(challenger, chunk)
        except Exception as error:
            if self._problem is None:
                _LOG.exception("version %d failed as challenger; the champion serves", challenger.version)
            self._problem = f"{type(error).__name__}: {error}"
            answers, times = np.full(len(chunk.faces), np.nan, np.float32), None
        # What the champion itself found no number for says nothing about the challenger.
        theirs = chunk.probabilities
        answers, theirs = answers[np.isfinite(theirs)], theirs[np.isfinite(theirs)]
        good = np.isfinite(answers)
        differences = np.abs(answers - theirs)[good]
        agreed = int(((answers >= 0.5) == (theirs >= 0.5))[good].sum())
        counts = {"agree": agreed, "disagree": len(differences) - agreed, "failed": len(answers) - len(differences)}
        more = ShadowFigures(
            images=len(answers),
            agreed=agreed,
            failed=counts["failed"],
            difference=float(differences.sum()),
            timed=len(chunk.faces) if times else 0,
            challenger_s=times[0] if times else 0.0,
            champion_s=times[1] if times else 0.0,
        )
        self._figures, self._unsaved = self._figures + more, self._unsaved + more
        for outcome, count in counts.items():
            if count:
                self._metrics.shadow_predictions.labels(outcome).inc(count)
        for difference in differences.tolist():
            self._metrics.shadow_difference.observe(difference)

    def _answers(
        self, challenger: ServedModel, chunk: _Chunk
    ) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
        """Returns the challenger's probabilities and, now and then, its and the champion's time in seconds."""
        timed = self._chunks % _TIMED_EVERY == 0
        champion_first = self._chunks % (2 * _TIMED_EVERY) == 0  # in turns, as the second finds warmer caches
        self._chunks += 1
        if not timed:
            return challenger.predict(chunk.faces), None
        champion_s = _timed(chunk.champion, chunk.faces)[1] if champion_first else 0.0
        answers, challenger_s = _timed(challenger, chunk.faces)
        champion_s = champion_s or _timed(chunk.champion, chunk.faces)[1]
        self._metrics.shadow_run.labels("challenger").observe(challenger_s)
        self._metrics.shadow_run.labels("champion").observe(champion_s)
        return answers, (challenger_s, champion_s)

    def _save(self) -> None:
        """Adds this worker's counts to those of all."""
        self._save_at = time.monotonic() + _RECORD_EVERY_S
        if self._pair is None or not self._unsaved.images:
            return
        challenger, champion = self._pair
        try:
            add_shadow_figures(self._store, challenger, champion, self._unsaved)
            self._unsaved = ShadowFigures()
        except Exception as error:  # the store is away, or somebody has spoiled a file
            _LOG.warning("what the challenger did is not saved: %s", error)


def _timed(model: ServedModel, faces: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Returns a model's answers and its time in seconds.

    On a CPU that is the time for which this thread had one: whatever has a higher priority would count otherwise.
    """
    clock = time.thread_time if model.provider == "cpu" else time.perf_counter
    started = clock()
    answers = model.predict(faces)
    return answers, clock() - started

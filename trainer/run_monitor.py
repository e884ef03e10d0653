"""What goes on beside a run: its owner stays the owner, hears when to stop, and tells how far it is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from shared.errors import Cancelled, GenderlineError, Retryable
from shared.events import Emit, EpochFinished, RunChanged, RunProgressed
from shared.records.runs import EpochRow, Progress, Run, Runs, RunState
from shared.runtime.settings import Settings
from shared.store.lease import Lease, LeaseLost
from shared.worker.retry import refuse_too_often

_EVENT_EVERY_S: Final = 1.0
_RECORD_EVERY_S: Final = 3.0
_LOG = logging.getLogger(__name__)


class HandOver(Exception):
    """The run goes back to the queue, to be carried on from where it stands."""


class Monitor:
    """What the pipeline tells whoever watches a run, and asks them; this one does not care."""

    def on_state(self, state: RunState) -> None:
        """Told each new state."""

    def on_progress(self, progress: Progress) -> None:
        """Told how far the present stage is, as often as the stage likes."""

    def on_epoch(self, row: EpochRow) -> None:
        """Told each finished epoch, a row of `history.csv`."""

    def on_checkpoint(self) -> None:
        """Told that a checkpoint is stored."""

    def should_yield(self) -> bool:
        """Returns, before every training step, whether to leave the rest to a later call."""
        return False

    def raise_if_stopped(self) -> None:
        """Called everywhere else: raises where the run must not go on.

        What it ends outside of training is done again from the start of its step, so it should not end what would only
        end there again.
        """


class RunMonitor(Monitor):
    """Watches over a run, for its owner, from a thread of its own; a context manager.

    It renews the lease and looks for a wish to cancel. In the run's record it counts how often the run was begun
    without getting on: a new stage, a checkpoint with new steps, or an orderly end here starts that count anew.

    Args:
        lease: on the run; held.
        runs: the records.
        run_id: the run.
        settings: times and limits.
        emit: tells events.
        stopping: set when the service is to end.

    Raises:
        TooOften: (on entering) every process that began the run has died, without getting on.
    """

    def __init__(
        self, lease: Lease, runs: Runs, run_id: str, settings: Settings, emit: Emit, stopping: threading.Event
    ) -> None:
        self._lease = lease
        self._runs = runs
        self._run_id = run_id
        self._settings = settings
        self._stopping = stopping
        self._reporter = ProgressReporter(runs, run_id, emit)
        self._emit = emit
        self._reason: Exception | None = None
        self._over = threading.Event()
        self._hand_over_at = time.monotonic() + settings.handover_s
        self._counted = False
        self._trained = False

    def __enter__(self) -> Self:
        begun = self._runs.get(self._run_id).attempts
        refuse_too_often(begun, self._settings.delivery_limit)
        self._runs.update(self._run_id, attempts=begun + 1)
        self._counted = True
        threading.Thread(target=self._watch, name="run-monitor", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        try:
            self._note_progress()
        except GenderlineError as failure:  # of a run that has ended, or of one that another owner counts anew
            _LOG.debug("%s: %s", self._run_id, failure)

    def _watch(self) -> None:
        renew_every_s = self._settings.lease_s / 4
        renewed = time.monotonic()
        while not self._over.wait(min(_EVENT_EVERY_S, renew_every_s)):
            try:
                if time.monotonic() - renewed >= renew_every_s:
                    self._lease.renew()
                    renewed = time.monotonic()
                if self._runs.cancel_requested(self._run_id):
                    self._reason = Cancelled("cancelled by a user")
            except LeaseLost as error:
                self._reason = error
                return
            except Retryable as error:
                _LOG.warning("%s: %s", self._run_id, error)

    def should_yield(self) -> bool:
        return self._reason is not None or self._stopping.is_set() or time.monotonic() > self._hand_over_at

    def raise_if_stopped(self) -> None:
        # That time is over is no reason: a step that cannot resume would take as long the next time. Should the broker
        # lose patience and give the message out again meanwhile, the lease keeps others from working on it.
        if self._reason is not None:
            raise self._reason
        if self._stopping.is_set():
            raise HandOver("the trainer is shutting down")

    def on_state(self, state: RunState) -> None:
        run = self._runs.get(self._run_id)
        if run.state != state:
            is_new = getattr(run.timings, f"{state}_at") is None
            timings = run.timings.changed(**{f"{state}_at": round(time.time(), 3)})
            run = self._runs.update(
                self._run_id, state=state, timings=timings, progress=None, attempts=0 if is_new else run.attempts
            )
            self._counted = self._counted and not is_new
            _LOG.info("%s %s", self._run_id, state)
        announce(run, self._emit)

    def on_progress(self, progress: Progress) -> None:
        self._trained = self._trained or progress.stage == RunState.TRAINING
        self._reporter.on_progress(progress)

    def on_epoch(self, row: EpochRow) -> None:
        self._reporter.on_epoch(row)

    def on_checkpoint(self) -> None:
        if self._trained:  # else it may be the one that the run began with
            self._note_progress()

    def _note_progress(self) -> None:
        if self._counted:
            self._counted = False
            self._runs.update(self._run_id, attempts=0)


class ProgressReporter:
    """Passes progress on: an event a second, and now and then the run's record.

    Args:
        runs: the records.
        run_id: the run.
        emit: tells events.
        clock: monotonic, in seconds.
    """

    def __init__(self, runs: Runs, run_id: str, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._run_id = run_id
        self._emit = emit
        self._clock = clock
        self._stage: str | None = None
        self._emitted = self._recorded = -float("inf")

    def on_progress(self, progress: Progress) -> None:
        """Tells how far the present stage is, where there is something new or it is time."""
        now = self._clock()
        new_stage, self._stage = progress.stage != self._stage, progress.stage
        done = progress.done == progress.total
        if new_stage or done or now - self._emitted >= _EVENT_EVERY_S:
            self._emitted = now
            self._emit(*RunProgressed(run_id=self._run_id, progress=progress).wire())
        if new_stage or now - self._recorded >= _RECORD_EVERY_S:
            self._recorded = now
            self._runs.update(self._run_id, progress=progress)

    def on_epoch(self, row: EpochRow) -> None:
        """Tells of a finished epoch, a row of `history.csv`."""
        self._emit(*EpochFinished(run_id=self._run_id, row=row).wire())


def announce(run: Run, emit: Emit) -> None:
    """Tells all who listen of the state that a run is in."""
    emit(*RunChanged.of(run).wire())

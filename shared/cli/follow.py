"""Following a run or a job until it ends, for a person who watches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from shared.cli.output import Steps
from shared.client import Client
from shared.errors import GenderlineError
from shared.records.jobs import Job, JobState
from shared.records.runs import Progress, Run, RunState
from shared.telemetry.liveness import HeartbeatListener

_SERVICE_UP_S: Final = 3.0
"""A running service is heard within this time: it reports every two seconds."""

_WORDS: Final[dict[str, str]] = {RunState.ACCEPTED: RunState.INGESTING}
"""A run that was just accepted is about to be ingested: no step of its own."""


def check_may_follow(client: Client) -> None:
    """Raises before anything is sent: what a user may send and not follow would be done, and be told as an error.

    Raises:
        AccessRefused: the broker's user may hear no events.
    """
    client.broker.subscribe(("worker.heartbeat",)).close()


def follow_run(client: Client, run_id: str, steps: Steps, timeout_s: float | None = None) -> Run:
    """Shows a run's stages and epochs until it ends, and returns its final record.

    Raises:
        NotFound: there is no such run.
        GenderlineError: code `timeout`, after `timeout_s`; the run goes on.
    """
    epochs = _Epochs(client, run_id, steps)
    told = False
    run = client.runs.get(run_id)
    with _Waiting(client, "trainer", run_id, steps) as waiting:
        for run in client.follow_run(run_id, timeout_s):
            waiting.look(run.state)
            progress = run.progress
            if run.labels and not told:
                told = True
                steps.line(f"{run_id}: {run.labels.text}")
            epochs.look(progress, ended=run.state.is_final)
            if run.state.is_final:
                break
            if progress is None or run.state in {RunState.QUEUED, RunState.ACCEPTED}:
                steps.step(_WORDS.get(run.state, run.state))
                continue
            steps.step(
                progress.stage,
                progress.done,
                progress.total,
                rate=progress.rate,
                eta_s=progress.eta_s,
                detail=f"epoch {progress.epoch}/{progress.epochs}" if progress.epoch else "",
            )
    if run.state in {RunState.REGISTERED, RunState.INGESTED}:
        steps.finish()
        epochs.tell_end()
    return run


def follow_job(client: Client, job_id: str, steps: Steps, timeout_s: float | None = None) -> Job:
    """Shows a job's progress until it ends, and returns its final record.

    Raises:
        NotFound: there is no such job.
        GenderlineError: code `timeout`, after `timeout_s`; the job goes on.
    """
    job = client.jobs.get(job_id)
    with _Waiting(client, "inference", job_id, steps) as waiting:
        for job, progress in client.follow_job(job_id, timeout_s):
            waiting.look(job.state)
            steps.step(
                "queued" if job.state is JobState.QUEUED else "predicting",
                progress.done,
                progress.total or None,
                rate=progress.rate,
                eta_s=progress.eta_s,
            )
    if job.state is JobState.FINISHED:
        steps.finish()
    return job


def place_of(client: Client, version: int) -> str:
    """Returns which model serves now that a version is registered, as the end of a sentence."""
    champion = client.registry.find_aliases()[0].champion
    if champion == version:
        return "the champion now"
    place = f"not promoted, the champion is still version {champion}" if champion else "no model is in use yet"
    try:
        gate = client.registry.card(version).gate
    except GenderlineError:  # deleted, or damaged
        gate = None
    return place if gate is None or gate.passed else f"{place}: {gate.reason}"


@contextlib.contextmanager
def warn_if_no_worker(client: Client, service: str, steps: Steps) -> Iterator[None]:
    """Warns that no process of a service runs, where none is heard while the context waits for its answer."""
    answered = threading.Event()

    def listen() -> None:
        if not answered.wait(_SERVICE_UP_S) and not heartbeats.workers(service):
            steps.line(_no_worker_text(service), "yellow")

    with HeartbeatListener(client.broker) as heartbeats:
        listener = threading.Thread(target=listen, name="warn_if_no_worker")
        listener.start()
        try:
            yield
        finally:
            answered.set()
            listener.join()


class _Epochs:
    """Prints a line an epoch, as they come."""

    def __init__(self, client: Client, run_id: str, steps: Steps) -> None:
        self._client = client
        self._run_id = run_id
        self._steps = steps
        self._printed = 0
        self._planned = 0
        self._seen: object = None

    def tell_end(self) -> None:
        """Says, of a run that ended well, why it did before its last epoch."""
        if 0 < self._printed < self._planned:
            self._steps.line(
                f"stopped early, after {self._printed} of {self._planned} epochs: the validation loss fell no further"
            )

    def look(self, progress: Progress | None, *, ended: bool) -> None:
        """Reads the history where it may have grown: when the epoch has changed, and at the end."""
        epoch = progress.epoch if progress else None
        self._planned = (progress.epochs if progress else None) or self._planned
        if epoch == self._seen and not ended:
            return
        self._seen = epoch
        rows = self._client.runs.history(self._run_id)
        if rows and not self._printed:
            self._steps.line("epoch   train loss  accuracy   val loss  accuracy", "bold")
        for row in rows[self._printed :]:
            self._steps.line(
                f"{row.epoch:5.0f}   {row.train_loss:10.4f}  {row.train_accuracy * 100:6.1f} %"
                f"   {row.val_loss:8.4f}  {row.val_accuracy * 100:6.1f} %"
            )
        self._printed = len(rows)


class _Waiting:
    """Tells somebody whose work is not taken up why that may be."""

    def __init__(self, client: Client, service: str, work: str, steps: Steps) -> None:
        self._heartbeats = HeartbeatListener(client.broker)
        self._service = service
        self._work = work
        self._steps = steps
        self._since = time.monotonic()
        self._told: str | None = None

    def look(self, state: str) -> None:
        """Warns, once each, that no process of the service runs or that all of them are busy."""
        if state != "queued" or time.monotonic() - self._since < _SERVICE_UP_S:
            return
        workers = self._heartbeats.workers(self._service)
        busy = [worker.get("busy") for worker in workers]
        text = None
        if not workers:
            text = _no_worker_text(self._service)
        elif all(busy) and self._work not in busy:
            text = f"the {self._service} is busy with {busy[0]}; {self._work} waits its turn"
        if text and text != self._told:
            self._steps.line(text, "yellow")
            self._told = text

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeats.close()


def _no_worker_text(service: str) -> str:
    return f"no {service} is running; start one with `genderline up` (waiting for it)"

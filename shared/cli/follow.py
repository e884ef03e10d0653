"""Following a run or a job until it ends, for a person who watches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from shared.cli.output import Steps
from shared.client import Client
from shared.records.runs import FINAL_STATES
from shared.telemetry.liveness import HeartbeatListener

_SERVICE_UP_S: Final = 3.0
"""A service that is up is heard within this time: it beats every two seconds."""

_WORDS: Final = {"accepted": "ingesting"}
"""A run that was just accepted is about to be ingested: no step of its own."""


def follow_run(client: Client, run_id: str, steps: Steps, timeout_s: float | None = None) -> dict[str, Any]:
    """Shows a run's stages and epochs until it ends, and returns its final record.

    Raises:
        NotFound: there is no such run.
        GenderlineError: code `timeout`, after `timeout_s`; the run goes on.
    """
    record: dict[str, Any] = {}
    epochs = _Epochs(client, run_id, steps)
    with _Waiting(client, "trainer", run_id, steps) as waiting:
        for record in client.follow_run(run_id, timeout_s):
            waiting.look(record["state"])
            progress = record["progress"] or {}
            epochs.look(progress.get("epoch"), progress.get("epochs"), ended=record["state"] in FINAL_STATES)
            if record["state"] in FINAL_STATES:
                break
            state = record["state"]
            stage = progress.get("stage") if state not in {"queued", "accepted"} else None
            steps.step(
                stage or _WORDS.get(state, state),
                progress.get("done") or 0 if stage else 0,
                progress.get("total") if stage else None,
                rate=progress.get("rate") if stage else None,
                eta_s=progress.get("eta_s") if stage else None,
                detail=f"epoch {progress['epoch']}/{progress['epochs']}" if progress.get("epoch") else "",
            )
    if record["state"] == "registered":
        steps.finish()
        epochs.tell_end()
    return record


def follow_job(client: Client, job_id: str, steps: Steps, timeout_s: float | None = None) -> dict[str, Any]:
    """Shows a job's progress until it ends, and returns its final record.

    Raises:
        NotFound: there is no such job.
        GenderlineError: code `timeout`, after `timeout_s`; the job goes on.
    """
    record: dict[str, Any] = {}
    with _Waiting(client, "inference", job_id, steps) as waiting:
        for record in client.follow_job(job_id, timeout_s):
            waiting.look(record["state"])
            progress = record.get("progress") or {}
            name = "queued" if record["state"] == "queued" else "predicting"
            steps.step(
                name,
                progress.get("done") or record["done"],
                progress.get("total") or record["images"],
                rate=progress.get("rate"),
                eta_s=progress.get("eta_s"),
            )
    if record["state"] == "finished":
        steps.finish()
    return record


def place_of(client: Client, version: int) -> str:
    """Returns which model serves now that a version is registered, as the end of a sentence."""
    champion = client.registry.aliases().champion
    if champion is None:
        return "no model serves yet"
    return "the champion now" if champion == version else f"not promoted, the champion is still version {champion}"


@contextlib.contextmanager
def warn_if_no_worker(client: Client, service: str, steps: Steps) -> Iterator[None]:
    """Says that no process of a service is up, where none is heard while the context waits for its answer."""
    answered = threading.Event()

    def listen() -> None:
        if not answered.wait(_SERVICE_UP_S) and not heartbeats.workers(service):
            steps.line(_none_is_up(service), "yellow")

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

    def look(self, epoch: object, planned: int | None, *, ended: bool) -> None:
        """Reads the history where it may have grown: when the epoch has changed, and at the end."""
        self._planned = planned or self._planned
        if epoch == self._seen and not ended:
            return
        self._seen = epoch
        rows = self._client.runs.history(self._run_id)
        if rows and not self._printed:
            self._steps.line("epoch   train loss  accuracy   val loss  accuracy", "bold")
        for row in rows[self._printed :]:
            self._steps.line(
                f"{row['epoch']:5.0f}   {row['train_loss']:10.4f}  {row['train_accuracy'] * 100:6.1f} %"
                f"   {row['val_loss']:8.4f}  {row['val_accuracy'] * 100:6.1f} %"
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
        """Says, each thing once, that nobody is up or that everybody is busy."""
        if state != "queued" or time.monotonic() - self._since < _SERVICE_UP_S:
            return
        workers = self._heartbeats.workers(self._service)
        busy = [worker.get("busy") for worker in workers]
        text = None
        if not workers:
            text = _none_is_up(self._service)
        elif all(busy) and self._work not in busy:
            text = f"the {self._service} is busy with {busy[0]}; {self._work} waits its turn"
        if text and text != self._told:
            self._steps.line(text, "yellow")
            self._told = text

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeats.close()


def _none_is_up(service: str) -> str:
    return f"no {service} is up; start one with `genderline up` (waiting for it)"

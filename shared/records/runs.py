"""A training run's record in the store, `runs/<run_id>/`: written by the trainer, read by everybody."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from shared.broker.base import HeaderValue
from shared.clock import now_iso
from shared.errors import NotFound
from shared.params import TrainingParams
from shared.records.record import Record, Records, State, StoredModel
from shared.store.base import Store

HISTORY_COLUMNS: Final = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "seconds",
    "images_per_second",
)


class RunState(State):
    """Where a run stands, in the order in which a good run goes through them."""

    QUEUED = "queued"
    ACCEPTED = "accepted"
    INGESTING = "ingesting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"
    REGISTERED = "registered"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self in {RunState.REGISTERED, RunState.REJECTED, RunState.FAILED, RunState.CANCELLED}

    @property
    def is_retryable(self) -> bool:
        """Whether the run has ended in such a way that its message may be a dead letter, and can be sent back."""
        return self in {RunState.REJECTED, RunState.FAILED}


class Progress(StoredModel):
    """How far a stage of a run is.

    Attributes:
        stage: the state that the run is in meanwhile.
        done: out of `total`; what is counted depends on the stage.
        rate: images a second; None where nobody measured it.
        eta_s: seconds left in this stage.
        epoch: the one under way, from 1; this and what follows is there while training.
        epochs: the most there will be.
        loss: of the last training step.
        accuracy: likewise.
    """

    stage: RunState
    done: int
    total: int
    rate: float | None = None
    eta_s: float | None = None
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    accuracy: float | None = None


class Timings(StoredModel):
    """When a run entered its states, Unix time in seconds."""

    ingesting_at: float | None = None
    training_at: float | None = None
    evaluating_at: float | None = None
    exporting_at: float | None = None
    registered_at: float | None = None


class Run(Record):
    """`run.json`.

    Attributes:
        run_id: the run.
        state: where it stands.
        params: the training parameters asked for; None where the message that asked could not be read.
        dataset: SHA-256 of the archive, which names the dataset; None until the run is accepted.
        progress: how far the present stage is; None between stages and at the end.
        metrics: of the model: `val_accuracy`, `test_accuracy`, …
        warnings: what the user should know about the dataset, in sentences.
        timings: when it entered its states.
        attempts: how often the run was begun since it last got on; more than 1 where trainers died of it, or with it.
    """

    run_id: str
    state: RunState
    params: TrainingParams | None
    dataset: str | None = None
    progress: Progress | None = None
    metrics: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()
    timings: Timings = Timings()
    attempts: int = 0

    def reply(self, status: str | None = None) -> dict[str, Any]:
        """Returns the body of the reply and event that tell of the run's state."""
        body: dict[str, Any] = {"run_id": self.run_id, "status": status or self.state.value, "name": self.name}
        if self.model:
            body["model"] = self.model.as_dict()
            body["metrics"] = self.metrics
        if self.warnings:
            body["warnings"] = self.warnings
        if self.error:
            body["error"] = self.error.as_dict()
        return body


class Runs(Records[Run]):
    """All runs in a store.

    Args:
        store: where they lie.
    """

    noun: ClassVar[str] = "run"

    def __init__(self, store: Store) -> None:
        super().__init__(store, Run)

    def create(
        self,
        run_id: str,
        *,
        message_id: str,
        name: str,
        params: TrainingParams | None,
        state: RunState = RunState.QUEUED,
    ) -> bool:
        """Writes a new run's record. Returns False, changing nothing, where the run is known already."""
        now = now_iso()
        run = Run(run_id=run_id, message_id=message_id, name=name, state=state, created=now, updated=now, params=params)
        return self._create(run_id, run)

    def reopen(self, run_id: str, retried_at: HeaderValue) -> Run:
        """Opens a failed or rejected run again, in one atomic step, and returns its record; any other stays as it is.

        Args:
            run_id: the run.
            retried_at: when somebody sent its dead letter back; the run is opened once for each time.
        """

        def change(run: Run) -> Run | None:
            if not run.state.is_retryable or run.retried_at == retried_at:
                return None
            return run.changed(state=RunState.QUEUED, error=None, attempts=0, retried_at=retried_at, updated=now_iso())

        return self._change(run_id, change)

    def write_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes `history.csv`, a row an epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._store.put(f"runs/{run_id}/history.csv", text.getvalue().encode())

    def history(self, run_id: str) -> list[dict[str, float]]:
        """Returns the epochs so far."""
        try:
            text = self._store.get(f"runs/{run_id}/history.csv").decode()
        except NotFound:
            return []
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]

    def evaluation(self, run_id: str) -> dict[str, Any] | None:
        """Returns the evaluation on the held-out faces, or None before there is one."""
        return self._store.find_json(f"runs/{run_id}/evaluation.json")

"""A training run's record in the store, `runs/<run_id>/`: written by the trainer, read by everybody."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from pydantic import ValidationError

from shared.clock import now_iso
from shared.errors import NotFound
from shared.faces.labelling import LabelReport
from shared.params import TrainingParams
from shared.records.evaluation import Evaluation
from shared.records.record import DamagedRecord, Fault, Record, Records, State, StoredModel, describe_fault, find_record
from shared.store.base import Store


class RunState(State):
    """Where a run stands, in the order in which a good run goes through them.

    `ingested` is the end of a run that only reads its dataset, so that somebody can look at it.
    """

    QUEUED = "queued"
    ACCEPTED = "accepted"
    INGESTING = "ingesting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"
    INGESTED = "ingested"
    REGISTERED = "registered"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self in _FINAL_STATES

    @property
    def is_retryable(self) -> bool:
        """Whether the run has ended in such a way that its message may be a dead letter, and can be sent back."""
        return self in {RunState.REJECTED, RunState.FAILED}


_FINAL_STATES: Final = frozenset(
    {RunState.INGESTED, RunState.REGISTERED, RunState.REJECTED, RunState.FAILED, RunState.CANCELLED}
)


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


class EpochRow(StoredModel):
    """A finished epoch: a row of `history.csv`.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean over the epoch's steps, with dropout and augmentation.
        train_accuracy: likewise.
        val_loss: mean log loss on the validation faces after the epoch, calibrated on them as the finished model is.
        val_accuracy: likewise.
        learning_rate: at the epoch's end.
        seconds: the epoch with its validation.
        images_per_second: training faces per second, without validation.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float


HISTORY_COLUMNS: Final = tuple(EpochRow.model_fields)


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
        labels: what was recognised of the labels; None until the run is accepted.
        edits: the hash of the corrections that it trains with; None where it takes the labels of the archive.
        train: whether it trains; False where it only reads the dataset.
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
    labels: LabelReport | None = None
    edits: str | None = None
    train: bool = True
    progress: Progress | None = None
    metrics: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()
    timings: Timings = Timings()
    attempts: int = 0

    @property
    def record_id(self) -> str:  # noqa: D102
        return self.run_id

    def reply(self, status: str | None = None) -> dict[str, Any]:
        """Returns the body of the reply and event that tell of the run's state."""
        body: dict[str, Any] = {"run_id": self.run_id, "status": status or self.state.value, "name": self.name}
        if self.model:
            body["model"] = self.model.as_dict()
            body["metrics"] = self.metrics
        if self.labels:
            body["labels"] = self.labels.model_dump(mode="json")
        if self.edits:
            body["edits"] = self.edits
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
        edits: str | None = None,
        train: bool = True,
        state: RunState = RunState.QUEUED,
        error: Fault | None = None,
        request_sha256: str | None = None,
    ) -> bool:
        """Writes a new run's record. Returns False, changing nothing, where the run is known already."""
        now = now_iso()
        run = Run(
            run_id=run_id,
            message_id=message_id,
            name=name,
            state=state,
            created=now,
            updated=now,
            params=params,
            edits=edits,
            train=train,
            error=error,
            request_sha256=request_sha256,
        )
        return self._create(run_id, run)

    def _reopened(self, record: Run) -> Run:
        return record.changed(state=RunState.QUEUED, error=None, attempts=0)

    def write_history(self, run_id: str, rows: Iterable[EpochRow]) -> None:
        """Writes `history.csv`, a row an epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.as_dict() for row in rows)
        self._store.put(_history_key(run_id), text.getvalue().encode())

    def history(self, run_id: str) -> list[EpochRow]:
        """Returns the epochs so far.

        Raises:
            DamagedRecord: the file cannot be read.
        """
        key = _history_key(run_id)
        try:
            text = self._store.get(key).decode()
        except NotFound:
            return []
        except UnicodeDecodeError as error:
            raise DamagedRecord(key, str(error)) from None
        try:
            return [EpochRow.model_validate(row) for row in csv.DictReader(io.StringIO(text))]
        except ValidationError as error:
            raise DamagedRecord(key, describe_fault(error)) from None

    def write_evaluation(self, run_id: str, evaluation: Evaluation) -> None:
        """Writes `evaluation.json`."""
        self._store.put_json(_evaluation_key(run_id), evaluation.as_dict())

    def evaluation(self, run_id: str) -> Evaluation | None:
        """Returns the evaluation on the held-out faces, or None before there is one.

        Raises:
            DamagedRecord: the file cannot be read.
        """
        return find_record(self._store, _evaluation_key(run_id), Evaluation)


def _history_key(run_id: str) -> str:
    return f"runs/{run_id}/history.csv"


def _evaluation_key(run_id: str) -> str:
    return f"runs/{run_id}/evaluation.json"

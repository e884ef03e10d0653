"""A training run's record in the store, `runs/<run_id>/`: written by the trainer, read by everybody."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from shared.clock import now_iso
from shared.errors import Conflict, NotFound
from shared.params import TrainingParams
from shared.store.base import Store

QUEUED: Final = "queued"
ACCEPTED: Final = "accepted"
INGESTING: Final = "ingesting"
TRAINING: Final = "training"
EVALUATING: Final = "evaluating"
EXPORTING: Final = "exporting"
REGISTERED: Final = "registered"
REJECTED: Final = "rejected"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

FINAL_STATES: Final = frozenset({REGISTERED, REJECTED, FAILED, CANCELLED})
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


class Runs:
    """All runs in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, run_id: str, *, message_id: str, name: str, params: TrainingParams | None, state: str) -> bool:
        """Writes a new run's record. Returns False, changing nothing, where the run is known already."""
        record = {
            "schema": 1,
            "run_id": run_id,
            "message_id": message_id,
            "name": name,
            "state": state,
            "created": now_iso(),
            "updated": now_iso(),
            "params": None if params is None else params.as_dict(),
            "dataset": None,
            "progress": None,
            "model": None,
            "metrics": None,
            "error": None,
            "timings": {},
        }
        return self._store.create(f"runs/{run_id}/run.json", json.dumps(record, indent=2).encode())

    def update(self, run_id: str, **changes: Any) -> dict[str, Any]:
        """Changes some of the record's fields and returns the whole; only the run's owner calls this."""
        record = {**self.get(run_id), **changes, "updated": now_iso()}
        self._store.put_json(f"runs/{run_id}/run.json", record)
        return record

    def get(self, run_id: str) -> dict[str, Any]:
        """Returns the record, or raises `NotFound`."""
        record = self._store.find_json(f"runs/{run_id}/run.json")
        if record is None:
            raise NotFound(f"there is no run {run_id!r}")
        return record

    def find(self, run_id: str) -> dict[str, Any] | None:
        """Returns the record, or None."""
        return self._store.find_json(f"runs/{run_id}/run.json")

    def all(self) -> list[dict[str, Any]]:
        """Returns every run's record, newest first."""
        records = (self.find(run_id) for run_id in self._store.children("runs"))
        return sorted((record for record in records if record), key=lambda record: str(record["created"]), reverse=True)

    def request_cancel(self, run_id: str) -> None:
        """Asks whoever trains the run, now or later, to stop.

        Raises:
            NotFound: there is no such run.
            Conflict: it has ended already.
        """
        state = self.get(run_id)["state"]
        if state in FINAL_STATES:
            raise Conflict(f"run {run_id} has ended: it is {state}")
        self._store.create(f"runs/{run_id}/cancel", b"")

    def cancel_requested(self, run_id: str) -> bool:
        """Returns whether somebody asked for the run to stop."""
        return self._store.exists(f"runs/{run_id}/cancel")

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

    @staticmethod
    def reply(record: Mapping[str, Any], status: str | None = None) -> dict[str, Any]:
        """Returns the body of the reply and event that tell of the run's state."""
        body = {"run_id": record["run_id"], "status": status or record["state"], "name": record["name"]}
        if record["model"]:
            body["model"] = record["model"]
            body["metrics"] = record["metrics"]
        if record["error"]:
            body["error"] = record["error"]
        return body

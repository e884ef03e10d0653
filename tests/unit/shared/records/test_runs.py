from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Conflict, NotFound
from shared.params import TrainingParams
from shared.records import runs
from shared.records.runs import Runs
from shared.store.files import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture
def records(store: FileStore) -> Runs:
    return Runs(store)


def create(records: Runs, run_id: str = "run-1", **changes: Any) -> bool:
    return records.create(
        run_id, **{"message_id": "m1", "name": "faces", "params": TrainingParams(), "state": runs.QUEUED, **changes}
    )


def test_a_new_run_has_all_its_fields_and_its_file_can_be_read_by_people(store: FileStore, records: Runs) -> None:
    assert create(records, params=TrainingParams(epochs=3))
    record = records.get("run-1")
    assert (record["run_id"], record["message_id"], record["name"], record["state"]) == (
        "run-1",
        "m1",
        "faces",
        "queued",
    )
    assert record["params"]["epochs"] == 3
    assert [record[key] for key in ("dataset", "progress", "model", "metrics", "error")] == [None] * 5
    assert b'\n  "state": "queued"' in store.get("runs/run-1/run.json")


def test_a_run_that_is_known_is_not_made_anew(records: Runs) -> None:
    create(records)
    records.update("run-1", state=runs.TRAINING)
    assert not create(records, name="other")
    assert (records.get("run-1")["state"], records.get("run-1")["name"]) == ("training", "faces")


def test_an_update_changes_what_it_names_and_the_time(records: Runs) -> None:
    create(records)
    before = records.get("run-1")
    after = records.update("run-1", state=runs.TRAINING, dataset="abc")
    assert after == records.get("run-1")
    assert {key for key in after if after[key] != before[key]} - {"updated"} == {"state", "dataset"}
    assert after["updated"] >= before["updated"]


def test_an_unknown_run_is_not_found(records: Runs) -> None:
    assert records.find("run-9") is None
    for ask in (records.get, records.update, records.request_cancel):
        with pytest.raises(NotFound, match="there is no run 'run-9'"):
            ask("run-9")


def test_all_runs_come_newest_first_without_folders_that_hold_none(store: FileStore, records: Runs) -> None:
    for number in (1, 2, 3):
        create(records, f"run-{number}")
        records.update(f"run-{number}", created=f"2026-01-0{4 - number}T00:00:00.000Z")
    store.put("runs/run-4/cancel", b"")
    assert [record["run_id"] for record in records.all()] == ["run-1", "run-2", "run-3"]


def test_a_run_can_be_asked_to_stop_until_it_has_ended(records: Runs) -> None:
    create(records)
    assert not records.cancel_requested("run-1")
    records.request_cancel("run-1")
    records.request_cancel("run-1")
    assert records.cancel_requested("run-1")


@pytest.mark.parametrize("state", sorted(runs.FINAL_STATES))
def test_a_run_that_has_ended_cannot_be_asked_to_stop(records: Runs, state: str) -> None:
    create(records, state=state)
    with pytest.raises(Conflict, match=f"run run-1 has ended: it is {state}"):
        records.request_cancel("run-1")
    assert not records.cancel_requested("run-1")


def test_the_history_comes_back_as_numbers_in_the_columns_of_the_contract(store: FileStore, records: Runs) -> None:
    assert records.history("run-1") == []
    row = {column: index + 0.5 for index, column in enumerate(runs.HISTORY_COLUMNS)}
    records.write_history("run-1", [row, {**row, "epoch": 2, "not_a_column": 1}])
    assert records.history("run-1") == [row, {**row, "epoch": 2.0}]
    assert store.get("runs/run-1/history.csv").decode().splitlines()[0] == ",".join(runs.HISTORY_COLUMNS)


def test_a_run_without_an_evaluation_has_none(store: FileStore, records: Runs) -> None:
    assert records.evaluation("run-1") is None
    store.put_json("runs/run-1/evaluation.json", {"accuracy": 0.9})
    assert records.evaluation("run-1") == {"accuracy": 0.9}


def test_a_reply_tells_the_model_or_the_error_where_there_is_one(records: Runs) -> None:
    create(records)
    record = records.get("run-1")
    assert Runs.reply(record) == {"run_id": "run-1", "status": "queued", "name": "faces"}
    assert Runs.reply(record, "accepted")["status"] == "accepted"
    model, metrics, error = {"name": "gender", "version": 3}, {"val_accuracy": 0.94}, {"code": "x", "message": "y"}
    registered = Runs.reply({**record, "state": "registered", "model": model, "metrics": metrics})
    assert (registered["status"], registered["model"], registered["metrics"]) == ("registered", model, metrics)
    assert Runs.reply({**record, "state": "failed", "error": error})["error"] == error
    json.dumps(registered)

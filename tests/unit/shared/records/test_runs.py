from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.errors import Conflict, NotFound
from shared.params import TrainingParams
from shared.records.record import DamagedRecord, Fault, RecordEnded
from shared.records.runs import HISTORY_COLUMNS, EpochRow, Runs, RunState, Timings
from shared.store.files import FileStore
from tests.support.builders.cards import card_of


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture
def records(store: FileStore) -> Runs:
    return Runs(store)


def create(records: Runs, run_id: str = "run-1", **changes: Any) -> bool:
    return records.create(
        run_id, **{"message_id": "m1", "name": "faces", "params": TrainingParams(), "state": RunState.QUEUED, **changes}
    )


def test_a_new_run_has_all_its_fields_and_its_file_can_be_read_by_people(store: FileStore, records: Runs) -> None:
    assert create(records, params=TrainingParams(epochs=3))
    record = records.get("run-1")
    assert (record.run_id, record.message_id, record.name, record.state) == (
        "run-1",
        "m1",
        "faces",
        "queued",
    )
    assert record.params.epochs == 3
    assert [getattr(record, key) for key in ("dataset", "progress", "model", "metrics", "error")] == [None] * 5
    assert b'\n  "state": "queued"' in store.get("runs/run-1/run.json")


def test_a_run_that_is_known_is_not_made_anew(records: Runs) -> None:
    create(records)
    records.update("run-1", state=RunState.TRAINING)
    assert not create(records, name="other")
    assert (records.get("run-1").state, records.get("run-1").name) == ("training", "faces")


def test_an_update_changes_what_it_names_and_the_time(records: Runs) -> None:
    create(records)
    before = records.get("run-1")
    after = records.update("run-1", state=RunState.TRAINING, dataset="abc")
    assert after == records.get("run-1")
    assert after == before.changed(state=RunState.TRAINING, dataset="abc", updated=after.updated)
    assert after.updated >= before.updated


@pytest.mark.parametrize(
    "change", [{"stat": RunState.TRAINING}, {"state": "happy"}, {"metrics": {"loss": float("nan")}}]
)
def test_an_update_of_what_a_run_does_not_have_is_a_bug_and_changes_nothing(
    records: Runs, change: dict[str, Any]
) -> None:
    create(records)
    before = records.get("run-1")
    with pytest.raises((TypeError, ValidationError)):
        records.update("run-1", **change)
    assert records.get("run-1") == before


@pytest.mark.parametrize("state", [state for state in RunState if state.is_final])
def test_no_update_leaves_a_final_state_or_changes_what_has_ended(records: Runs, state: RunState) -> None:
    create(records)
    ended = records.update("run-1", state=state)
    for change in ({"state": RunState.EXPORTING}, {"state": state}, {"dataset": "abc"}, {"progress": None}):
        with pytest.raises(RecordEnded, match=f"run run-1 has ended: it is {state}"):
            records.update("run-1", **change)
    assert records.get("run-1") == ended


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.REJECTED])
def test_a_run_that_went_wrong_is_opened_once_for_each_time_its_dead_letter_is_sent_back(
    records: Runs, state: RunState
) -> None:
    create(records)
    records.update("run-1", state=state, error=Fault(code="internal", message="x"))
    opened = records.reopen("run-1", 1.5)
    assert (opened.state, opened.error, opened.retried_at) == (RunState.QUEUED, None, 1.5)
    ended = records.update("run-1", state=state)
    assert records.reopen("run-1", 1.5) == ended == records.get("run-1")
    assert records.reopen("run-1", 2.5).state == RunState.QUEUED


def test_a_run_that_is_opened_again_is_no_longer_asked_to_stop(records: Runs) -> None:
    for number in range(2):
        create(records, f"run-{number}")
        records.request_cancel(f"run-{number}")
        records.update(f"run-{number}", state=RunState.FAILED)
        (records.mark_requeued if number else records.reopen)(f"run-{number}", 1.5)
        assert not records.cancel_requested(f"run-{number}")
    records.request_cancel("run-1")

    assert records.reopen("run-1", 1.5).retried_at == 1.5  # the trainer takes what the client sent back
    assert records.cancel_requested("run-1")


@pytest.mark.parametrize(
    "state", [state for state in RunState if not state.is_retryable and state is not RunState.QUEUED]
)
def test_no_other_run_is_opened_again(records: Runs, state: RunState) -> None:
    create(records, state=state)
    record = records.get("run-1")
    assert records.reopen("run-1", 1.5) == record == records.get("run-1")


def test_of_many_updates_at_the_same_time_none_is_lost(store: FileStore, records: Runs) -> None:
    create(records)
    names = list(Timings.model_fields)
    barrier = threading.Barrier(len(names))

    def enter(name: str) -> None:
        barrier.wait()
        mine = Runs(store)
        for _ in range(5):
            mine.update("run-1", dataset=name)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(enter, names))
    assert records.get("run-1").dataset in names


DAMAGED = {
    "empty": (b"", "found 0 bytes without content, expected JSON"),
    "garbage": (b"\x00\xff not JSON", "Invalid JSON"),
    "no object": (b"[1]", "should be an object"),
    "nested": (b"[" * 50_000, "Invalid JSON"),
    "wrong type": (b'{"schema": 1, "message_id": 5}', "message_id: found 5: "),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_named_and_costs_the_list_nothing_else(store: FileStore, records: Runs, kind: str) -> None:
    content, found = DAMAGED[kind]
    for number in (1, 2, 3):
        create(records, f"run-{number}")
    store.put("runs/run-2/run.json", content)
    ask: Callable[[str], object]
    for ask in (records.get, records.find, records.update, records.request_cancel):
        with pytest.raises(DamagedRecord, match=r"runs/run-2/run\.json") as error:
            ask("run-2")
        assert found in str(error.value)
    listing = records.all()
    assert {run.run_id for run in listing.records} == {"run-1", "run-3"}
    assert [(damage.record_id, damage.code) for damage in listing.damaged] == [("run-2", "damaged_record")]
    assert store.get("runs/run-2/run.json") == content


def test_an_unknown_run_is_not_found(records: Runs) -> None:
    assert records.find("run-9") is None
    for ask in (records.get, records.update, records.request_cancel):
        with pytest.raises(NotFound, match="there is no run 'run-9'"):
            ask("run-9")


def test_all_runs_come_newest_first_without_folders_that_hold_none(
    store: FileStore, records: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        now = f"2026-01-0{4 - number}T00:00:00.000Z"
        monkeypatch.setattr("shared.records.runs.now_iso", lambda now=now: now)
        create(records, f"run-{number}")
    store.put("runs/run-4/cancel", b"")
    assert [record.run_id for record in records.all().records] == ["run-1", "run-2", "run-3"]


def test_a_run_can_be_asked_to_stop_until_it_has_ended(records: Runs) -> None:
    create(records)
    assert not records.cancel_requested("run-1")
    records.request_cancel("run-1")
    records.request_cancel("run-1")
    assert records.cancel_requested("run-1")


@pytest.mark.parametrize("state", [state for state in RunState if state.is_final])
def test_a_run_that_has_ended_cannot_be_asked_to_stop(records: Runs, state: RunState) -> None:
    create(records, state=state)
    with pytest.raises(Conflict, match=f"run run-1 has ended: it is {state}"):
        records.request_cancel("run-1")
    assert not records.cancel_requested("run-1")


def test_the_history_comes_back_as_numbers_in_the_columns_of_the_contract(store: FileStore, records: Runs) -> None:
    assert records.history("run-1") == []
    row = EpochRow.model_validate({column: index + 1 for index, column in enumerate(HISTORY_COLUMNS)})
    records.write_history("run-1", [row, row.changed(epoch=2, val_loss=0.1)])
    assert records.history("run-1") == [row, row.changed(epoch=2, val_loss=0.1)]
    assert store.get("runs/run-1/history.csv").decode().splitlines()[0] == ",".join(HISTORY_COLUMNS)


def test_a_run_without_an_evaluation_has_none(store: FileStore, records: Runs) -> None:
    assert records.evaluation("run-1") is None
    evaluation = card_of(1, "run-1").evaluation
    records.write_evaluation("run-1", evaluation)
    assert records.evaluation("run-1") == evaluation


@pytest.mark.parametrize("content", [b"\xff", b"epoch,train_loss\n1,much\n"])
def test_a_damaged_history_or_evaluation_is_named(store: FileStore, records: Runs, content: bytes) -> None:
    for name, read in (("history.csv", records.history), ("evaluation.json", records.evaluation)):
        store.put(f"runs/run-1/{name}", content)
        with pytest.raises(DamagedRecord, match=f"runs/run-1/{name} in the store is damaged"):
            read("run-1")


def test_a_reply_tells_the_model_or_the_error_where_there_is_one(records: Runs) -> None:
    create(records)
    record = records.get("run-1")
    assert record.reply() == {"run_id": "run-1", "status": "queued", "name": "faces"}
    assert record.reply("accepted")["status"] == "accepted"
    model, metrics, error = {"name": "gender", "version": 3}, {"val_accuracy": 0.94}, {"code": "x", "message": "y"}
    registered = record.changed(state="registered", model=model, metrics=metrics).reply()
    assert (registered["status"], registered["model"], registered["metrics"]) == ("registered", model, metrics)
    assert record.changed(state="failed", error=error).reply()["error"] == error
    json.dumps(registered)

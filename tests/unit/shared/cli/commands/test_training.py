"""`train` and `runs`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.broker.base import Delivery, Message, Outgoing
from shared.client import Client
from shared.faces.labelling import LabelReport, LabelSpec
from shared.messages import parse_dataset
from shared.params import TrainingParams
from shared.records.dismissals import dismissed_failures, failure_key
from shared.records.model_card import GateResult
from shared.records.runs import RunState
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import REPOSITORY, ZIP, beating, document, registered, run, serving, trains


def test_train_follows_a_run_to_its_model(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    with serving(client, client.broker.topology.datasets, trains(client, **registered())):
        result = run("train", "faces.zip", "--param", "epochs=2", "--name", "mine")
    assert result.exit_code == 0, result.output
    (record,) = client.runs.all().records
    assert (record.name, record.params.epochs) == ("mine", 2)
    assert f"{record.run_id}: registered as version 1, accuracy 93.1 % on test faces" in result.stdout
    assert "epoch   train loss  accuracy   val loss  accuracy" in result.stderr
    assert len(re.findall(r"^    [12]  ", result.stderr, flags=re.MULTILINE)) == 2


@pytest.mark.parametrize("state", ["rejected", "failed", "cancelled"])
def test_a_run_that_came_to_nothing_is_exit_code_1(client: Client, folder: Path, state: str) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    error = {"code": "too_few_faces", "message": "found 3 faces, expected 20"}
    with serving(client, client.broker.topology.datasets, trains(client, state=state, error=error)):
        result = run("train", "faces.zip")
    assert result.exit_code == 1
    assert f"{state}: too_few_faces: found 3 faces, expected 20" in result.stderr
    run_id = client.runs.all().records[0].run_id
    assert document("runs", run_id, "--follow", exit_code=1)["error"] == error


def test_an_archive_is_only_looked_at_where_that_is_asked_for(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    with serving(client, client.broker.topology.datasets, trains(client, state="ingested", dataset="d" * 64)):
        result = run("train", "faces.zip", "--look")
    assert result.exit_code == 0, result.output
    (record,) = client.runs.all().records
    assert not record.train
    assert f"{record.run_id}: read as dataset {'d' * 64}" in result.stdout
    assert f"genderline train --dataset {'d' * 64}" in result.stdout
    assert run("train", "--dataset", "d" * 64, "--look").exit_code == 2


def test_train_for_programs_prints_the_last_reply(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    with serving(client, client.broker.topology.datasets, trains(client, **registered(3))):
        reply = document("train", "faces.zip")
    assert reply["status"] == "registered"
    assert reply["model"] == {"name": "gender", "version": 3}


@pytest.mark.parametrize("stem", [b"n" * 230, b"faces \xff"])
def test_a_run_may_be_called_after_any_file(client: Client, folder: Path, stem: bytes) -> None:
    archive = folder / os.fsdecode(stem + b".zip")
    archive.write_bytes(ZIP)
    with serving(client, client.broker.topology.datasets, trains(client, **registered())):
        assert document("train", archive, "--detach")["status"]
        run_id = client.runs.all().records[0].run_id
        assert document("runs", run_id, "--follow")["status"] == "registered"
    assert client.runs.get(run_id).name == ("n" * 200 if stem.startswith(b"n") else "faces ?")


def test_a_detached_run_can_be_followed_cancelled_and_shown(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    run_id = document("train", "faces.zip", "--detach")["run_id"]
    assert f"{run_id}: queued" in run("train", "faces.zip", "--detach").stdout or client.runs.get(run_id)
    assert run("runs", run_id, "--cancel").exit_code == 0
    assert client.runs.cancel_requested(run_id)
    assert "queued" in run("runs", run_id).stdout
    with serving(client, client.broker.topology.datasets, trains(client, **registered())):
        assert run("runs", run_id, "--follow").exit_code == 0
    assert run("runs", run_id, "--cancel").exit_code == 1


def test_a_run_that_takes_longer_than_the_timeout_goes_on(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    result = run("train", "faces.zip", "--timeout", "0.1")
    assert result.exit_code == 1
    assert "it goes on" in result.stderr
    assert client.runs.all().records[0].state == "queued"


def test_ctrl_c_says_how_to_follow_the_run_again(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    # As from a terminal: what a script starts in the background is deaf to Ctrl-C, and so is all that it starts.
    started = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{started}; from shared.cli import main; main()", "train", "faces.zip"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "queued\n":
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    run_id = client.runs.all().records[0].run_id
    assert f"{run_id} continues; follow it again with: genderline runs {run_id} --follow" in said
    assert process.returncode == 130


@pytest.mark.slow
def test_waiting_says_once_that_no_trainer_is_up(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    result = run("train", "faces.zip", "--timeout", "5.5")
    assert result.stderr.count("no trainer is running; start one with `genderline up`") == 1


def test_waiting_says_that_the_trainer_is_busy(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    with beating(client, "trainer", busy="run-before"):
        result = run("train", "faces.zip", "--timeout", "4")
    assert "the trainer is busy with run-before" in result.stderr
    assert "no trainer is running" not in result.stderr


def test_a_run_that_ends_before_its_last_epoch_is_said_to_have_stopped_early(
    client: Client, builder: StoreBuilder
) -> None:
    progress = {"stage": "training", "done": 30, "total": 60, "epoch": 2, "epochs": 5}
    run_id = builder.run(state=RunState.TRAINING, epochs=2, progress=progress)
    ending = threading.Timer(1.0, client.runs.update, [run_id], {**registered(), "progress": None})
    ending.start()
    result = run("runs", run_id, "--follow")
    ending.join()
    assert "stopped early, after 2 of 5 epochs: the validation loss fell no further\n" in result.stderr


def test_a_version_that_the_gate_did_not_promote_is_told_with_the_one_that_serves(
    client: Client, builder: StoreBuilder, folder: Path
) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    sha256 = builder.dataset()
    client.promote(builder.model(sha256, "run-000000000001"), "first")
    builder.model(sha256, "run-000000000002")
    with serving(client, client.broker.topology.datasets, trains(client, **registered(2))):
        result = run("train", "faces.zip")
    assert "test faces; not promoted, the champion is still version 1: balanced accuracy " in result.stdout


def test_a_run_is_told_with_the_reason_of_the_gate_and_the_warnings_about_its_data(
    client: Client, builder: StoreBuilder, folder: Path
) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    version = builder.model(builder.dataset(), "run-000000000001")
    refused = GateResult(passed=False, reason="it gives one answer only", champion=None)
    client.registry.register(client.registry.card(version).changed(gate=refused), "", {})
    with serving(client, client.broker.topology.datasets, trains(client, **registered(1), warnings=["few women"])):
        result = run("train", "faces.zip")
    assert "test faces; no model is in use yet: it gives one answer only\n" in result.stdout
    assert "warning: few women\n" in result.stdout


def test_runs_lists_and_shows_runs(builder: StoreBuilder) -> None:
    assert "no runs yet" in run("runs").stderr
    builder.model(builder.dataset(), "run-000000000001", name="first")
    builder.run(
        "run-000000000002", name="\x1b[2Jevil", state=RunState.FAILED, error={"code": "internal", "message": "a bug"}
    )
    progress = {"stage": "training", "done": 1, "total": 4, "epoch": 3, "epochs": 8}
    builder.run("run-000000000003", state=RunState.TRAINING, epochs=2, progress=progress)
    listed = run("runs").stdout
    assert "registered" in listed
    assert "training, epoch 3/8, 25%" in listed
    assert "\x1b" not in listed
    assert [record["run_id"] for record in document("runs")] == [f"run-00000000000{i}" for i in (3, 2, 1)]
    shown = run("runs", "run-000000000001").stdout
    assert "test faces" in shown
    assert re.search(r"^female +gender ", shown, flags=re.MULTILINE)
    assert "internal: a bug" in run("runs", "run-000000000002").stdout
    assert len(document("runs", "run-000000000003")["history"]) == 2
    assert document("runs", "run-4", exit_code=1)["error"]["code"] == "not_found"


def test_a_dataset_in_the_store_is_trained_on_again_without_its_zip(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(30)
    builder.run("run-000000000001", name="faces", dataset=sha256)

    told = document("train", "--dataset", sha256, "--param", "epochs=7", "--detach")

    record = client.runs.get(told["run_id"])
    assert (record.name, record.params) == ("faces", TrainingParams(epochs=7))
    assert run("train").exit_code == run("train", "--dataset", sha256, "README.md").exit_code == 2
    assert document("train", "--dataset", "abc", "--detach", exit_code=1)["error"]["code"] == "not_found"


def test_a_failed_run_is_dismissed(builder: StoreBuilder, client: Client) -> None:
    run_id = builder.run("run-bad", state=RunState.FAILED)

    assert "dismissed the failure of run-bad" in run("runs", run_id, "--dismiss").stderr
    assert dismissed_failures(client.store) == {failure_key(client.runs.get(run_id))}


def test_a_failed_run_is_retried_and_one_that_has_not_failed_is_not(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(30)
    error = {"code": "internal", "message": "internal error"}
    builder.run("run-000000000001", name="faces", state=RunState.FAILED, dataset=sha256, error=error)
    builder.run("run-000000000002", name="faces", state=RunState.TRAINING, dataset=sha256)

    assert "is queued again" in run("runs", "run-000000000001", "--retry").stderr
    assert len(client.runs.all().records) == 3
    assert document("runs", "run-000000000002", "--retry", exit_code=1)["error"]["code"] == "conflict"
    assert run("runs", "--retry").exit_code == 2


def test_train_says_what_was_recognized_of_the_labels(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    report = LabelReport(source="table", tables=("list.csv",), columns={"gender": "sex"}, labelled=60)
    told: list[Message] = []
    train = trains(client, labels=report, **registered())

    def handle(delivery: Delivery) -> list[Outgoing]:
        told.append(delivery.message)
        return train(delivery)

    with serving(client, client.broker.topology.datasets, handle):
        result = run("train", "faces.zip", "--labels", "gender=sex", "--labels", "male=1,2")
    assert result.exit_code == 0, result.output
    assert "labels from list.csv, column sex; 60 files" in result.stderr
    assert parse_dataset(told[0]).labels == LabelSpec(gender="sex", male=("1", "2"))
    assert run("train", "faces.zip", "--labels", "sex=gender").exit_code == 2


def test_an_archive_is_copied_into_the_store_for_its_user_alone(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    (folder / "faces.zip").chmod(0o644)
    assert run("train", "faces.zip", "--detach").exit_code == 0
    modes = {path.stat().st_mode & 0o777 for path in (folder / "data" / "store" / "runs").rglob("*.json")}
    assert modes == {0o600}

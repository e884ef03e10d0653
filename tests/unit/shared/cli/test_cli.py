"""The command line, on a real embedded broker and store; scripted services answer where one is needed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shared.broker.base import Delivery, Message, Outgoing
from shared.broker.sqlite.broker import SqliteBroker
from shared.cli import main
from shared.cli.service_urls import SERVICES, choose_ports
from shared.client import Client
from shared.errors import InvalidImage
from shared.messages import (
    job_id_of,
    json_reply,
    parse_dataset,
    parse_job,
    parse_prediction,
    prediction,
    prediction_error,
    run_id_of,
)
from shared.records.jobs import RESULT_COLUMNS, Jobs, JobState
from shared.records.runs import RunState
from shared.records.shadow import ShadowFigures, add_shadow_figures
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from shared.telemetry.heartbeat import Heartbeat
from shared.topology import Topology, job_state_topic, run_state_topic
from tests.store_builder import StoreBuilder

REPOSITORY = Path(__file__).parents[4]
ZIP = b"PK\x05\x06" + bytes(18)
PNG = b"\x89PNG of an even length"

Handle = Callable[[Delivery], list[Outgoing]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the test's own, and no settings from outside."""
    for name in [name for name in os.environ if name.startswith("GENDERLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    with SqliteBroker(folder / "data" / "broker.db", Topology()) as broker:
        yield Client(broker, FileStore(folder / "data" / "store"))


@pytest.fixture
def builder(client: Client) -> StoreBuilder:
    return StoreBuilder(client.store)


def run(*arguments: str | Path) -> Result:
    """Runs a command; an exception that is no exit fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(*arguments: str | Path, exit_code: int = 0) -> Any:
    """Runs a command with `--json` and returns the document, which must be all that is on standard output."""
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


@contextlib.contextmanager
def serving(client: Client, queue: str, handle: Handle) -> Iterator[None]:
    """Works on a queue as a service would, while the context lasts."""
    consumer = client.broker.consume([queue], prefetch=1)
    problems: list[Exception] = []

    def work() -> None:
        while deliveries := consumer.receive(1):
            try:
                consumer.settle(deliveries, handle(deliveries[0]))
            except Exception as error:  # the test shows it
                problems.append(error)
                import traceback

                traceback.print_exc()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        consumer.close()
        thread.join()
    if problems:
        raise problems[0]


@contextlib.contextmanager
def beating(client: Client, service: str, **state: Any) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Heartbeat(client.broker, service, lambda: state).run, args=[stop])
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def trains(client: Client, **final: Any) -> Handle:
    """Tells of a run as a trainer does, without training."""

    def handle(delivery: Delivery) -> list[Outgoing]:
        request = parse_dataset(delivery.message)
        run_id = run_id_of(request.message_id)
        # Whoever is first makes the record: the client, or the trainer that took the message.
        client.runs.create(
            run_id, message_id=request.message_id, name=request.name, params=request.params, state=RunState.ACCEPTED
        )

        def tell(**changes: Any) -> None:
            record = client.runs.update(run_id, **changes)
            client.broker.emit(run_state_topic(record.state), {"schema": 1, **record.reply()})

        tell(state="ingesting")
        progress = {"done": 30, "total": 60, "rate": 70.0, "eta_s": 1.0, "epoch": 1, "epochs": 2}
        builder = StoreBuilder(client.store)
        tell(state="training", progress={"stage": "training", **progress})
        client.runs.write_history(run_id, [builder.epoch(1), builder.epoch(2)])
        tell(progress=None, **final)
        return []

    return handle


def registered(version: int = 1) -> dict[str, Any]:
    return {
        "state": "registered",
        "model": {"name": "gender", "version": version},
        "metrics": {"val_accuracy": 0.94, "test_accuracy": 0.931},
    }


def answers(delivery: Delivery) -> list[Outgoing]:
    """Predicts by the parity of an image's length; nothing at all for the word "broken"."""
    request = parse_prediction(delivery.message)
    entries = [
        prediction_error(key, InvalidImage("found a text file"))
        if data == b"broken"
        else prediction(key, 0.1 if len(data) % 2 else 0.9)
        for key, data in zip(request.ids, request.images, strict=True)
    ]
    model = {"name": "gender", "version": request.model_version or 7}
    return json_reply(delivery, {"model": model, "predictions": entries})


def works_off(client: Client, **final: Any) -> Handle:
    """Works a job off as the workers do: every image is female."""

    def handle(delivery: Delivery) -> list[Outgoing]:
        request = parse_job(delivery.message)
        job_id = job_id_of(request.message_id)
        client.jobs.create(job_id, message_id=request.message_id, name=request.name, state=JobState.ACCEPTED)
        with client.store.local(Jobs.archive_key(job_id)) as path, zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        lines = [",".join(RESULT_COLUMNS), *(f"{name},female,0.9,0.9,female,true," for name in names)]
        client.store.put(Jobs.results_key(job_id), "\n".join(lines).encode())
        changes = {
            "state": "finished",
            "images": len(names),
            "counts": {"images": len(names), "errors": 0},
            "model": {"name": "gender", "version": 7},
            **final,
        }
        record = client.jobs.update(job_id, **changes)
        client.broker.emit(job_state_topic(record.state), {"schema": 1, **record.reply()})
        return []

    return handle


def image_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        (folder / f"24_1_0_{index:04d}.png").write_bytes(PNG)
    return folder


# -- as a program


def test_help_answers_at_once_and_names_every_command() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from shared.cli import main; main(['--help'])"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert time.monotonic() - started < 5
    for command in (
        "up",
        "train",
        "predict",
        "runs",
        "models",
        "promote",
        "rollback",
        "jobs",
        "dead",
        "status",
        "sample",
    ):
        assert re.search(rf"^  {command} ", done.stdout, flags=re.MULTILINE)
    slow = ("pydantic", "numpy", "rich.progress", "fsspec", "prometheus_client")
    assert [name for name in slow if re.search(rf"\| +{re.escape(name)}$", done.stderr, flags=re.MULTILINE)] == []


def test_the_installed_command_is_this_one() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="genderline")
    assert entry.load() is main


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train", "missing.zip"],
        ["predict"],
        ["promote"],
        ["promote", "three", "--reason", "x"],
        ["runs", "--follow"],
        ["jobs", "--cancel"],
        ["dead", "drop"],
        ["dead", "retry", "some-id", "--all"],
        ["sample", "x.zip"],
        ["up", "--only", "database"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("param", "said"),
    [("epochs", "KEY=VALUE"), ("epoch=3", "unknown"), ("epochs=x", "a whole number, 1 to 1,000 or auto")],
)
def test_a_wrong_parameter_is_wrong_usage_and_sends_nothing(folder: Path, param: str, said: str) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    result = run("train", "faces.zip", "--param", param)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (folder / "data").exists()


def test_a_wrong_setting_is_said_without_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_TOKEN", "short")
    monkeypatch.setenv("GENDERLINE_PORT", "http")
    result = run("runs")
    assert result.exit_code == 2
    assert "GENDERLINE_PORT" in result.stderr
    assert "'http'" in result.stderr
    assert "GENDERLINE_TOKEN" in result.stderr
    assert "short" not in result.stderr.replace("should have at least", "")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://user:hunter22@host:notaport/", "expected a whole URL, with a number from 0 to 65535 as its port"),
        ("amqp://host/?heartbeat=often", "Invalid heartbeat value 'often'"),
    ],
)
def test_a_malformed_broker_url_is_a_sentence(monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    monkeypatch.setenv("GENDERLINE_BROKER_URL", url)
    result = run("runs")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: GENDERLINE_BROKER_URL: ")
    assert said in result.stderr
    assert "hunter22" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert document("runs", exit_code=2)["error"]["code"] == "settings"


def test_a_bucket_without_the_extra_for_it_is_a_sentence_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setenv("GENDERLINE_STORE_URL", "s3://faces/prefix")
    result = run("models")
    assert result.exit_code == 2
    assert re.fullmatch("error: GENDERLINE_STORE_URL: expected the extra `s3` .*\n", result.stderr)


@pytest.mark.parametrize("command", ["runs", "settings"])
def test_a_misspelt_setting_is_warned_of_on_standard_error(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("GENDERLINE_WORKER", "3")
    result = run(command)
    assert result.exit_code == 0
    assert result.stderr.startswith("unknown setting GENDERLINE_WORKER; did you mean GENDERLINE_WORKERS?\n")
    assert isinstance(document(command), list)


def test_a_broker_that_is_away_is_a_sentence_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_BROKER_URL", "sqlite:////proc/broker.db")
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert document("status", exit_code=1)["error"]["code"] == "unavailable"


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    script = "from shared.cli import main; main()"
    command = f"{sys.executable} -c '{script}' settings --markdown | true"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("", "")


# -- train and runs


def test_train_follows_a_run_to_its_model(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    with serving(client, client.broker.topology.datasets, trains(client, **registered())):
        result = run("train", "faces.zip", "--param", "epochs=2", "--name", "mine")
    assert result.exit_code == 0, result.output
    (record,) = client.runs.all().records
    assert (record.name, record.params.epochs) == ("mine", 2)
    assert f"{record.run_id}: registered as version 1, accuracy 93.1 % on held-out faces" in result.stdout
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
    assert f"{run_id} goes on; follow it again with: genderline runs {run_id} --follow" in said
    assert process.returncode == 130


def test_waiting_says_once_that_no_trainer_is_up(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    result = run("train", "faces.zip", "--timeout", "5.5")
    assert result.stderr.count("no trainer is up; start one with `genderline up`") == 1


def test_waiting_says_that_the_trainer_is_busy(client: Client, folder: Path) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    with beating(client, "trainer", busy="run-before"):
        result = run("train", "faces.zip", "--timeout", "4")
    assert "the trainer is busy with run-before" in result.stderr
    assert "no trainer is up" not in result.stderr


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
    assert "held-out faces; not promoted, the champion is still version 1\n" in result.stdout


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
    assert "held-out faces" in shown
    assert re.search(r"^female +gender ", shown, flags=re.MULTILINE)
    assert "internal: a bug" in run("runs", "run-000000000002").stdout
    assert len(document("runs", "run-000000000003")["history"]) == 2
    assert document("runs", "run-4", exit_code=1)["error"]["code"] == "not_found"


# -- models


def test_models_are_listed_shown_promoted_and_rolled_back(builder: StoreBuilder, client: Client) -> None:
    assert "no models yet" in run("models").stderr
    sha256 = builder.dataset()
    for number in (1, 2):
        builder.model(sha256, f"run-00000000000{number}")
    with client.broker.subscribe(["model.promoted"]) as events:
        assert "version 1 is the champion; the previous one is none" in run("promote", "1", "--reason", "first").stdout
        assert document("promote", "2", "--reason", "better") == {"champion": 2, "previous": 1}
        assert run("rollback", "--reason", "worse").exit_code == 0
        promoted = [event.payload["version"] for _ in range(3) for event in events.receive(0.1)]
    assert promoted == [1, 2, 1]
    assert re.search(r"^ +1  champion ", run("models").stdout, flags=re.MULTILINE)
    assert [entry["reason"] for entry in document("models")["history"]] == ["first", "better", "worse"]
    assert "# gender 2" in run("models", "2").stdout
    assert document("models", "2")["version"] == 2
    assert run("promote", "9", "--reason", "x").exit_code == 1
    assert "registered: 1, 2" in run("models", "9").stderr


def test_a_challenger_is_named_listed_with_its_figures_and_dismissed(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset()
    for number in (1, 2):
        builder.model(sha256, f"run-00000000000{number}")
    assert document("challenge", "2", exit_code=1)["error"]["code"] == "conflict"
    run("promote", "1", "--reason", "first")
    with client.broker.subscribe(["model.challenged"]) as events:
        assert "version 2 challenges version 1" in run("challenge", "2", "--reason", "faster").stdout
        assert re.search(r"^ +2  challenger ", run("models").stdout, flags=re.MULTILINE)
        assert "version 2 challenges version 1: it has not seen any images yet" in run("models").stdout
        figures = ShadowFigures(images=12_400, agreed=12_065, difference=260.4, challenger_s=0.8, champion_s=1.0)
        add_shadow_figures(client.store, 2, 1, figures)
        shown = " ".join(run("models").stdout.split())
        assert "agrees on 97.3 % of 12,400 images, mean difference 0.021, takes 0.80 times as long" in shown
        listed = document("models")
        assert listed["aliases"]["challenger"] == 2
        assert listed["shadow"]["agreement"] == 0.973
        assert document("challenge", "--clear") == {"champion": 1, "challenger": None}
        told = [event.payload["version"] for _ in range(2) for event in events.receive(0.1)]
    assert told == [2, None]
    assert "challenges" not in run("models").stdout
    assert run("challenge").exit_code == run("challenge", "2", "--clear").exit_code == 2
    assert document("challenge", "--clear", exit_code=1)["error"]["code"] == "conflict"


def test_promoting_and_rolling_back_need_no_reason(builder: StoreBuilder) -> None:
    sha256 = builder.dataset()
    for number in (1, 2):
        builder.model(sha256, f"run-00000000000{number}")
        assert run("promote", str(number)).exit_code == 0
    assert document("rollback") == {"champion": 1, "previous": 2}
    assert [entry["reason"] for entry in document("models")["history"]] == ["by hand"] * 3


def test_a_rollback_without_a_previous_champion_is_a_conflict() -> None:
    assert document("rollback", "--reason", "x", exit_code=1)["error"]["code"] == "conflict"


# -- predictions and jobs


def test_images_and_folders_are_predicted_directly(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 3)
    (images / "notes.txt").write_text("no image")
    (images / "._24_1_0.png").write_text("litter of an operating system")
    single = folder / "face.png"
    single.write_bytes(PNG)
    with serving(client, client.broker.topology.predictions, answers):
        result = run("predict", images, single, "--out", "out.csv")
        shown = run("predict", single, "--model-version", "2")
    assert result.exit_code == 0
    assert "4 images, 0 errors, model version 7" in result.stderr
    assert "accuracy 100.0 % on the labelled ones, written to out.csv" in result.stderr
    assert result.stdout == ""
    with (folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["gender"] for row in rows] == ["female"] * 4
    assert [row["correct"] for row in rows] == ["true"] * 3 + [""]
    assert re.search(r"face\.png +female +0\.900 +90\.0 %", shown.stdout)
    assert "model version 2" in shown.stderr


def test_one_broken_image_costs_one_row(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 2)
    (images / "broken.jpg").write_bytes(b"broken")
    with serving(client, client.broker.topology.predictions, answers):
        found = document("predict", images)
        alone = run("predict", images / "broken.jpg")
    assert found["counts"] == {"images": 3, "errors": 1}
    assert [row["error"] for row in found["predictions"]] == [None, None, "invalid_image: found a text file"]
    assert alone.exit_code == 1


def test_many_images_become_a_job_and_keep_their_names(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 513)
    with serving(client, client.broker.topology.jobs, works_off(client)):
        found = document("predict", images)
    (job,) = client.jobs.all().records
    assert found["jobs"] == [job.job_id]
    assert found["counts"]["images"] == 513
    assert found["predictions"][512]["name"] == (images / "24_1_0_0512.png").as_posix()
    assert found["accuracy"] == 1.0


def test_many_images_become_a_job_whatever_their_names_and_times(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 513)
    os.utime(images / "24_1_0_0000.png", (0, 0))  # a zip's times begin in 1980
    (images / "24_1_0_0512.png").rename(images / os.fsdecode(b"24_1_0_\xff.png"))
    with serving(client, client.broker.topology.jobs, works_off(client)):
        found = document("predict", images)
    assert found["counts"] == {"images": 513, "errors": 0}
    assert found["predictions"][512]["name"] == f"{images}/24_1_0_\ufffd.png"
    assert found["predictions"][512]["true_gender"] == "female"


def test_a_file_name_that_is_no_utf8_is_told_as_far_as_it_is(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 3)
    (images / "24_1_0_0001.png").rename(images / os.fsdecode(b"24_1_0_\xff.png"))
    with serving(client, client.broker.topology.predictions, answers):
        assert run("predict", images, "--out", "out.csv").exit_code == 0
        found = document("predict", images)
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == [row["name"] for row in found["predictions"]]
    assert [name for name in names if "\ufffd" in name] == [f"{images}/24_1_0_\ufffd.png"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("missing/out.csv", "found no folder 'missing', expected one to write 'out.csv' into"),
        ("face.png/out.csv", "found no folder 'face.png', expected"),
    ],
)
def test_where_results_cannot_be_written_is_said_before_anything_is_asked(folder: Path, out: str, said: str) -> None:
    (folder / "face.png").write_bytes(PNG)
    for command in (["predict", "face.png"], ["jobs", "job-1"]):
        result = run(*command, "--out", out)
        assert result.exit_code == 2
        assert said in result.stderr.replace("\n", " ")
    assert not (folder / "data").exists()


def test_an_archive_becomes_a_job(client: Client, folder: Path) -> None:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("a/24_1_0.jpg", PNG)
    with serving(client, client.broker.topology.jobs, works_off(client)):
        result = run("predict", "photos.zip")
    assert result.exit_code == 0, result.output
    assert re.search(r"a/24_1_0\.jpg +female +0\.900 +90\.0 % +female", result.stdout)
    assert client.jobs.all().records[0].name == "photos"
    assert run("predict", "photos.zip", "--model-version", "1").exit_code == 2


def test_a_job_that_came_to_nothing_is_exit_code_1(client: Client, folder: Path) -> None:
    (folder / "photos.zip").write_bytes(ZIP)
    error = {"code": "invalid_archive", "message": "found an empty archive"}
    with serving(client, client.broker.topology.jobs, works_off(client, state="rejected", error=error)):
        result = run("predict", "photos.zip")
    assert result.exit_code == 1
    assert "rejected: invalid_archive: found an empty archive" in result.stderr
    assert result.stdout == ""
    assert "0 images" not in result.stderr
    job_id = client.jobs.all().records[0].job_id
    assert run("jobs", job_id, "--follow").exit_code == 1


def test_without_an_answer_predicting_ends_with_a_sentence(client: Client, folder: Path) -> None:
    (folder / "face.png").write_bytes(PNG)
    result = run("predict", "face.png", "--timeout", "0.2")
    assert result.exit_code == 1
    assert "is an inference worker up" in result.stderr


def test_waiting_for_an_image_says_once_that_no_inference_is_up(client: Client, folder: Path) -> None:
    (folder / "face.png").write_bytes(PNG)
    result = run("predict", "face.png", "--timeout", "4.5")
    assert result.stderr.count("no inference is up; start one with `genderline up`") == 1
    with beating(client, "inference"):
        assert "no inference is up" not in run("predict", "face.png", "--timeout", "4.5").stderr


def test_predict_says_how_long_it_waits() -> None:
    assert "by default 60 for images, and without limit for a job" in " ".join(run("predict", "--help").stdout.split())


def test_a_folder_without_images_is_wrong_usage(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert run("predict", folder / "empty").exit_code == 2


def test_jobs_lists_shows_follows_and_cancels_jobs(builder: StoreBuilder, client: Client, folder: Path) -> None:
    assert "no jobs yet" in run("jobs").stderr
    done = builder.job()
    client.jobs.create("job-2", message_id="2", name="waits", state=JobState.QUEUED)
    assert re.search(rf"^{done} +finished +41 +41 +1 +90\.0 %", run("jobs").stdout, flags=re.MULTILINE)
    assert {record["job_id"] for record in document("jobs")} == {done, "job-2"}
    assert run("jobs", done, "--follow", "--out", "results.csv").exit_code == 0
    assert (folder / "results.csv").read_bytes() == client.store.get(Jobs.results_key(done))
    assert document("jobs", done)["done"] == 41
    assert run("jobs", "job-2", "--cancel").exit_code == 0
    assert client.jobs.cancel_requested("job-2")
    assert run("jobs", done, "--cancel").exit_code == 1
    assert run("jobs", "job-3").exit_code == 1


# -- dead letters


@pytest.fixture
def dead_ids(client: Client) -> list[str]:
    """Two dead letters of the predictions queue."""
    topology = client.broker.topology
    client.broker.publish_many(
        [Outgoing(topology.predictions, Message(b"?", "text/plain", message_id=f"m{i}")) for i in range(2)]
    )
    with client.broker.consume([topology.predictions], prefetch=2) as consumer:
        for delivery in consumer.receive(2, timeout_s=5):
            consumer.dead_letter(delivery, "unsupported_content_type")
        consumer.flush()
    return [letter.dead_id for letter in client.broker.dead_letters()]


def test_dead_letters_are_listed_retried_and_dropped(client: Client, dead_ids: list[str]) -> None:
    assert re.search(rf"^{dead_ids[0]} +unsupported_content_type +predictions ", run("dead").stdout, flags=re.MULTILINE)
    assert [letter["message_id"] for letter in document("dead")] == ["m0", "m1"]
    assert len(document("dead", "list", "--limit", "1")) == 1
    assert run("dead", "retry", dead_ids[0]).stdout == "retried 1\n"
    assert client.broker.depths()[client.broker.topology.predictions].ready == 1
    assert document("dead", "drop", "--all") == {"dropped": 1}
    assert "no dead letters" in run("dead", "list").stderr


def test_an_unknown_dead_letter_is_exit_code_1(client: Client, dead_ids: list[str]) -> None:
    result = run("dead", "drop", dead_ids[0], "unknown")
    assert result.exit_code == 1
    assert result.stdout == "dropped 1\n"
    assert result.stderr == "error: no dead letter has the ID 'unknown'\n"
    assert document("dead", "retry", dead_ids[1], "x", "y", "x", exit_code=1) == {"retried": 1}
    assert run("dead", "retry", "x", "y").stderr == "error: no dead letter has the ID 'x' or 'y'\n"


# -- status


def test_status_tells_who_is_up_what_waits_and_what_serves(client: Client, builder: StoreBuilder) -> None:
    builder.model(builder.dataset(), "run-000000000001")
    client.promote(1, "the first")
    builder.run("run-000000000002", name="second")
    client.broker.publish(client.broker.topology.jobs, Message(b"{}", "application/json"))
    with beating(client, "inference", version=1, provider="cpu", device="cpu", images_per_second=512.5):
        shown = run("status").stdout
        found = document("status")
    assert re.search(r"^inference +\S+:\d+ +1 +cpu +512\.5", shown, flags=re.MULTILINE)
    assert re.search(r"^jobs +1 ", shown, flags=re.MULTILINE)
    assert "champion: version 1" in shown
    assert "run-000000000002 (second): queued" in shown
    assert found["champion"] == 1
    assert [worker["service"] for worker in found["services"]] == ["inference"]


def test_status_of_nothing_says_so() -> None:
    shown = run("status").stdout
    assert "no service is up" in shown
    assert "no model serves yet" in shown


# -- trying out, and reference


def test_sample_draws_a_dataset(folder: Path) -> None:
    found = document("sample", "new.zip", "--images", "3", "--faults")
    assert found["size_bytes"] == (folder / "new.zip").stat().st_size
    with zipfile.ZipFile(folder / "new.zip") as archive:
        assert len(archive.namelist()) == 7
    assert run("sample", "more.zip", "--images", "1").stdout.startswith("more.zip: 1 faces")


def test_settings_show_what_is_in_force_but_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_TOKEN", "very-secret-token")
    monkeypatch.setenv("GENDERLINE_BROKER_URL", "amqp://me:hunter2@rabbit:5672/%2F")
    monkeypatch.setenv("GENDERLINE_ALLOWED_ROOTS", "/a:/b")
    found = {row["variable"]: row for row in document("settings")}
    assert found["GENDERLINE_TOKEN"]["value"] == "***"
    assert found["GENDERLINE_BROKER_URL"]["value"] == "amqp://me:***@rabbit:5672/%2F"
    assert found["GENDERLINE_ALLOWED_ROOTS"]["value"] == "/a:/b"
    assert found["GENDERLINE_PORT"] | {"meaning": ""} == {
        "variable": "GENDERLINE_PORT",
        "value": "8080",
        "default": "8080",
        "meaning": "",
    }
    shown = run("settings").output + run("settings", "--markdown").output
    assert "very-secret-token" not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("command", ["settings", "params", "metrics", "errors"])
def test_reference_tables_come_for_people_programs_and_the_readme(command: str) -> None:
    rows = document(command)
    assert len(rows) > 5
    first = next(iter(rows[0].values()))
    assert first in run(command).stdout
    markdown = run(command, "--markdown").stdout.splitlines()
    assert markdown[2].startswith(f"| `{first}` |")
    assert len(markdown) == len(rows) + 2


# -- delete


def test_a_job_is_deleted_and_what_is_in_use_is_refused(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(30)
    client.promote(builder.model(sha256, "run-a"), "first")
    assert run("delete", "job", builder.job("job-a")).stdout == "deleted job job-a\n"
    assert document("delete", "job", builder.job("job-b")) == {"deleted": "job-b"}
    assert client.jobs.all().records == []
    for kind, which in (("dataset", sha256), ("run", "run-a")):
        refused = run("delete", kind, which)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "version 1, the champion model," in refused.stderr
    assert document("delete", "run", "run-b", exit_code=1)["error"]["code"] == "not_found"
    assert run("delete", "model", "1").exit_code == 2


# -- up


def test_up_says_which_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("GENDERLINE_PORT", str(port))
        result = run("up", "--only", "dashboard")
    assert result.exit_code == 2
    assert f"the dashboard's port {port} on 127.0.0.1 cannot be used" in result.stderr
    assert "set GENDERLINE_PORT to 0, which takes a free one" in result.stderr


def test_one_metrics_port_for_two_services_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_METRICS_PORT", "9999")
    result = run("up")
    assert result.exit_code == 2
    assert "a port is needed for each of trainer and inference; set it to 0, which takes free ones" in result.stderr


def test_the_metrics_port_0_that_the_messages_name_gives_each_service_a_free_one() -> None:
    ports = choose_ports(Settings(port=0, metrics_port=0), SERVICES)
    assert len(set(ports.values()) - {0}) == len(SERVICES)


def test_damaged_records_are_named_and_cost_the_lists_nothing_else(builder: StoreBuilder) -> None:
    builder.run("run-1", name="whole")
    builder.job("job-1", name="whole")
    for kind in ("run", "job"):
        key = f"{kind}s/{kind}-x/{kind}.json"
        builder.store.put(key, b"")
        listed = run(f"{kind}s")
        assert (listed.exit_code, "whole" in listed.stdout) == (0, True)
        assert re.search(rf"^{kind}-x +damaged", listed.stdout, flags=re.MULTILINE)
        assert f"{key} in the store is damaged" in listed.stderr
        assert {entry["state"] for entry in document(f"{kind}s")} >= {"damaged"}
        shown = run(f"{kind}s", f"{kind}-x")
        assert (shown.exit_code, f"{key} in the store is damaged" in shown.stderr) == (1, True)
    status = run("status")
    assert (status.exit_code, "run-1 (whole): queued" in status.stdout) == (0, True)
    assert status.stderr.count("in the store is damaged") == 2

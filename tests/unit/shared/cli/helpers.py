"""The command line on a real embedded broker and store; scripted services answer where one is needed."""

from __future__ import annotations

import contextlib
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from shared.broker.base import Delivery, Outgoing
from shared.cli import main
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
from shared.telemetry.heartbeat import Heartbeat
from shared.topology import job_state_topic, run_state_topic
from tests.support.builders.stores import StoreBuilder

REPOSITORY = Path(__file__).parents[4]
ZIP = b"PK\x05\x06" + bytes(18)
PNG = b"\x89PNG of an even length"
Handle = Callable[[Delivery], list[Outgoing]]


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
    thread = threading.Thread(target=Heartbeat(client.broker, service, lambda: state, client.store).run, args=[stop])
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
            run_id,
            message_id=request.message_id,
            name=request.name,
            params=request.params,
            edits=request.edits,
            train=request.train,
            state=RunState.ACCEPTED,
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
    return json_reply(delivery.message, {"model": model, "predictions": entries})


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

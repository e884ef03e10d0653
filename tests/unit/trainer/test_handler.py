"""What a trainer answers to a message whose run is another's, or damaged; with its real loop, broker and store."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from shared.broker.base import Message
from shared.broker.sqlite.broker import SqliteBroker
from shared.client import Client
from shared.messages import by_reference, request_digest, run_id_of
from shared.params import TrainingParams
from shared.records.runs import Runs, RunState
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from shared.store.lease import Leases
from shared.telemetry.metrics import TrainerMetrics
from shared.worker.loop import ConsumerLoop
from shared.worker.retry import RetryPolicy
from tests.support.builders.archives import labelled_faces, zipped
from trainer.handler import DatasetHandler
from trainer.pipeline import Pipeline

FIRST = by_reference("file:/first.zip", name="first", params=TrainingParams(epochs=3), message_id="mine")
RUN = run_id_of("mine")
DATASET = "d" * 64
CONTINUATION = f"store:datasets/{DATASET}/archive.zip"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def broker(tmp_path: Path, store: FileStore) -> Iterator[SqliteBroker]:
    """A broker whose datasets a trainer takes."""
    with SqliteBroker(tmp_path / "broker.db") as broker:
        settings, metrics = Settings(lease_s=15), TrainerMetrics(CollectorRegistry())
        pipeline = Pipeline(store, settings, metrics, torch.device("cpu"))
        handler = DatasetHandler(store, settings, metrics, pipeline, broker.emit, broker.topology)
        loop = ConsumerLoop(
            broker, {broker.topology.datasets: handler}, RetryPolicy(None, metrics.dead_letters), prefetch=1
        )
        stop = threading.Event()
        thread = threading.Thread(target=loop.run, args=(stop,))
        thread.start()
        yield broker
        stop.set()
        thread.join()


def answer(broker: SqliteBroker, message: Message) -> dict[str, Any]:
    """Sends a message and returns the first reply to it."""
    with broker.reply_queue() as inbox:
        broker.publish(broker.topology.datasets, replace(message, reply_to=inbox.name, correlation_id="second"))
        (reply,) = inbox.receive(20)
    assert reply.correlation_id == "second"
    body: dict[str, Any] = json.loads(reply.body)
    return body


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.ACCEPTED, RunState.TRAINING])
@pytest.mark.parametrize(
    "second",
    [
        Message(b"x", "text/plain", "mine"),
        Message(b"{", "application/json", "mine"),
        by_reference("file:/other.zip", name="other", message_id="mine"),
        by_reference(CONTINUATION, name="other", params=TrainingParams(epochs=1), message_id="mine", sha256=DATASET),
        by_reference(CONTINUATION, name="other", params=TrainingParams(epochs=3), message_id="mine", train=False),
    ],
    ids=["text", "broken JSON", "another archive", "other parameters", "not trained"],
)
def test_a_second_message_with_the_id_of_a_run_that_goes_on_gets_an_error_and_changes_nothing(
    store: FileStore, broker: SqliteBroker, state: RunState, second: Message
) -> None:
    runs = Runs(store)
    runs.create(
        RUN,
        message_id="mine",
        name="first",
        params=TrainingParams(epochs=3),
        state=state,
        request_sha256=request_digest(FIRST),
    )
    if state is not RunState.QUEUED:
        runs.update(RUN, dataset=DATASET)
    lease = Leases(store, 15).lease(f"runs/{RUN}")
    if state is RunState.TRAINING:
        assert lease.acquire()
    before = store.get(f"runs/{RUN}/run.json")

    body = answer(broker, second)

    assert (body["run_id"], body["status"]) == (RUN, "rejected")
    assert "error" in body
    assert store.get(f"runs/{RUN}/run.json") == before
    if state is RunState.TRAINING:
        lease.require()  # nobody took the run over
    else:
        assert lease.acquire()
    lease.release()


def test_a_dataset_whose_runs_record_is_empty_gets_a_reply(store: FileStore, broker: SqliteBroker) -> None:
    store.put(f"runs/{RUN}/run.json", b"")

    body = answer(broker, FIRST)

    assert (body["run_id"], body["status"], body["error"]["code"]) == (RUN, "failed", "damaged_record")
    assert "run.json" in body["error"]["message"]
    assert store.get(f"runs/{RUN}/run.json") == b""


def test_an_archive_that_comes_again_replaces_a_damaged_one_and_the_run_that_failed_of_it_can_be_retried(
    store: FileStore, broker: SqliteBroker, tmp_path: Path
) -> None:
    content = zipped(labelled_faces(24))
    sha256 = hashlib.sha256(content).hexdigest()
    key = f"datasets/{sha256}/archive.zip"
    store.put(key, content[:-1] + b"?")
    stored = by_reference(f"store:{key}", sha256=sha256, train=False, message_id="mine")

    failed = answer(broker, stored)

    assert (failed["status"], failed["error"]["code"]) == ("failed", "damaged_record")
    assert f"{key} in the store is damaged" in failed["error"]["message"]
    again = Message(content, "application/zip", "again", headers={"train": False})
    assert answer(broker, again)["status"] == "accepted"
    assert store.get(key) == content
    with broker.subscribe(["run.ingested"]) as events:
        assert Client(broker, store).retry_run(RUN) == RUN
        while not (Runs(store).get(RUN).state.is_final):
            events.receive(1)
    assert Runs(store).get(RUN).state is RunState.INGESTED


@pytest.mark.parametrize("state", [RunState.REGISTERED, RunState.INGESTED, RunState.REJECTED, RunState.CANCELLED])
def test_a_checkpoint_that_a_trainer_left_as_it_was_killed_ending_its_run_is_removed(
    store: FileStore, broker: SqliteBroker, state: RunState
) -> None:
    Runs(store).create(RUN, message_id="mine", name="first", params=None, state=state)
    store.put(f"runs/{RUN}/checkpoint.pt", b"x")
    store.put(f"runs/{RUN}/sources.pt", b"x")

    assert answer(broker, FIRST)["status"] == state

    assert not store.exists(f"runs/{RUN}/checkpoint.pt")
    assert not store.exists(f"runs/{RUN}/sources.pt")

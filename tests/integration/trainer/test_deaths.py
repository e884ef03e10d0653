"""Trainers that die again and again: a run that gets on in between is never given up, one that does not is, in the end.

The trainers are forked from a process that has torch already, which real ones take seconds to load.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from shared.client import Client
from shared.connect import open_broker_for
from shared.records.runs import Run, RunState
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from shared.telemetry.metrics import TrainerMetrics
from shared.worker.child import ForkServer
from shared.worker.loop import ConsumerLoop
from shared.worker.retry import RetryPolicy
from tests.support.services import eventually
from tests.support.training import SLOW
from trainer.handler import DatasetHandler
from trainer.pipeline import Pipeline

pytestmark = pytest.mark.slow

LIMIT = 2


def settings_of(folder: Path) -> Settings:
    return Settings(
        broker_url=f"sqlite:///{folder / 'broker.db'}",
        store_url=f"file:{folder / 'store'}",
        lease_s=0.5,
        delivery_limit=LIMIT,
        checkpoint_s=0.01,
    )


def serve(pipe: Connection) -> None:
    """Is a trainer; dies where it is told to: as it begins to ingest, or by a signal."""
    pipe.send(os.getpid())
    folder, dies_at = pipe.recv()
    settings = settings_of(folder)
    store = FileStore(folder / "store")
    metrics = TrainerMetrics(CollectorRegistry())
    torch.set_num_threads(1)
    pipeline = Pipeline(store, settings, metrics, torch.device("cpu"))
    run = Pipeline.run

    def run_or_die(*arguments: Any) -> Any:
        if dies_at == "ingest":
            os.kill(os.getpid(), signal.SIGKILL)
        return run(*arguments)

    # Of the class, and in this process alone: for each run the handler makes a pipeline of its own.
    Pipeline.run = run_or_die  # type: ignore[assignment, method-assign]
    with open_broker_for(settings) as broker:
        handler = DatasetHandler(store, settings, metrics, pipeline, broker.emit, broker.topology)
        queues = {broker.topology.continuations: handler, broker.topology.datasets: handler}
        ConsumerLoop(broker, queues, RetryPolicy(None, metrics.dead_letters), prefetch=0).run(threading.Event())


@pytest.fixture(scope="module")
def trainers() -> Iterator[ForkServer]:
    with ForkServer("tests.integration.trainer.test_deaths:serve") as server:
        yield server


@pytest.fixture
def start(trainers: ForkServer, tmp_path: Path) -> Callable[[str], int]:
    def start_trainer(dies_at: str) -> int:
        child = trainers.fork()
        pid = int(child.receive())
        child.send((tmp_path, dies_at))
        return pid

    return start_trainer


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with open_broker_for(settings_of(tmp_path)) as broker:
        yield Client(broker, FileStore(tmp_path / "store"))


def ended(client: Client, run_id: str) -> Run | None:
    run = client.runs.get(run_id)
    return run if run.state.is_final else None


def has_begun(client: Client, run_id: str, attempt: int) -> bool:
    run = client.runs.find(run_id)
    return run is not None and run.attempts == attempt


def test_five_deaths_of_trainers_each_further_on_do_not_end_a_run(
    client: Client, start: Callable[[str], int], sample_zip: Path
) -> None:
    run_id = client.submit_dataset(sample_zip, params={**SLOW, "network": "small"})
    checkpoint = f"runs/{run_id}/checkpoint.pt"
    seen: set[bytes] = set()

    def got_on() -> bool:
        found = client.store.get(checkpoint) if client.store.exists(checkpoint) else b""
        is_new = bool(found) and found not in seen and bool(seen)
        seen.add(found)
        return is_new

    for death in range(5):
        pid = start("never")
        eventually(got_on, 60, f"a new checkpoint after death {death}")
        os.kill(pid, signal.SIGKILL)
        assert not client.runs.get(run_id).state.is_final
    client.runs.request_cancel(run_id)
    pid = start("never")
    run = eventually(lambda: ended(client, run_id), 60, "the end of the run")
    os.kill(pid, signal.SIGKILL)
    assert run.state == RunState.CANCELLED, run.error


def test_a_run_of_which_each_trainer_dies_before_it_gets_on_is_given_up(
    client: Client, start: Callable[[str], int], sample_zip: Path
) -> None:
    run_id = client.submit_dataset(sample_zip, params=SLOW)
    for attempt in range(1, LIMIT + 1):
        start("ingest")
        begun = functools.partial(has_begun, client, run_id, attempt)
        eventually(begun, 60, f"attempt {attempt}")
    pid = start("never")
    run = eventually(lambda: ended(client, run_id), 60, "the end of the run")
    assert run.state == RunState.FAILED
    assert run.error is not None
    assert "given up after 2" in run.error.message
    (letter,) = eventually(client.broker.dead_letters, 10, "a dead letter")
    assert letter.reason == "delivery_limit"
    os.kill(pid, signal.SIGKILL)

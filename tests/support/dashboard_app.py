"""A dashboard on a real embedded broker and a real store, and a worker's side of its queues."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry

from dashboard import create_app
from dashboard.context import EXTENSION, Dashboard
from dashboard.http_server import serve
from shared.broker.base import Delivery
from shared.broker.sqlite.broker import SqliteBroker
from shared.messages import job_id_of, json_reply, parse_job, parse_prediction, prediction
from shared.records.jobs import RESULT_COLUMNS, Jobs, JobState
from shared.records.record import Fault
from shared.records.results import result_row
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from tests.support.builders.stores import StoreBuilder


@dataclass
class Site:
    """A dashboard under test."""

    app: Flask
    parts: Dashboard
    broker: SqliteBroker
    store: FileStore
    builder: StoreBuilder

    @property
    def web(self) -> FlaskClient:
        """A new browser without cookies."""
        return self.app.test_client()

    @contextlib.contextmanager
    def worker(self, answer: Callable[[Delivery], dict[str, Any]] | None = None) -> Iterator[list[Delivery]]:
        """Answers predictions while the context lasts: images of an even length are female. Gives what was taken."""
        taken: list[Delivery] = []
        stop = threading.Event()

        def work() -> None:
            with self.broker.consume([self.broker.topology.predictions], 100) as consumer:
                while not stop.is_set():
                    for delivery in consumer.receive(10, 0.05):
                        taken.append(delivery)
                        consumer.settle([delivery], json_reply(delivery.message, (answer or by_length)(delivery)))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield taken
        finally:
            stop.set()
            thread.join()

    @contextlib.contextmanager
    def job_worker(self, fault: Fault | None = None) -> Iterator[list[Delivery]]:
        """Does jobs while the context lasts: every image is female with 0.75, or the job fails. Gives what it took."""
        taken: list[Delivery] = []
        stop = threading.Event()
        jobs = Jobs(self.store)

        def work() -> None:
            with self.broker.consume([self.broker.topology.jobs], 1) as consumer:
                while not stop.is_set():
                    for delivery in consumer.receive(1, 0.05):
                        taken.append(delivery)
                        job_id = job_id_of(delivery.message.message_id)
                        jobs.create(job_id, message_id=delivery.message.message_id, name="job")
                        if fault is None:
                            self._finish_job(jobs, job_id, delivery)
                        else:
                            jobs.end(job_id, JobState.FAILED, error=fault)
                        consumer.settle([delivery], [])

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield taken
        finally:
            stop.set()
            thread.join()

    def _finish_job(self, jobs: Jobs, job_id: str, delivery: Delivery) -> None:
        uri = parse_job(delivery.message).uri
        assert uri is not None
        with zipfile.ZipFile(io.BytesIO(self.store.get(uri.removeprefix("store:")))) as archive:
            names = archive.namelist()
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([RESULT_COLUMNS, *(result_row(name, 0.75) for name in names)])
        self.store.put(Jobs.results_key(job_id), text.getvalue().encode())
        jobs.end(job_id, JobState.FINISHED, images=len(names), results=f"store:{Jobs.results_key(job_id)}")


def by_length(delivery: Delivery) -> dict[str, Any]:
    """Predicts an image by the parity of its length."""
    request = parse_prediction(delivery.message)
    return {
        "model": {"name": "gender", "version": request.model_version or 1},
        "predictions": [
            prediction(key, 0.1 if len(data) % 2 else 0.9)
            for key, data in zip(request.ids, request.images, strict=True)
        ],
    }


@contextlib.contextmanager
def open_site(folder: Path, *, started: bool = False, **settings: Any) -> Iterator[Site]:
    """Opens a dashboard on an empty store and broker; with `started`, it listens to events too."""
    store = FileStore(folder / "store")
    chosen = Settings(broker_url=f"sqlite:///{folder}/broker.db", store_url=f"file:{folder}/store", **settings)
    with SqliteBroker(folder / "broker.db", queue_limit=chosen.queue_limit) as broker:
        app = create_app(broker, store, chosen, CollectorRegistry())
        parts: Dashboard = app.extensions[EXTENSION]
        if started:
            parts.start()
        try:
            yield Site(app, parts, broker, store, StoreBuilder(store))
        finally:
            parts.close()


@contextlib.contextmanager
def served(site: Site, port: int = 0) -> Iterator[str]:
    """Serves the site as the dashboard's process does, at a free port by default; gives its address."""
    server = serve(
        site.app,
        site.parts.settings,
        host="127.0.0.1",
        port=port,
        threads=32,
        max_body_bytes=2**30,
        staging=site.store.staging_folder(),
    )
    with running(server):
        try:
            yield f"http://127.0.0.1:{server.effective_port}"
        finally:
            site.parts.event_hub.end_streams()


@contextlib.contextmanager
def running(server: Any) -> Iterator[None]:
    """Runs a server of `serve` in a thread; in the end it closes every connection."""

    def close() -> None:
        for channel in list(server.active_channels.values()):
            channel.handle_close()
        server.close()  # with nothing left open, `run` returns

    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.task_dispatcher.shutdown()
        with (
            server.trigger.lock
        ):  # the thread that serves may be awake, and would close the trigger before it is pulled
            server.trigger.thunks.append(close)
            server.trigger.pull_trigger()
        thread.join()


def error_of(body: bytes) -> tuple[str, str]:
    """Returns (code, message) of an answer in the API's error form."""
    error = json.loads(body)["error"]
    return error["code"], error["message"]

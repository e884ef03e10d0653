"""The store is taken away under running services, and something else lies in its place for a while."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from shared.broker.base import Message, Outgoing
from shared.client import Client
from shared.messages import ZIP, job_id_of, run_id_of
from shared.records.jobs import JobState
from shared.store.files import FileStore
from tests.integration.inference.test_jobs import zip_of
from tests.integration.inference.test_service import workers
from tests.integration.trainer.test_service import FAST
from tests.support.builders.models import ModelBuilder, constant_model, image_of
from tests.support.inference_loops import replies
from tests.support.services import Installation, Service, eventually

pytestmark = pytest.mark.slow

OURS, THEIRS = 0.9, 0.1


def troubled(service: Service) -> bool:
    """Returns whether metrics and `/readyz` both say that another store is in place."""
    _, metrics = service.get("/metrics")
    _, readiness = service.get("/readyz")
    return bool(re.search(r'^genderline_store_trouble\{kind="replaced"\} 1', metrics, re.MULTILINE)) and (
        "in the place of the store" in readiness
    )


def predictions(client: Client, count: int) -> list[dict[str, Any]]:
    queue, image = client.broker.topology.predictions, image_of(128)
    with client.broker.reply_queue() as inbox:
        messages = [Message(image, "image/png", reply_to=inbox.name) for _ in range(count)]
        client.broker.publish_many([Outgoing(queue, message) for message in messages])
        return list(replies(inbox, count).values())


def test_services_wait_for_their_store_and_take_nothing_else_for_it(
    either_installation: Installation, sample_zip: Path
) -> None:
    installation = either_installation
    another = installation.broker_url.startswith("amqp:")  # on the embedded broker, nothing is in its place
    place, away = installation.folder / "store", installation.folder / "away"
    with installation.client() as client:
        ModelBuilder(client.store).register(constant_model(OURS))  # type: ignore[arg-type]
        inference = installation.start("inference", wait=False, GENDERLINE_WORKERS="1")
        dashboard = installation.start("dashboard", wait=False)
        trainer = installation.start("trainer", wait=False)
        for service in (inference, dashboard, trainer):
            eventually(service.ready, 90, f"{service.name} is ready")
        eventually(lambda: predictions(client, 1), 20, "a champion that serves")

        place.rename(away)
        if another:  # the same number, another model
            ModelBuilder(FileStore(place)).register(constant_model(THEIRS))
        for service in (inference, dashboard, trainer):
            eventually(lambda service=service: troubled(service), 15, f"{service.name} says so")  # type: ignore[misc]
        assert dashboard.get("/api/v1/models")[0] == 503
        assert trainer.get("/readyz")[0] == 503

        topology = client.broker.topology
        params = json.dumps({**FAST, "promote": False})
        client.broker.publish_many(
            [
                Outgoing(topology.jobs, Message(zip_of([("0.png", image_of(128))]), ZIP, "job")),
                Outgoing(
                    topology.datasets,
                    Message(sample_zip.read_bytes(), ZIP, "dataset", headers={"params": params}),
                ),
            ]
        )
        (worker,) = workers(inference)
        os.kill(worker, signal.SIGKILL)  # the next one has nothing in memory
        with pytest.raises(AssertionError):  # nobody answers with what lies there
            eventually(lambda: predictions(client, 1) if inference.ready() else None, 4, "an answer")
        before = {path for path in place.rglob("*") if path.is_file()} if place.exists() else set()
        assert all("jobs" not in path.parts and "runs" not in path.parts for path in before)
        assert place.exists() == another

        shutil.rmtree(place, ignore_errors=True)
        away.rename(place)
        eventually(inference.ready, 40, "inference is ready again")
        answers = predictions(client, 20)
        assert {answer["model"]["version"] for answer in answers} == {1}
        assert {round(answer["predictions"][0]["probability_female"], 3) for answer in answers} == {OURS}

        def job_ended() -> bool:
            job = client.jobs.find(job_id_of("job"))
            return job is not None and job.state is JobState.FINISHED

        eventually(job_ended, 60, "the job ends")
        assert f",{OURS}," in client.store.get(f"jobs/{job_id_of('job')}/results.csv").decode()

        def decoded() -> bool:
            run = client.runs.find(run_id_of("dataset"))
            return run is not None and client.store.exists(f"datasets/{run.dataset}/summary.json")

        eventually(decoded, 90, "the dataset is decoded")
        assert client.runs.get(run_id_of("dataset")).error is None
        assert client.registry.versions()[0] == 1
        for service in (dashboard, trainer):  # the worker that had said so was killed
            assert "is back" in service.log.read_text()

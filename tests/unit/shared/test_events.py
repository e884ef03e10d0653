from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.broker.base import Event
from shared.events import (
    EVENT_TYPES,
    JobChanged,
    JobProgressed,
    ModelChallenged,
    ModelPromoted,
    RunChanged,
    RunProgressed,
    WorkerHeartbeat,
    parse_event,
)
from shared.params import TrainingParams
from shared.records.jobs import JobProgress, Jobs, JobState
from shared.records.record import Fault
from shared.records.runs import Progress, Runs, RunState
from shared.store.files import FileStore


def test_every_event_carries_its_topic_and_the_schema_and_comes_back_as_its_type(tmp_path: Path) -> None:
    runs, jobs = Runs(FileStore(tmp_path)), Jobs(FileStore(tmp_path))
    runs.create("run-1", message_id="1", name="faces", params=TrainingParams())
    jobs.create("job-1", message_id="1", name="faces")
    for event in (
        RunChanged.of(runs.update("run-1", state=RunState.FAILED, error=Fault(code="internal", message="x"))),
        RunProgressed(run_id="run-1", progress=Progress(stage=RunState.TRAINING, done=1, total=2)),
        ModelPromoted(version=1, reason="a test"),
        ModelChallenged(version=None, reason="a test"),
        JobChanged.of(jobs.update("job-1", state=JobState.FINISHED, counts={"images": 2, "errors": 0})),
        JobProgressed(job_id="job-1", progress=JobProgress(done=1, total=2)),
        WorkerHeartbeat(service="trainer", worker="here:1"),
    ):
        topic, payload = event.wire()
        assert payload["schema"] == 1
        assert isinstance(event, EVENT_TYPES[topic])
        assert parse_event(Event(topic, payload)) == event


BEAT = {"schema": 1, "service": "inference", "worker": "here:1"}


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {**BEAT, "images_per_second": "x"},
        {**BEAT, "recent_predictions": True},
        {**BEAT, "recent_predictions": [{}]},
        {**BEAT, "worker": ["here"]},
        {**BEAT, "worker": "w" * 5000},
        {**BEAT, "latency_p99_ms": float("nan")},
        {**BEAT, "drift": [1]},
        {**BEAT, "challenger": "y"},
        {**BEAT, "schema": 2},
    ],
)
def test_a_heartbeat_that_does_not_validate_is_one_log_line(
    payload: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert parse_event(Event("worker.heartbeat", payload)) is None
    assert len(caplog.records) == 1
    assert len(caplog.text) < 500


def test_an_event_of_another_topic_is_none_of_ours() -> None:
    assert parse_event(Event("weather.rain", {"schema": 1})) is None

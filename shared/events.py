"""Every event of the topic exchange as a type, with its topic and `"schema": 1` inside.

Anybody who reaches the broker may publish events: whoever listens parses them into these types first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, ValidationError

from shared.broker.base import Event
from shared.records.jobs import Counts, Job, JobProgress, JobState
from shared.records.record import Fault, ModelRef, StoredModel, Timestamp, describe_fault
from shared.records.runs import EpochRow, Progress, Run, RunState
from shared.topology import (
    JOB_PROGRESS,
    MODEL_CHALLENGED,
    MODEL_PROMOTED,
    MODEL_REGISTERED,
    RUN_EPOCH,
    RUN_PROGRESS,
    WORKER_HEARTBEAT,
    job_state_topic,
    run_state_topic,
)

_LOG = logging.getLogger(__name__)
Name = Annotated[str, Field(min_length=1, max_length=200)]
Emit = Callable[[str, Mapping[str, Any]], None]
"""Tells an event's topic and payload, of `EventModel.wire`, to everybody who is subscribed."""


class EventModel(StoredModel):
    """An event's payload."""

    static_topic: ClassVar[str] = ""
    schema_version: Literal[1] = Field(1, alias="schema")

    @property
    def topic(self) -> str:
        """The routing key."""
        return self.static_topic

    def wire(self) -> tuple[str, dict[str, Any]]:
        """Returns what a broker is given to emit: the topic and the payload."""
        return self.topic, self.as_dict()


class RunChanged(EventModel):
    """`run.<state>`: a run has entered a state; the body is that of a reply."""

    model_config = ConfigDict(extra="allow")

    run_id: Name
    status: RunState
    name: str
    model: ModelRef | None = None
    metrics: dict[str, float] | None = None
    error: Fault | None = None

    @property
    def topic(self) -> str:
        """The routing key."""
        return run_state_topic(self.status)

    @classmethod
    def of(cls, run: Run) -> RunChanged:
        """Returns the event that tells of the state that a run is in."""
        return cls.model_validate(run.reply())

    def wire(self) -> tuple[str, dict[str, Any]]:
        """Returns the topic and the payload, which has what the reply has."""
        return self.topic, self.model_dump(mode="json", exclude_unset=True) | {"schema": 1}


class RunProgressed(EventModel):
    """`run.progress`: how far a run's present stage is."""

    static_topic: ClassVar[str] = RUN_PROGRESS
    run_id: Name
    progress: Progress


class EpochFinished(EventModel):
    """`run.epoch`: a finished epoch, a row of `history.csv`."""

    static_topic: ClassVar[str] = RUN_EPOCH
    run_id: Name
    row: EpochRow


class ModelRegistered(EventModel):
    """`model.registered`: a version is in the registry."""

    static_topic: ClassVar[str] = MODEL_REGISTERED
    version: int
    run_id: Name
    metrics: dict[str, float]


class ModelPromoted(EventModel):
    """`model.promoted`: a version is the champion now."""

    static_topic: ClassVar[str] = MODEL_PROMOTED
    version: int
    reason: str


class ModelChallenged(EventModel):
    """`model.challenged`: a version is the challenger now; None where there is none any more."""

    static_topic: ClassVar[str] = MODEL_CHALLENGED
    version: int | None
    reason: str


class JobChanged(EventModel):
    """`job.<state>`: a job has entered a state; the body is that of a reply."""

    model_config = ConfigDict(extra="allow")

    job_id: Name
    status: JobState
    name: str
    results: str | None = None
    counts: Counts | None = None
    accuracy: float | None = None
    model: ModelRef | None = None
    error: Fault | None = None

    @property
    def topic(self) -> str:
        """The routing key."""
        return job_state_topic(self.status)

    @classmethod
    def of(cls, job: Job) -> JobChanged:
        """Returns the event that tells of the state that a job is in."""
        return cls.model_validate(job.reply())

    def wire(self) -> tuple[str, dict[str, Any]]:
        """Returns the topic and the payload, which has what the reply has."""
        return self.topic, self.model_dump(mode="json", exclude_unset=True) | {"schema": 1}


class JobProgressed(EventModel):
    """`job.progress`: how far a job is."""

    static_topic: ClassVar[str] = JOB_PROGRESS
    job_id: Name
    progress: JobProgress


class RecentPrediction(StoredModel):
    """An answer that a worker has given a moment ago."""

    at: Timestamp
    version: int
    images: int
    gender: Literal["male", "female"]
    probability_female: float
    confidence: float


class Drift(StoredModel):
    """How far the images are from those that the champion was trained on."""

    images: int = 0
    scores: dict[str, float] = Field(default_factory=dict)


class Refused(StoredModel):
    """A version that a worker should serve and does not."""

    version: int
    message: str


class ChallengerState(StoredModel):
    """What a worker says of the challenger."""

    model_config = ConfigDict(extra="allow")

    problem: str | None = None


class WorkerHeartbeat(EventModel):
    """`worker.heartbeat`: a process lives. What it tells beside this differs from service to service."""

    model_config = ConfigDict(extra="allow")

    static_topic: ClassVar[str] = WORKER_HEARTBEAT
    service: Name
    worker: Name
    version: int | None = None
    provider: str | None = None
    device: str | None = None
    busy: str | None = None
    broker_trouble: str | None = None
    images_per_second: float | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    drift: Drift | None = None
    challenger: ChallengerState | None = None
    refused: Refused | None = None
    store: str | None = None
    store_trouble: str | None = None
    recent_predictions: Annotated[list[RecentPrediction], Field(max_length=100)] | None = None


_STATIC: Final[dict[str, type[EventModel]]] = {
    kind.static_topic: kind
    for kind in (
        RunProgressed,
        EpochFinished,
        ModelRegistered,
        ModelPromoted,
        ModelChallenged,
        JobProgressed,
        WorkerHeartbeat,
    )
}
EVENT_TYPES: Final[dict[str, type[EventModel]]] = {
    **{run_state_topic(state): RunChanged for state in RunState},
    **{job_state_topic(state): JobChanged for state in JobState},
    **_STATIC,
}
"""The type of every topic that there is."""


def parse_event(event: Event) -> EventModel | None:
    """Returns an event as its type; None, after one log line, where it is none of ours."""
    kind = EVENT_TYPES.get(event.topic)
    if kind is None:
        return None
    try:
        return kind.model_validate(event.payload)
    except ValidationError as error:
        _LOG.warning("an event of topic %s is not taken: %s", event.topic, describe_fault(error))
        return None

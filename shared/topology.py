"""The names of queues, exchanges and events: the part of the contract that foreign clients see first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Topology:
    """The queues' names under one prefix, so that several installations can share a broker.

    Args:
        prefix: `genderline` unless `GENDERLINE_QUEUE_PREFIX` says otherwise.
    """

    prefix: str = "genderline"

    @property
    def datasets(self) -> str:
        """A dataset to train on."""
        return f"{self.prefix}.datasets"

    @property
    def predictions(self) -> str:
        """Images to predict now."""
        return f"{self.prefix}.predictions"

    @property
    def jobs(self) -> str:
        """A batch prediction job: an archive of images."""
        return f"{self.prefix}.jobs"

    @property
    def shards(self) -> str:
        """Internal: one slice of a job."""
        return f"{self.prefix}.shards"

    @property
    def continuations(self) -> str:
        """Internal: a long training run, to be carried on from its checkpoint before any new dataset."""
        return f"{self.prefix}.continuations"

    @property
    def dead(self) -> str:
        """What could not be processed."""
        return f"{self.prefix}.dead"

    @property
    def events(self) -> str:
        """The topic exchange."""
        return f"{self.prefix}.events"

    @property
    def requests(self) -> str:
        """The exchange that clients publish to: a client with no other right can send work, and nothing else."""
        return f"{self.prefix}.requests"

    @property
    def request_queues(self) -> tuple[str, ...]:
        """The queues that clients send work to; each is bound to `requests` by its own name."""
        return (self.datasets, self.predictions, self.jobs)

    @property
    def reply_queue_prefix(self) -> str:
        """How the name of every reply queue of our clients begins."""
        return f"{self.prefix}.inbox."

    @property
    def batch_reply_queue_prefix(self) -> str:
        """What the names of our own clients' reply queues begin with; replies come there in batches."""
        return f"{self.reply_queue_prefix}batches."

    @property
    def dead_lock(self) -> str:
        """On RabbitMQ, the queue that belongs to who goes through the dead letters, for as long as that takes.

        Named as a reply queue, so that whoever may read the dead letters may declare it.
        """
        return f"{self.reply_queue_prefix}dead-lock"

    @property
    def work_queues(self) -> tuple[str, ...]:
        """The queues that hold work, without the dead letters."""
        return (self.datasets, self.predictions, self.jobs, self.shards, self.continuations)

    @property
    def queues(self) -> tuple[str, ...]:
        """Every durable queue."""
        return (*self.work_queues, self.dead)

    def short(self, queue: str) -> str:
        """Returns the queue's name without the prefix, as metrics and pages show it."""
        return queue.removeprefix(f"{self.prefix}.")


RUN_PROGRESS: Final = "run.progress"
RUN_EPOCH: Final = "run.epoch"
MODEL_REGISTERED: Final = "model.registered"
MODEL_PROMOTED: Final = "model.promoted"
MODEL_CHALLENGED: Final = "model.challenged"
JOB_PROGRESS: Final = "job.progress"
WORKER_HEARTBEAT: Final = "worker.heartbeat"


def run_state_topic(state: str) -> str:
    """Returns the routing key that announces a run's new state."""
    return f"run.{state}"


def job_state_topic(state: str) -> str:
    """Returns the routing key that announces a job's new state."""
    return f"job.{state}"

"""A batch job's record and results in the store, `jobs/<job_id>/`: written by the workers, read by everybody."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from shared.clock import now_iso
from shared.records.record import Fault, Record, Records, State, StoredModel, Timestamp
from shared.store.base import STORE_SCHEME, Store

_LEAST_SHARD: Final = 64
_SHARE_OF_THE_REST: Final = 4

RESULT_COLUMNS: Final = (
    "name",
    "gender",
    "probability_female",
    "confidence",
    "true_gender",
    "correct",
    "error",
)


def shard_bounds(images: int, size: int) -> list[int]:
    """Cuts a job into shards, of `size` images but for the last few, which are ever smaller.

    So all workers end at about the same time, and none waits for another's large last shard.

    Args:
        images: in the job, 0 or more.
        size: the most in a shard.

    Returns:
        Where each shard starts, and last of all where the last one ends.
    """
    bounds = [0]
    least = min(size, _LEAST_SHARD)
    while (left := images - bounds[-1]) > 0:
        bounds.append(bounds[-1] + min(left, size, max(least, left // _SHARE_OF_THE_REST)))
    return bounds


class JobState(State):
    """Where a job stands."""

    QUEUED = "queued"
    ACCEPTED = "accepted"
    FINISHED = "finished"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self not in {JobState.QUEUED, JobState.ACCEPTED}

    @property
    def is_retryable(self) -> bool:
        """Whether the job has ended in such a way that its message, or a shard, may be a dead letter."""
        return self in {JobState.REJECTED, JobState.FAILED}


class Counts(StoredModel):
    """What a finished job's results hold.

    Attributes:
        images: rows of the results.
        errors: rows without a prediction.
    """

    images: int
    errors: int


class JobProgress(StoredModel):
    """How far a job is.

    Attributes:
        done: images with a row, out of `total`.
        rate: images a second since the job was accepted; None where nobody measured it.
        eta_s: seconds left.
    """

    done: int
    total: int
    rate: float | None = None
    eta_s: float | None = None


class Job(Record):
    """`job.json`.

    Attributes:
        job_id: the job.
        state: where it stands.
        reply_to: where the final reply goes.
        correlation_id: what the final reply carries.
        accepted: when it was accepted, ISO 8601 in UTC; this and what follows is None until then.
        archive: store key of the archive.
        images: how many it holds.
        shards: how many slices it is cut into.
        shard_images: the most images in a slice.
        counts: what the results hold; this and what follows is None until it is finished.
        accuracy: over the images with a label and a prediction; None where there are none.
        results: `store:` address of the results.
        shards_published: whether the broker has confirmed all shards.
        final_reply_sent: whether the broker has confirmed the final reply.
    """

    job_id: str
    state: JobState
    reply_to: str | None = None
    correlation_id: str | None = None
    accepted: Timestamp | None = None
    archive: str | None = None
    images: int | None = None
    shards: int | None = None
    shard_images: int | None = None
    counts: Counts | None = None
    accuracy: float | None = None
    results: str | None = None
    shards_published: bool = False
    final_reply_sent: bool = False

    @property
    def record_id(self) -> str:  # noqa: D102
        return self.job_id

    def reply(self, status: str | None = None) -> dict[str, Any]:
        """Returns the body of the reply and event that tell of the job's state."""
        body: dict[str, Any] = {"job_id": self.job_id, "status": status or self.state.value, "name": self.name}
        if self.state is JobState.FINISHED:
            body |= {
                "results": f"{STORE_SCHEME}{Jobs.results_key(self.job_id)}",
                "counts": self.counts and self.counts.as_dict(),
                "accuracy": self.accuracy,
                "model": self.model and self.model.as_dict(),
            }
        if self.error:
            body["error"] = self.error.as_dict()
        return body

    @property
    def bounds(self) -> list[int]:
        """Where each shard starts, and last of all where the last one ends; `[0]` before the job is accepted."""
        return shard_bounds(self.images or 0, self.shard_images or 1)


class Jobs(Records[Job]):
    """All jobs in a store.

    Args:
        store: where they lie.
    """

    noun: ClassVar[str] = "job"

    def __init__(self, store: Store) -> None:
        super().__init__(store, Job)

    def create(
        self,
        job_id: str,
        *,
        message_id: str,
        name: str,
        state: JobState = JobState.QUEUED,
        error: Fault | None = None,
        request_sha256: str | None = None,
    ) -> bool:
        """Writes a new job's record. Returns False, changing nothing, where the job is known already."""
        now = now_iso()
        job = Job(
            job_id=job_id,
            message_id=message_id,
            name=name,
            state=state,
            created=now,
            updated=now,
            error=error,
            request_sha256=request_sha256,
        )
        return self._create(job_id, job)

    def accept(self, job_id: str, **fields: Any) -> Job:
        """Makes a job accepted, in one atomic step, and returns its record.

        Of several callers the first one's fields hold, so that all of the job is one thing. What has ended stays so.
        """

        def change(job: Job) -> Job | None:
            if job.state.is_final or job.accepted is not None:
                return None
            now = now_iso()
            return job.changed(**fields, state=JobState.ACCEPTED, accepted=now, updated=now)

        return self._change(job_id, change)

    def mark_confirmed(self, job_id: str, *, shards_published: bool = False, final_reply_sent: bool = False) -> None:
        """Notes what the broker has confirmed.

        The next worker that comes to a job without such a note publishes once more: harmless, and nothing is lost. The
        job itself does not change, nor does the time of its last change; so this is right for an ended job, too.
        """

        def change(job: Job) -> Job:
            return job.changed(
                shards_published=job.shards_published or shards_published,
                final_reply_sent=job.final_reply_sent or final_reply_sent,
            )

        self._change(job_id, change)

    def end(self, job_id: str, state: JobState, **changes: Any) -> Job | None:
        """Ends a job, in one atomic step, and returns its record; None where it had ended before."""
        ended_here = False

        def change(job: Job) -> Job | None:
            nonlocal ended_here
            ended_here = not job.state.is_final
            return job.changed(**changes, state=state, updated=now_iso()) if ended_here else None

        job = self._change(job_id, change)
        return job if ended_here else None

    def _reopened(self, record: Job) -> Job:
        # Where it had been accepted it is so again, with the same model and shards: rows that are there still hold.
        state = JobState.QUEUED if record.accepted is None else JobState.ACCEPTED
        return record.changed(state=state, error=None, shards_published=False, final_reply_sent=False)

    @staticmethod
    def archive_key(job_id: str) -> str:
        """Returns the store key of the job's archive."""
        return f"jobs/{job_id}/archive.zip"

    @staticmethod
    def part_key(job_id: str, shard: int) -> str:
        """Returns the store key of one shard's rows."""
        return f"jobs/{job_id}/parts/{shard:06d}.csv"

    @staticmethod
    def results_key(job_id: str) -> str:
        """Returns the store key of the assembled results."""
        return f"jobs/{job_id}/results.csv"

    def parts(self, job_id: str) -> list[int]:
        """Returns the shards whose rows are written, in order."""
        return [int(name.removesuffix(".csv")) for name in self._store.children(f"jobs/{job_id}/parts")]

    def progress(self, job: Job) -> JobProgress:
        """Returns how far a job is, by the shards whose rows are written; 0 of 0 before the job was accepted."""
        total = job.images or 0
        if job.state is JobState.FINISHED:
            return JobProgress(done=total, total=total)
        bounds = job.bounds
        return JobProgress(done=sum(bounds[i + 1] - bounds[i] for i in self.parts(job.job_id)), total=total)

"""How a batch job ends, and who says so.

A shard that finds the rows of all shards there, or that the job cannot or shall not go on, tries to create the object
`finisher` with its number. The one shard that succeeds owns the job's end: it ends the job, and says so again if it is
delivered again. So there is at least one final reply, and without a crash exactly one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from shared.broker.base import RETRIED_AT, Message, Outgoing
from shared.errors import NotFound, Retryable
from shared.events import Emit, JobChanged
from shared.messages import json_message, json_reply
from shared.records.jobs import Job, Jobs, JobState
from shared.records.results import assemble
from shared.runtime.tempdir import temp_folder
from shared.store.base import STORE_SCHEME, Store
from shared.store.lease import Leases

_LOG = logging.getLogger(__name__)


class JobFinisher:
    """Ends jobs, opens them again, and tells everyone.

    Args:
        store: where results go, and records lie.
        emit: tells events.
        lease_s: seconds after which another worker takes over from one that died while it made the results.
    """

    def __init__(self, store: Store, emit: Emit, lease_s: float) -> None:
        self._store = store
        self._leases = Leases(store, lease_s)
        self._emit = emit
        self._jobs = Jobs(store)

    def claim(self, job_id: str, shard: int) -> bool:
        """Returns whether this shard owns the job's end: the first that asks does, and does again if it comes again."""
        return self._store.create(_finisher_key(job_id), json.dumps(shard).encode()) or self.owner(job_id) == shard

    def owner(self, job_id: str) -> int | None:
        """Returns the shard that owns the job's end; None while none has claimed it."""
        try:
            return int(self._store.get(_finisher_key(job_id)))
        except NotFound:
            return None

    def finish(self, job_id: str) -> list[Outgoing]:
        """Makes the results of all parts, and ends the job. Returns the final reply.

        A worker that was stopped in the midst of this, while its shard came to another one, changes nothing any more.

        Raises:
            Retryable: another worker is about it, or has just done it.
        """
        lease = self._leases.lease(f"jobs/{job_id}")
        if not lease.acquire():
            raise Retryable(f"another worker makes the results of {job_id}")
        with lease.kept(), temp_folder() as folder:
            results = folder / "results.csv"
            counts, accuracy = assemble(results, self._read_parts(job_id))
            job = self._jobs.get(job_id)
            if job.state.is_final or counts["images"] != job.images:  # the parts go when a job ends
                raise Retryable(f"{job_id} is {job.state}: found {counts['images']} rows, expected {job.images}")
            lease.store.put_file(Jobs.results_key(job_id), results)
            return self.end(
                job_id,
                JobState.FINISHED,
                counts=counts,
                accuracy=accuracy,
                results=f"{STORE_SCHEME}{Jobs.results_key(job_id)}",
            )

    def _read_parts(self, job_id: str) -> Iterator[str]:
        for shard in self._jobs.parts(job_id):
            yield self._store.get(Jobs.part_key(job_id, shard)).decode()

    def reopen(self, message: Message, job: Job) -> Job:
        """Opens a job again where `message` is a dead letter of it that somebody sent back. Returns its record."""
        retried_at = message.headers.get(RETRIED_AT)
        if retried_at is None or not job.is_opened_by(retried_at):
            return job
        # First of all: an open job whose end is owned by a shard of the past could never end.
        self._store.delete(_finisher_key(job.job_id))
        job = self._jobs.reopen(job.job_id, retried_at)
        _LOG.info("%s opened again: it was sent back from the dead letters", job.job_id)
        self.announce(job)
        return job

    def end(self, job_id: str, state: JobState, asked: Message | None = None, **changes: Any) -> list[Outgoing]:
        """Ends a job. Returns the final reply: to the message that asked, or to whom the job's record names."""
        job = self._jobs.end(job_id, state, **changes)
        if job is None:  # it had ended already
            return json_reply(asked, self._jobs.get(job_id).reply()) if asked else []
        _LOG.info("%s %s%s", job_id, state, f": {job.error.message}" if job.error else "")
        return self.publish_result(job, asked)

    def publish_result(self, job: Job, asked: Message | None = None) -> list[Outgoing]:
        """Announces a job's end and deletes what nobody needs any more. Returns the final reply."""
        self._store.delete(f"jobs/{job.job_id}/parts")
        self.announce(job)
        if asked:
            return json_reply(asked, job.reply())
        if not job.reply_to:
            return []
        return [Outgoing(job.reply_to, json_message(job.reply(), correlation_id=job.correlation_id or job.message_id))]

    def announce(self, job: Job) -> None:
        """Tells all who listen of the state that a job is in."""
        self._emit(*JobChanged.of(job).wire())


def _finisher_key(job_id: str) -> str:
    return f"jobs/{job_id}/finisher"

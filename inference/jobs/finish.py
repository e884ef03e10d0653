"""How a batch job ends, and who says so.

Whoever finds the rows of all shards there, or finds that the job cannot or shall not go on, tries to create the object
`finisher` with its shard's number; the one shard that succeeds ends the job, and says so again if it is delivered
again: so there is at least one final reply, and without a crash exactly one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from shared.broker.base import RETRIED_AT, Broker, Consumer, Delivery, Outgoing
from shared.errors import NotFound
from shared.messages import json_message, json_reply
from shared.records.jobs import Job, Jobs, JobState
from shared.records.results import assemble
from shared.runtime.tempdir import temp_folder
from shared.store.base import STORE_SCHEME, Store
from shared.topology import job_state_topic

_LOG = logging.getLogger(__name__)


class JobEnds:
    """Ends jobs, opens them again, and tells everyone.

    Args:
        broker: where events go.
        store: where results go, and records lie.
    """

    def __init__(self, broker: Broker, store: Store) -> None:
        self._broker = broker
        self._store = store
        self._jobs = Jobs(store)

    def may_end(self, job_id: str, shard: int) -> bool:
        """Returns whether this shard is the one to end the job: the first that asked, and again if it comes again."""
        return self._store.create(_finisher_key(job_id), json.dumps(shard).encode()) or self.finisher(job_id) == shard

    def finisher(self, job_id: str) -> int | None:
        """Returns which shard is the one to end the job; None while none has asked."""
        try:
            return int(self._store.get(_finisher_key(job_id)))
        except NotFound:
            return None

    def finish(self, job_id: str) -> list[Outgoing]:
        """Assembles the results. Returns the final reply."""
        with temp_folder() as folder:
            results = folder / "results.csv"
            counts, accuracy = assemble(results, self._part_texts(job_id))
            self._store.put_file(Jobs.results_key(job_id), results)
        return self.end(
            job_id,
            JobState.FINISHED,
            counts=counts,
            accuracy=accuracy,
            results=f"{STORE_SCHEME}{Jobs.results_key(job_id)}",
        )

    def _part_texts(self, job_id: str) -> Iterator[str]:
        for shard in self._jobs.parts(job_id):
            yield self._store.get(Jobs.part_key(job_id, shard)).decode()

    def reopened(self, delivery: Delivery, record: Job) -> Job:
        """Returns a job's record, opened again where `delivery` is a dead letter of it that somebody sent back."""
        job_id = record.job_id
        retried_at = delivery.message.headers.get(RETRIED_AT)
        if retried_at is None or not record.state.is_retryable or record.retried_at == retried_at:
            return record
        # First of all: an open job whose finisher is of the past could never end.
        self._store.delete(_finisher_key(job_id))
        record = self._jobs.reopen(job_id, retried_at)
        _LOG.info("%s opened again: it was sent back from the dead letters", job_id)
        self.announce(record)
        return record

    def end(self, job_id: str, state: JobState, delivery: Delivery | None = None, **changes: Any) -> list[Outgoing]:
        """Ends a job. Returns the final reply: to `delivery`, or to whom the job's record names."""
        record = self._jobs.end(job_id, state, **changes)
        if record is None:  # it had ended already
            return json_reply(delivery.message, self._jobs.get(job_id).reply()) if delivery else []
        _LOG.info("%s %s%s", job_id, state, f": {record.error.message}" if record.error else "")
        return self.tell(record, delivery)

    def tell(self, record: Job, delivery: Delivery | None = None) -> list[Outgoing]:
        """Announces a job's end and clears away what nobody needs any more. Returns the final reply."""
        self._store.delete(f"jobs/{record.job_id}/parts")
        self.announce(record)
        return json_reply(delivery.message, record.reply()) if delivery else self._final_reply(record)

    def announce(self, record: Job) -> None:
        """Tells all who listen of the state that a job is in."""
        self._broker.emit(job_state_topic(record.state), {"schema": 1, **record.reply()})

    def _final_reply(self, record: Job) -> list[Outgoing]:
        if not record.reply_to:
            return []
        correlation = record.correlation_id or record.message_id
        return [Outgoing(record.reply_to, json_message(record.reply(), correlation_id=correlation))]

    def note(self, consumer: Consumer, job_id: str, **confirmed: bool) -> None:
        """Notes in the job's record that what was just settled is confirmed.

        By then the message is gone: whatever the store says, it must neither be tried again nor fail the job.
        """
        consumer.flush()
        try:
            self._jobs.mark_confirmed(job_id, **confirmed)
        except Exception as error:
            _LOG.warning("%s: may be said once more: %s", job_id, error)


def _finisher_key(job_id: str) -> str:
    return f"jobs/{job_id}/finisher"

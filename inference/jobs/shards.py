"""The shards queue: one slice of a job's archive becomes the rows of a part, and the last part the results.

Every shard's rows go into a file of their own with a fixed name, so computing a shard twice is harmless.
"""

from __future__ import annotations

import csv
import functools
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from inference.jobs.finish import JobFinisher
from inference.jobs.open import OpenArchive, shard_messages
from inference.model.champion import Models
from inference.model.predictor import Predictor
from inference.monitoring.throughput import ThroughputMeter
from shared.archives.entry import EntryError
from shared.broker.base import RETRIED_AT, Message, Outgoing
from shared.errors import GenderlineError, InvalidMessage, InvalidModel, NotFound, Retryable
from shared.events import Emit, JobProgressed
from shared.messages import ShardRequest, parse_shard
from shared.records.jobs import Job, Jobs, JobState
from shared.records.record import DamagedRecord, Fault
from shared.records.results import result_row
from shared.store.base import Store
from shared.worker.loop import Context, Defer, Done, Handler, Outcome

_SMALL_STEP: Final = 8
"""Images after which a job lets go of the core while there is interactive work. Low priority alone does not do: it
counts among the threads of a service, while the broker, another service, would wait for the scheduler's next tick."""
_LETTING_GO_S: Final = 50e-6


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and the message that it came in."""

    message: Message
    request: ShardRequest


class ShardHandler(Handler[_Asked]):
    """Computes shards, and ends the job with the last of them.

    Args:
        store: where archives, parts, results and records lie.
        models: the job's own is used.
        predictor: decodes and predicts.
        archives: keeps the archive open.
        throughput: told of images, for the heartbeat.
        emit: tells events.
        shard_queue: where the shards of a job that is opened again go.
        lease_s: seconds after which another worker takes over from one that died while it made the results.
        interactive_recently: whether there has been interactive work a moment ago.
        missing_for_s: how long the record of a shard's job may be out of sight: a store that is being mounted, say,
            shows nothing for a while.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        predictor: Predictor,
        archives: OpenArchive,
        throughput: ThroughputMeter,
        emit: Emit,
        shard_queue: str,
        *,
        lease_s: float,
        interactive_recently: Callable[[], bool] = lambda: False,
        missing_for_s: float = 60.0,
    ) -> None:
        self._store = store
        self._models = models
        self._predictor = predictor
        self._archives = archives
        self._throughput = throughput
        self._emit = emit
        self._shard_queue = shard_queue
        self._interactive_recently = interactive_recently
        self._missing_for_s = missing_for_s
        self._missing_since: dict[str, float] = {}  # monotonic clock, by job
        self._jobs = Jobs(store)
        self._finisher = JobFinisher(store, emit, lease_s)
        self.busy: str | None = None
        """The job that is being worked on, for the heartbeat."""

    def parse(self, message: Message) -> _Asked:
        return _Asked(message, parse_shard(message))

    def handle(self, requests: Sequence[_Asked], context: Context) -> Sequence[Outcome]:
        (asked,) = requests
        self.busy = asked.request.job_id
        try:
            return [self._handle(asked, context)]
        finally:
            self.busy = None

    def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
        """Fails the job, which cannot be finished without one of its shards."""
        if isinstance(error, InvalidMessage):
            return []  # the job has no such shard, and lacks none
        try:
            request = parse_shard(message)
            job = self._jobs.find(request.job_id)
        except (InvalidMessage, DamagedRecord):
            return []  # nobody knows whose it is, or to whom it should be replied
        if job is None or job.accepted is None or not self._finisher.claim(request.job_id, request.shard):
            return []
        return self._finisher.end(request.job_id, JobState.FAILED, error=Fault.of(error))

    def close(self) -> None:
        self._archives.close()

    def _handle(self, asked: _Asked, context: Context) -> Outcome:
        message, request = asked.message, asked.request
        job_id = request.job_id
        job = self._finisher.reopen(message, self._find_job(job_id, request.shard))
        retried_at = message.headers.get(RETRIED_AT)
        if retried_at is not None and job.retried_at == retried_at and not (job.state.is_final or job.shards_published):
            # It has opened its job again. The other shards went when the job failed, and the rows of all of them.
            shards = shard_messages(job, self._shard_queue)
            return Done(shards, functools.partial(self._jobs.mark_confirmed, job_id, shards_published=True))
        _require_shard(job, request)
        if job.state.is_final:
            # Whoever ended it may have died, or lost the broker, before that was said.
            unsaid = not job.final_reply_sent and self._finisher.owner(job_id) == request.shard
            return self._finished(job_id, self._finisher.publish_result(job)) if unsaid else Done()
        if self._jobs.cancel_requested(job_id):
            if not self._finisher.claim(job_id, request.shard):
                return Done()
            error = Fault.of(GenderlineError("cancelled by a user", code="cancelled"))
            return self._finished(job_id, self._finisher.end(job_id, JobState.CANCELLED, error=error))
        if not self._store.exists(Jobs.part_key(job_id, request.shard)):
            try:
                if not self._write_part(job, request, context):
                    return Defer(0)
            except NotFound:
                if self._was_deleted(job):
                    return Done()
                raise
            self._tell_progress(job)
        if len(self._jobs.parts(job_id)) == job.shards and self._finisher.claim(job_id, request.shard):
            return self._finished(job_id, self._finisher.finish(job_id))
        return Done()

    def _finished(self, job_id: str, final_reply: Sequence[Outgoing]) -> Done:
        return Done(final_reply, functools.partial(self._jobs.mark_confirmed, job_id, final_reply_sent=True))

    def _find_job(self, job_id: str, shard: int) -> Job:
        """Returns the record of a shard's job.

        Raises:
            Retryable: there is none for now.
            NotFound: there has been none for so long that there is none at all.
        """
        job = self._jobs.find(job_id)
        if job is None or job.accepted is None:
            now = time.monotonic()
            since = self._missing_since.setdefault(job_id, now)
            gone = now - since >= self._missing_for_s
            raise (NotFound if gone else Retryable)(f"shard {shard}: there is no job {job_id!r}")
        self._missing_since.pop(job_id, None)
        return job

    def _write_part(self, job: Job, request: ShardRequest, context: Context) -> bool:
        """Predicts the shard's images and writes their rows; returns False where the service stopped before the end.

        Raises:
            NotFound: the job was deleted meanwhile, or its archive.
        """
        assert job.model is not None  # noqa: S101 - an accepted job has one, and an archive
        assert job.archive is not None  # noqa: S101
        try:
            model = self._models.get(job.model.version)
        except InvalidMessage as error:  # the message is right: without its model, the job has to fail
            raise InvalidModel(str(error), code=error.code) from None
        archive = self._archives.get(job, job.archive)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        start = request.start
        while start < request.stop:
            if context.stopping.is_set():
                return False
            small_steps = self._interactive_recently()
            size = _SMALL_STEP if small_steps else self._predictor.batch_size
            entries = archive.entries[start : min(start + size, request.stop)]
            start += len(entries)
            contents = archive.read_together(entries)
            readable = [content for content in contents if isinstance(content, bytes)]
            results = self._predictor.predict(model, readable)
            self._predictor.count(results)
            following = iter(results)
            writer.writerows(
                result_row(entry.name, content if isinstance(content, EntryError) else next(following))
                for entry, content in zip(entries, contents, strict=True)
            )
            self._throughput.add(len(entries))
            if small_steps:
                time.sleep(_LETTING_GO_S)
        key = Jobs.part_key(request.job_id, request.shard)
        if self._was_deleted(job):
            raise NotFound(f"{job.job_id} was deleted")  # it gets no folder again
        self._store.put(key, text.getvalue().encode())
        now = self._jobs.find(job.job_id)
        if now is None or now.state.is_final:
            self._store.delete(key)  # it ended meanwhile, and with it went the other parts
        return True

    def _was_deleted(self, job: Job) -> bool:
        """Returns whether a job that was there a moment ago has been deleted, even if it was sent again since.

        Raises:
            Retryable: only its record is out of sight.
        """
        found = self._jobs.find(job.job_id)
        if found is None and self._store.children(f"jobs/{job.job_id}"):
            raise Retryable(f"there is no job {job.job_id!r} any more, though its other files are there")
        return found is None or found.created != job.created

    def _tell_progress(self, job: Job) -> None:
        progress = self._jobs.progress(job)
        if not progress.done:
            return  # the job has ended meanwhile, and its parts are gone
        assert job.accepted is not None  # noqa: S101 - else it would have no shards
        seconds = (datetime.now(UTC) - datetime.fromisoformat(job.accepted)).total_seconds()
        rate = progress.done / max(seconds, 0.001)
        left = progress.total - progress.done
        progress = progress.changed(rate=round(rate, 1), eta_s=round(left / rate, 1))
        self._emit(*JobProgressed(job_id=job.job_id, progress=progress).wire())


def _require_shard(job: Job, request: ShardRequest) -> None:
    """Raises InvalidMessage where a job has no such shard."""
    bounds = job.bounds
    if (request.start, request.stop) not in pairwise(bounds[request.shard : request.shard + 2]):
        raise InvalidMessage(
            f"{job.job_id} has no shard {request.shard} from {request.start} to {request.stop}; "
            f"it has {len(bounds) - 1} shards"
        )

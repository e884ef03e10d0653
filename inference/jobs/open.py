"""Batch jobs: an archive is opened into shards, any worker computes a shard, and one of them ends the job.

Every shard's rows go into a file of their own with a fixed name, so computing a shard twice is harmless.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

from inference.jobs.finish import JobEnds
from inference.model.champion import Models
from inference.model.predictor import Predictor
from inference.monitoring.throughput import ThroughputMeter
from shared.archives.archive import Archive, ArchiveLimits
from shared.archives.entry import EntryError
from shared.archives.fetch import fetch_archive
from shared.broker.base import RETRIED_AT, Broker, BrokerError, BrokerFull, Consumer, Delivery, Outgoing
from shared.errors import GenderlineError, InvalidDataset, InvalidMessage, NotFound, Retryable
from shared.messages import (
    ArchiveRequest,
    ShardRequest,
    job_id_of,
    json_message,
    json_reply,
    parse_job,
    parse_shard,
)
from shared.records.jobs import Job, Jobs, JobState, shard_bounds
from shared.records.record import DamagedRecord, Fault
from shared.records.results import result_row
from shared.runtime.settings import Settings
from shared.runtime.tempdir import temp_folder
from shared.store.base import STORE_SCHEME, Store
from shared.topology import JOB_PROGRESS
from shared.worker.retry import FailurePolicy

_WAIT_S: Final = 0.5
_SMALL_STEP: Final = 8
"""Images after which a job lets go of the core while there is interactive work. Low priority alone does not do: it
counts among the threads of a service, while the broker, another service, would wait for the scheduler's next tick."""
_LETTING_GO_S: Final = 50e-6
_LOG = logging.getLogger(__name__)


class BulkLoop:
    """Opens jobs and computes shards, one at a time, beside the interactive loop.

    It runs in a thread of low priority, so the interactive loop gets the core whenever it has work.

    Args:
        broker: where jobs and shards come from.
        store: where archives lie and results go.
        settings: limits and the size of a shard.
        models: which model to use.
        predictor: decodes and predicts.
        policy: what becomes of messages that fail.
        throughput: told of images, for the heartbeat.
        interactive_lately: whether the interactive loop has had work a moment ago.
    """

    def __init__(
        self,
        broker: Broker,
        store: Store,
        settings: Settings,
        models: Models,
        predictor: Predictor,
        policy: FailurePolicy,
        throughput: ThroughputMeter,
        *,
        interactive_lately: Callable[[], bool] = lambda: False,
    ) -> None:
        self._broker = broker
        self._store = store
        self._jobs = Jobs(store)
        self._ends = JobEnds(broker, store)
        self._settings = settings
        self._limits = ArchiveLimits.from_settings(settings)
        self._models = models
        self._predictor = predictor
        self._policy = policy
        self._throughput = throughput
        self._interactive_lately = interactive_lately
        self._archives = _OpenArchive(store, self._limits)
        self._lost: str | None = None
        """The job whose record one of its shards has waited for in vain."""
        self.busy: str | None = None
        """The job that is being worked on, for the heartbeat."""

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`, and then to the end of the shard at hand."""
        while not stop.is_set() and not self._models.wait_for_champion(_WAIT_S):
            pass
        topology = self._broker.topology
        with self._archives:
            while not stop.is_set():
                try:
                    with self._broker.consume([topology.jobs, topology.shards], 1) as consumer:
                        while not stop.is_set():
                            for delivery in consumer.receive(1, _WAIT_S):
                                self._handle(consumer, delivery)
                        consumer.flush()
                except Retryable as error:
                    _LOG.warning("what is at hand will come again: %s", error)
                    stop.wait(_WAIT_S)

    def _handle(self, consumer: Consumer, delivery: Delivery) -> None:
        is_job = delivery.queue == self._broker.topology.jobs
        work, fail = (self._open, self._job_failed) if is_job else (self._compute, self._shard_failed)
        try:
            if self._policy.exhausted(delivery):
                self._policy.bury_exhausted(consumer, delivery, lambda error: fail(delivery, error))
            else:
                work(consumer, delivery)
        except Exception as error:
            # Where the broker is away everything comes again; what a full queue refused is tried again in a while.
            if isinstance(error, BrokerError) and not isinstance(error, BrokerFull):
                raise
            self._policy.handle(consumer, delivery, error, lambda shown: fail(delivery, shown))
        finally:
            self.busy = None

    # -- a job

    def _open(self, consumer: Consumer, delivery: Delivery) -> None:
        """Turns a job into shards, accepts it and settles its message, all in one step."""
        request = parse_job(delivery.message)
        job_id = self.busy = job_id_of(request.message_id)
        self._jobs.create(job_id, message_id=request.message_id, name=request.name, state=JobState.QUEUED)
        record = self._ends.reopened(delivery, self._jobs.get(job_id))
        if record.state.is_final:
            _LOG.info("%s came again; it is %s", job_id, record.state)
            consumer.settle([delivery], json_reply(delivery.message, record.reply()))
            return
        accepted = record.state == JobState.ACCEPTED
        if accepted and delivery.message.reply_to:
            # Who asked last is who still listens.
            asker = {"reply_to": delivery.message.reply_to, "correlation_id": delivery.message.correlation_id}
            record = self._jobs.update(job_id, **asker)
        if accepted and record.shards_published:  # a duplicate of a job that is under way
            consumer.settle([delivery], json_reply(delivery.message, record.reply()))
            return
        if self._jobs.cancel_requested(job_id):
            final = self._ends.end(job_id, JobState.CANCELLED, delivery, error=Fault.of(_cancelled()))
            consumer.settle([delivery], final)
            return
        if not accepted:
            try:
                record = self._accepted(job_id, request, delivery)
            except InvalidDataset as error:
                consumer.settle([delivery], self._ends.end(job_id, JobState.REJECTED, delivery, error=Fault.of(error)))
                return
        shards = [] if record.state.is_final else self._shards(record)
        consumer.settle([delivery], [*shards, *json_reply(delivery.message, record.reply())])
        self._ends.note(consumer, job_id, shards_published=True)
        self._ends.announce(record)
        _LOG.info("%s %s: %d images in %d shards", job_id, record.state, record.images, record.shards)

    def _accepted(self, job_id: str, request: ArchiveRequest, delivery: Delivery) -> Job:
        """Looks into the archive and accepts the job. Returns its record."""
        with (
            temp_folder() as folder,
            fetch_archive(request, self._store, self._settings, folder) as path,
        ):
            images, key = self._looked_into(job_id, request.uri, path, folder)
        champion = self._models.champion
        assert champion is not None  # noqa: S101 - the loop starts with a champion and none is ever taken away
        size = self._settings.shard_images
        # Another delivery of this message may have been here before: then its model and its shards hold.
        return self._jobs.accept(
            job_id,
            reply_to=delivery.message.reply_to,
            correlation_id=delivery.message.correlation_id,
            model=champion.identity,
            archive=key,
            images=images,
            shards=len(shard_bounds(images, size)) - 1,
            shard_images=size,
        )

    def _shards(self, record: Job) -> list[Outgoing]:
        job_id = record.job_id
        return [
            Outgoing(
                self._broker.topology.shards,
                json_message(
                    {"job_id": job_id, "shard": shard, "start": start, "stop": stop}, message_id=f"{job_id}.{shard}"
                ),
            )
            for shard, (start, stop) in enumerate(pairwise(record.bounds))
        ]

    def _looked_into(self, job_id: str, uri: str | None, path: Path, folder: Path) -> tuple[int, str]:
        """Makes sure that the archive is sound and in reach of every worker. Returns its length and store key."""
        if uri is not None and uri.startswith(STORE_SCHEME):
            key = uri.removeprefix(STORE_SCHEME)
            return len(self._archives.get(job_id, key).entries), key  # it stays open for the shards
        with Archive(path, self._limits) as archive:
            images = len(archive.entries)
        key = Jobs.archive_key(job_id)
        if not path.is_relative_to(folder):
            path = shutil.copyfile(path, folder / "copy.zip")
        self._store.put_file(key, path)
        return images, key

    def _job_failed(self, delivery: Delivery, error: GenderlineError) -> list[Outgoing]:
        job_id = job_id_of(delivery.message.message_id)
        self._jobs.create(job_id, message_id=delivery.message.message_id, name="archive", state=JobState.QUEUED)
        state = JobState.REJECTED if isinstance(error, InvalidMessage) else JobState.FAILED
        try:
            return self._ends.end(job_id, state, delivery, error=Fault.of(error))
        except DamagedRecord as damage:  # nothing can be noted there; the asker gets a reply all the same
            _LOG.error("%s %s: %s; %s", job_id, state, error, damage)
            return json_reply(delivery.message, {"job_id": job_id, "status": state.value, "error": error.as_dict()})

    # -- a shard

    def _compute(self, consumer: Consumer, delivery: Delivery) -> None:
        request = parse_shard(delivery.message)
        job_id = request.job_id
        record = self._jobs.find(job_id)
        if record is None or record.accepted is None:
            # A store that is being mounted, say, shows nothing for a while, or what was there before the job. One of
            # its shards finds out for all.
            last = delivery.delivery_count + 1 >= self._settings.delivery_limit
            if last:
                self._lost = job_id
            given_up = job_id == self._lost
            raise (NotFound if given_up else Retryable)(f"shard {request.shard}: there is no job {job_id!r}")
        _check_shard(record, request)
        if RETRIED_AT in delivery.message.headers and self._ends.finisher(job_id) == request.shard:
            # The shard of which the job failed: without it, no other would help.
            record = self._ends.reopened(delivery, record)
        if self._opened_by(delivery, record):
            # The other shards went when the job failed, and the rows of all of them.
            consumer.settle([delivery], self._shards(record))
            self._ends.note(consumer, job_id, shards_published=True)
            return
        if record.state.is_final:
            # Whoever ended it may have died, or lost the broker, before that was said.
            ends = not record.final_reply_sent and self._ends.finisher(job_id) == request.shard
            self._settle_shard(consumer, delivery, self._ends.tell(record) if ends else None)
            return
        self.busy = job_id
        outgoing: list[Outgoing] | None = None
        if self._jobs.cancel_requested(job_id):
            if self._ends.may_end(job_id, request.shard):
                outgoing = self._ends.end(job_id, JobState.CANCELLED, error=Fault.of(_cancelled()))
        else:
            if not self._store.exists(Jobs.part_key(job_id, request.shard)):
                self._write_part(record, request)
                self._progress(record)
            if len(self._jobs.parts(job_id)) == record.shards and self._ends.may_end(job_id, request.shard):
                outgoing = self._ends.finish(job_id)
        self._settle_shard(consumer, delivery, outgoing)

    @staticmethod
    def _opened_by(delivery: Delivery, record: Job) -> bool:
        """Returns whether a shard that was sent back has opened its job again, and the job is not handed out yet."""
        retried_at = delivery.message.headers.get(RETRIED_AT)
        opened = retried_at is not None and record.retried_at == retried_at
        return opened and record.state == JobState.ACCEPTED and not record.shards_published

    def _settle_shard(self, consumer: Consumer, delivery: Delivery, final: list[Outgoing] | None) -> None:
        """Settles a shard, and with the one that ends its job the final reply, of which there may be none to send."""
        consumer.settle([delivery], final or ())
        if final is not None:
            self._ends.note(consumer, parse_shard(delivery.message).job_id, final_reply_sent=True)

    def _write_part(self, record: Job, request: ShardRequest) -> None:
        """Predicts the shard's images and writes their rows."""
        assert record.model is not None  # noqa: S101 - an accepted job has one, and an archive
        assert record.archive is not None  # noqa: S101
        model = self._models.get(record.model.version)
        archive = self._archives.get(record.job_id, record.archive)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        start = request.start
        while start < request.stop:
            small_steps = self._interactive_lately()
            size = _SMALL_STEP if small_steps else self._predictor.batch_size
            entries = archive.entries[start : min(start + size, request.stop)]
            start += len(entries)
            contents = archive.read_together(entries)
            readable = [content for content in contents if isinstance(content, bytes)]
            outcomes = iter(self._predictor.predict(model, readable))
            writer.writerows(
                result_row(entry.name, content if isinstance(content, EntryError) else next(outcomes))
                for entry, content in zip(entries, contents, strict=True)
            )
            self._throughput.add(len(entries))
            if small_steps:
                time.sleep(_LETTING_GO_S)
        self._store.put(Jobs.part_key(request.job_id, request.shard), text.getvalue().encode())

    def _progress(self, record: Job) -> None:
        progress = self._jobs.progress(record)
        if not progress.done:
            return  # the job has ended meanwhile, and its parts are gone
        assert record.accepted is not None  # noqa: S101 - else it would have no shards
        seconds = (datetime.now(UTC) - datetime.fromisoformat(record.accepted)).total_seconds()
        rate = progress.done / max(seconds, 0.001)
        left = progress.total - progress.done
        progress = progress.changed(rate=round(rate, 1), eta_s=round(left / rate, 1))
        self._broker.emit(JOB_PROGRESS, {"schema": 1, "job_id": record.job_id, "progress": progress.as_dict()})

    def _shard_failed(self, delivery: Delivery, error: GenderlineError) -> list[Outgoing]:
        """A job without one of its shards cannot be finished."""
        try:
            request = parse_shard(delivery.message)
        except (InvalidMessage, KeyError, ValueError):
            return []  # nobody knows whose it is
        if isinstance(error, InvalidMessage):
            return []  # the job has no such shard, and lacks none
        try:
            record = self._jobs.find(request.job_id)
        except DamagedRecord:
            return []  # nobody knows to whom it should be replied
        if record is None or record.accepted is None or not self._ends.may_end(request.job_id, request.shard):
            return []
        return self._ends.end(request.job_id, JobState.FAILED, error=Fault.of(error))


class _OpenArchive:
    """Keeps the last job's archive open from shard to shard: reading the directory of a large zip takes a while."""

    def __init__(self, store: Store, limits: ArchiveLimits) -> None:
        self._store = store
        self._limits = limits
        self._job_id: str | None = None
        self._archive: Archive | None = None
        self._open = contextlib.ExitStack()

    def get(self, job_id: str, key: str) -> Archive:
        if self._archive is None or self._job_id != job_id:
            self._open.close()
            self._archive = None
            path = self._open.enter_context(self._store.local(key))
            self._archive = self._open.enter_context(Archive(path, self._limits))
            self._job_id = job_id
        return self._archive

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._archive = None


def _check_shard(record: Job, request: ShardRequest) -> None:
    """Raises InvalidMessage where the job has no such shard."""
    bounds = record.bounds
    if (request.start, request.stop) not in pairwise(bounds[request.shard : request.shard + 2]):
        raise InvalidMessage(
            f"{request.job_id} has no shard {request.shard} from {request.start} to {request.stop}; "
            f"it has {len(bounds) - 1} shards"
        )


def _cancelled() -> GenderlineError:
    return GenderlineError("cancelled by a user", code="cancelled")

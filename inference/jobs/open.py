"""The jobs queue: an archive is looked into, accepted, and cut into shards."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from inference.jobs.finish import JobFinisher
from inference.model.champion import Models
from shared.archives.archive import Archive, ArchiveLimits
from shared.archives.fetch import fetch_archive
from shared.broker.base import Message, Outgoing
from shared.errors import GenderlineError, InvalidDataset, InvalidMessage
from shared.events import Emit
from shared.messages import ArchiveRequest, job_id_of, json_message, json_reply, parse_job, request_digest
from shared.records.jobs import Job, Jobs, JobState, shard_bounds
from shared.records.record import DamagedRecord, Fault, RecordEnded
from shared.runtime.settings import Settings
from shared.runtime.tempdir import temp_folder
from shared.store.base import STORE_SCHEME, Store
from shared.worker.loop import Context, Done, Handler

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and what its replies need to know of its message."""

    message: Message
    request: ArchiveRequest


class JobHandler(Handler[_Asked]):
    """Turns a job into shards and accepts it.

    Args:
        store: where archives lie, and records.
        settings: limits and the size of a shard.
        models: a job uses the champion, or the version that it asks for, to its end.
        archives: keeps the archive open for the shards.
        emit: tells events.
        shard_queue: where shards go.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        models: Models,
        archives: OpenArchive,
        emit: Emit,
        shard_queue: str,
    ) -> None:
        self._store = store
        self._settings = settings
        self._models = models
        self._archives = archives
        self._shard_queue = shard_queue
        self._jobs = Jobs(store)
        self._finisher = JobFinisher(store, emit, settings.lease_s)
        self.busy: str | None = None
        """The job that is being opened, for the heartbeat."""

    def parse(self, message: Message) -> _Asked:
        return _Asked(message, parse_job(message))

    def handle(self, requests: Sequence[_Asked], context: Context) -> Sequence[Done]:  # noqa: ARG002
        (asked,) = requests
        self.busy = job_id_of(asked.request.message_id)
        try:
            return [self._open(self.busy, asked)]
        finally:
            self.busy = None

    def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
        job_id = job_id_of(message.message_id)
        state = JobState.REJECTED if isinstance(error, InvalidMessage) else JobState.FAILED
        reply = json_reply(message, {"job_id": job_id, "status": state.value, "error": error.as_dict()})
        fault = Fault.of(error)
        if self._jobs.create(job_id, message_id=message.message_id, name="archive", state=state, error=fault):
            return self._finisher.publish_result(self._jobs.get(job_id), message)
        try:
            job = self._jobs.get(job_id)
            is_others = isinstance(error, InvalidMessage) and job.request_sha256 != request_digest(message)
            if is_others or job.shards_published:
                return reply  # another message with the same id has made the job, which this one must not undo
            return self._finisher.end(job_id, state, message, error=fault)
        except DamagedRecord as damage:  # nothing can be noted there; the asker gets a reply all the same
            _LOG.error("%s %s: %s; %s", job_id, state, error, damage)
            return reply

    def close(self) -> None:
        self._archives.close()

    def _open(self, job_id: str, asked: _Asked) -> Done:
        message, request = asked.message, asked.request
        digest = request_digest(message)
        self._jobs.create(job_id, message_id=request.message_id, name=request.name, request_sha256=digest)
        job = self._jobs.get(job_id)
        job.require_request(digest)
        job = self._finisher.reopen(message, job)
        if job.state.is_final:
            _LOG.info("%s came again; it is %s", job_id, job.state)
            return Done(json_reply(message, job.reply()))
        if job.accepted is not None and message.reply_to:  # who asked last is who still listens
            try:
                job = self._jobs.update(job_id, reply_to=message.reply_to, correlation_id=message.correlation_id)
            except RecordEnded:  # since the check above; the earlier sender has the final reply
                return Done(json_reply(message, self._jobs.get(job_id).reply()))
        if job.accepted is not None and job.shards_published:  # a duplicate of a job that is under way
            return Done(json_reply(message, job.reply()))
        if self._jobs.cancel_requested(job_id):
            error = Fault.of(GenderlineError("cancelled by a user", code="cancelled"))
            return Done(self._finisher.end(job_id, JobState.CANCELLED, message, error=error))
        if job.accepted is None:
            try:
                job = self._accept(job, asked)
            except InvalidDataset as invalid:
                return Done(self._finisher.end(job_id, JobState.REJECTED, message, error=Fault.of(invalid)))
        self._finisher.announce(job)
        _LOG.info("%s %s: %d images in %d shards", job_id, job.state, job.images, job.shards)
        shards = [] if job.state.is_final else shard_messages(job, self._shard_queue)
        return Done(
            [*shards, *json_reply(message, job.reply())],
            on_confirmed=functools.partial(self._jobs.mark_confirmed, job_id, shards_published=True),
        )

    def _accept(self, job: Job, asked: _Asked) -> Job:
        """Looks into the archive and accepts the job. Returns its record."""
        with (
            temp_folder() as folder,
            fetch_archive(asked.request, self._store, self._settings, folder) as path,
        ):
            images, key = self._store_archive(job, asked.request.uri, path, folder)
        version = asked.request.model_version
        model = self._models.champion if version is None else self._models.get(version)
        assert model is not None  # noqa: S101 - a champion is never taken away
        size = self._settings.shard_images
        # Another delivery of this message may have been here before: then its model and its shards hold.
        return self._jobs.accept(
            job.job_id,
            reply_to=asked.message.reply_to,
            correlation_id=asked.message.correlation_id,
            model=model.identity,
            archive=key,
            images=images,
            shards=len(shard_bounds(images, size)) - 1,
            shard_images=size,
        )

    def _store_archive(self, job: Job, uri: str | None, path: Path, folder: Path) -> tuple[int, str]:
        """Makes sure that the archive is sound and in reach of every worker. Returns its length and store key."""
        if uri is not None and uri.startswith(STORE_SCHEME):
            key = uri.removeprefix(STORE_SCHEME)
            return len(self._archives.get(job, key).entries), key  # it stays open for the shards
        with Archive(path, self._archives.limits) as archive:
            images = len(archive.entries)
        key = Jobs.archive_key(job.job_id)
        if not path.is_relative_to(folder):
            path = shutil.copyfile(path, folder / "copy.zip")
        self._store.put_file(key, path)
        return images, key


def shard_messages(job: Job, queue: str) -> list[Outgoing]:
    """Returns the messages of all shards of an accepted job."""
    return [
        Outgoing(
            queue,
            json_message(
                {"job_id": job.job_id, "shard": shard, "start": start, "stop": stop},
                message_id=f"{job.job_id}.{shard}",
            ),
        )
        for shard, (start, stop) in enumerate(pairwise(job.bounds))
    ]


class OpenArchive:
    """Keeps the last job's archive open from shard to shard: reading the directory of a large zip takes a while.

    Used by one thread.

    Args:
        store: where archives lie.
        limits: bounds on them.
    """

    def __init__(self, store: Store, limits: ArchiveLimits) -> None:
        self.limits = limits
        self._store = store
        self._archive: Archive | None = None
        self._opened_for: tuple[str, str, str] | None = None
        self._open = contextlib.ExitStack()

    def get(self, job: Job, key: str) -> Archive:
        """Returns a job's archive, which lies in the store under `key`."""
        # A job that was deleted and sent again has the id and the key of the one before, and perhaps another archive.
        wanted = (job.job_id, job.created, key)
        if self._archive is None or self._opened_for != wanted:
            self.close()
            path = self._open.enter_context(self._store.local(key))
            self._archive = self._open.enter_context(Archive(path, self.limits))
            self._opened_for = wanted
        return self._archive

    def close(self) -> None:
        """Closes the archive that is open. Idempotent."""
        self._open.close()
        self._archive = None

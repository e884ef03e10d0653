"""Batch jobs: an archive is opened into shards, any worker computes a shard, and one of them assembles the results.

Every shard's rows go into a file of their own with a fixed name, so computing a shard twice is harmless. Whoever finds
all of them there tries to create the object `finisher`; the one shard whose worker succeeds does the rest, and does it
again if it is delivered again: so there is at least one final reply, and without a crash exactly one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from inference.batcher import Predictor
from inference.models import Models
from inference.speed import Speed
from shared import jobs
from shared.archive import Archive, ArchiveLimits, Entry, EntryError
from shared.broker.base import Broker, BrokerError, Consumer, Delivery, Outgoing
from shared.errors import GenderlineError, InvalidDataset, InvalidImage, InvalidMessage, NotFound
from shared.failures import FailurePolicy
from shared.jobs import Jobs
from shared.labels import GENDERS, label_or_none
from shared.messages import (
    ShardRequest,
    job_id_of,
    json_message,
    json_reply,
    parse_job,
    parse_shard,
    prediction,
)
from shared.rejects import reject_for
from shared.settings import Settings
from shared.sources import fetched
from shared.store import STORE_SCHEME, Store
from shared.topology import JOB_PROGRESS, job_state_topic

_WAIT_S: Final = 0.5
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
        speed: told of images, for the heartbeat.
    """

    def __init__(
        self,
        broker: Broker,
        store: Store,
        settings: Settings,
        models: Models,
        predictor: Predictor,
        policy: FailurePolicy,
        speed: Speed,
    ) -> None:
        self._broker = broker
        self._store = store
        self._jobs = Jobs(store)
        self._settings = settings
        self._limits = ArchiveLimits.from_settings(settings)
        self._models = models
        self._predictor = predictor
        self._policy = policy
        self._speed = speed
        self._archives = _OpenArchive(store, self._limits)
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
                            for delivery in consumer.take(1, _WAIT_S):
                                self._handle(consumer, delivery)
                        consumer.flush()
                except BrokerError as error:
                    _LOG.warning("broker: %s", error)
                    stop.wait(_WAIT_S)

    def _handle(self, consumer: Consumer, delivery: Delivery) -> None:
        is_job = delivery.queue == self._broker.topology.jobs
        work, fail = (self._open, self._job_failed) if is_job else (self._compute, self._shard_failed)
        try:
            if self._policy.exhausted(delivery):
                self._policy.bury_exhausted(consumer, delivery, lambda error: fail(delivery, error))
            else:
                work(consumer, delivery)
        except BrokerError:
            raise
        except Exception as error:
            self._policy.handle(consumer, delivery, error, lambda shown: fail(delivery, shown))
        finally:
            self.busy = None

    # -- a job

    def _open(self, consumer: Consumer, delivery: Delivery) -> None:
        """Turns a job into shards, accepts it and settles its message, all in one step."""
        request = parse_job(delivery.message)
        job_id = self.busy = job_id_of(request.message_id)
        self._jobs.create(job_id, message_id=request.message_id, name=request.name, state=jobs.QUEUED)
        record = self._jobs.get(job_id)
        if record["state"] in jobs.FINAL_STATES:
            _LOG.info("%s came again; it is %s", job_id, record["state"])
            consumer.settle([delivery], json_reply(delivery, Jobs.reply(record)))
            return
        if record["state"] == jobs.ACCEPTED and not delivery.delivery_count:
            consumer.settle([delivery])  # a duplicate of a job that is under way
            return
        if self._jobs.cancel_requested(job_id):
            consumer.settle([delivery], self._end(job_id, jobs.CANCELLED, _cancelled(), delivery))
            return
        try:
            with (
                tempfile.TemporaryDirectory(prefix="genderline-") as folder,
                fetched(request, self._store, self._settings, Path(folder)) as (path, _),
            ):
                with Archive(path, self._limits) as archive:
                    images = len(archive.entries)
                key = self._keep(job_id, request.uri, path, Path(folder))
        except InvalidDataset as error:
            consumer.settle([delivery], self._end(job_id, jobs.REJECTED, error, delivery))
            return
        champion = self._models.champion
        assert champion is not None  # noqa: S101 - the loop starts with a champion and none is ever taken away
        size = self._settings.shard_images
        shards = -(-images // size)
        record = self._jobs.update(
            job_id,
            state=jobs.ACCEPTED,
            reply_to=delivery.message.reply_to,
            correlation_id=delivery.message.correlation_id,
            model=champion.identity,
            archive=key,
            images=images,
            shards=shards,
            shard_images=size,
        )
        outgoing = [
            Outgoing(
                self._broker.topology.shards,
                json_message(
                    {
                        "job_id": job_id,
                        "shard": shard,
                        "start": shard * size,
                        "stop": min((shard + 1) * size, images),
                    },
                    message_id=f"{job_id}.{shard}",
                ),
            )
            for shard in range(shards)
        ]
        body = Jobs.reply(record)
        consumer.settle([delivery], [*outgoing, *json_reply(delivery, body)])
        self._broker.emit(job_state_topic(jobs.ACCEPTED), {"schema": 1, **body})
        _LOG.info("%s accepted: %d images in %d shards", job_id, images, shards)

    def _keep(self, job_id: str, uri: str | None, path: Path, folder: Path) -> str:
        """Makes sure that every worker can reach the archive. Returns its store key."""
        if uri is not None and uri.startswith(STORE_SCHEME):
            return uri.removeprefix(STORE_SCHEME)
        key = Jobs.archive_key(job_id)
        if not path.is_relative_to(folder):
            with path.open("rb") as source, (folder / "copy.zip").open("wb") as copy:
                while piece := source.read(2**20):
                    copy.write(piece)
            path = folder / "copy.zip"
        self._store.put_file(key, path)
        return key

    def _job_failed(self, delivery: Delivery, error: GenderlineError) -> list[Outgoing]:
        job_id = job_id_of(delivery.message.message_id)
        self._jobs.create(job_id, message_id=delivery.message.message_id, name="archive", state=jobs.QUEUED)
        state = jobs.REJECTED if isinstance(error, InvalidMessage) else jobs.FAILED
        return self._end(job_id, state, error, delivery)

    # -- a shard

    def _compute(self, consumer: Consumer, delivery: Delivery) -> None:
        request = parse_shard(delivery.message)
        record = self._jobs.find(request.job_id)
        finished_here = delivery.delivery_count and self._finisher(request.job_id) == request.shard
        if record is None or (record["state"] in jobs.FINAL_STATES and not finished_here):
            consumer.settle([delivery])
            return
        self.busy = request.job_id
        if self._jobs.cancel_requested(request.job_id):
            consumer.settle([delivery], self._end(request.job_id, jobs.CANCELLED, _cancelled()))
            return
        if record["state"] != jobs.FINISHED and not self._store.exists(Jobs.part_key(request.job_id, request.shard)):
            self._write_part(record, request)
            self._progress(record)
        outgoing: list[Outgoing] = []
        if record["state"] == jobs.FINISHED or self._is_finisher(record, request.shard):
            outgoing = self._finish(record)
        consumer.settle([delivery], outgoing)

    def _write_part(self, record: dict[str, Any], request: ShardRequest) -> None:
        """Predicts the shard's images and writes their rows."""
        model = self._models.get(record["model"]["version"])
        archive = self._archives.get(record["job_id"], record["archive"])
        text = io.StringIO()
        writer = csv.DictWriter(text, jobs.RESULT_COLUMNS, lineterminator="\n")
        size = self._predictor.batch_size
        for start in range(request.start, request.stop, size):
            entries = archive.entries[start : min(start + size, request.stop)]
            contents = [_content(archive, entry) for entry in entries]
            readable = [content for content in contents if isinstance(content, bytes)]
            outcomes = iter(self._predictor.predict(model, readable))
            for entry, content in zip(entries, contents, strict=True):
                writer.writerow(_row(entry.name, content if isinstance(content, EntryError) else next(outcomes)))
            self._speed.add(len(entries))
        self._store.put(Jobs.part_key(request.job_id, request.shard), text.getvalue().encode())

    def _progress(self, record: dict[str, Any]) -> None:
        done, total = self._jobs.progress(record)
        self._broker.emit(
            JOB_PROGRESS, {"schema": 1, "job_id": record["job_id"], "progress": {"done": done, "total": total}}
        )

    def _is_finisher(self, record: dict[str, Any], shard: int) -> bool:
        """Returns whether all parts are there and this shard is the one to assemble them."""
        job_id = record["job_id"]
        if len(self._jobs.parts(job_id)) < record["shards"]:
            return False
        self._store.create(_finisher_key(job_id), json.dumps(shard).encode())
        return self._finisher(job_id) == shard

    def _finisher(self, job_id: str) -> int | None:
        try:
            return int(json.loads(self._store.get(_finisher_key(job_id))))
        except NotFound:
            return None

    def _finish(self, record: dict[str, Any]) -> list[Outgoing]:
        """Assembles the results, unless that is done already. Returns the final reply."""
        job_id = record["job_id"]
        if record["state"] != jobs.FINISHED:
            with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
                results = Path(folder) / "results.csv"
                counts, accuracy = _assemble(results, self._part_texts(job_id))
                self._store.put_file(Jobs.results_key(job_id), results)
            record = self._jobs.update(
                job_id,
                state=jobs.FINISHED,
                counts=counts,
                accuracy=accuracy,
                results=f"{STORE_SCHEME}{Jobs.results_key(job_id)}",
            )
            self._store.delete(f"jobs/{job_id}/parts")
        self._announce(record)
        return self._final_reply(record)

    def _part_texts(self, job_id: str) -> Iterator[str]:
        for shard in self._jobs.parts(job_id):
            yield self._store.get(Jobs.part_key(job_id, shard)).decode()

    def _shard_failed(self, delivery: Delivery, error: GenderlineError) -> list[Outgoing]:
        """A job without one of its shards cannot be finished."""
        with contextlib.suppress(GenderlineError, KeyError, ValueError):
            return self._end(parse_shard(delivery.message).job_id, jobs.FAILED, error)
        return []

    # -- the end

    def _end(self, job_id: str, state: str, error: GenderlineError, delivery: Delivery | None = None) -> list[Outgoing]:
        """Ends a job without results. Returns the final reply: to `delivery`, or to whom the job's record names."""
        if self._jobs.get(job_id)["state"] in jobs.FINAL_STATES:
            return []  # another shard has ended it
        record = self._jobs.update(job_id, state=state, error=error.as_dict())
        _LOG.warning("%s %s: %s", job_id, state, error)
        self._announce(record)
        return json_reply(delivery, Jobs.reply(record)) if delivery else self._final_reply(record)

    def _announce(self, record: dict[str, Any]) -> None:
        self._broker.emit(job_state_topic(record["state"]), {"schema": 1, **Jobs.reply(record)})

    def _final_reply(self, record: dict[str, Any]) -> list[Outgoing]:
        if not record["reply_to"]:
            return []
        correlation = record["correlation_id"] or record["message_id"]
        return [Outgoing(record["reply_to"], json_message(Jobs.reply(record), correlation_id=correlation))]


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


def _finisher_key(job_id: str) -> str:
    return f"jobs/{job_id}/finisher"


def _cancelled() -> GenderlineError:
    return GenderlineError("a user cancelled the job", code="cancelled")


def _content(archive: Archive, entry: Entry) -> bytes | EntryError:
    try:
        return archive.read(entry)
    except EntryError as error:
        return error


def _row(name: str, outcome: float | GenderlineError) -> dict[str, object]:
    """Returns one line of the results; the true gender only where the file name carries one."""
    label = label_or_none(name)
    truth = GENDERS[label.gender] if label else None
    if not isinstance(outcome, float):
        reason = reject_for(outcome).reason if isinstance(outcome, InvalidImage) else outcome.code
        return {"name": name, "true_gender": truth, "error": f"{reason}: {outcome}"}
    entry = prediction(None, outcome)
    del entry["id"]
    correct = None if truth is None else str(entry["gender"] == truth).lower()
    return {"name": name, **entry, "true_gender": truth, "correct": correct}


def _assemble(path: Path, parts: Iterable[str]) -> tuple[dict[str, int], float | None]:
    """Joins the parts into one CSV.

    Returns:
        (counts of images and errors; the accuracy over labelled images with a prediction, None where there are none).
    """
    images = errors = labelled = correct = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, jobs.RESULT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for part in parts:
            for row in csv.DictReader(io.StringIO(part), jobs.RESULT_COLUMNS):
                writer.writerow(row)
                images += 1
                errors += bool(row["error"])
                labelled += bool(row["correct"])
                correct += row["correct"] == "true"
    return {"images": images, "errors": errors}, correct / labelled if labelled else None

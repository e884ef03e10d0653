"""The Python client: everything a user can ask of the service, through the broker and the store alone."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any, Final, TypeVar

from shared.broker.base import Broker, HeaderValue, Message, Outgoing
from shared.errors import Conflict, GenderlineError
from shared.messages import PACK_LIMIT, PROBE, by_reference, fit_name, job_id_of, pack_message, run_id_of
from shared.params import TrainingParams
from shared.records.jobs import Job, JobProgress, Jobs
from shared.records.record import Record
from shared.records.registry import Registry
from shared.records.runs import Progress, Run, Runs
from shared.records.shadow import ShadowFigures, shadow_figures
from shared.store.base import STORE_SCHEME, Store, sha256_of
from shared.topology import MODEL_CHALLENGED, MODEL_PROMOTED

Entry = dict[str, Any]
"""One image's prediction or error, as in a reply."""

_PACK_BYTES: Final = 8 * 2**20
"""Images beyond this go into the next pack; RabbitMQ 4 takes no message above 16 MiB."""
_POLL_S: Final = 1.0
"""How often a follower reads the record besides listening to events, which may be lost."""

R = TypeVar("R", bound=Record)


class Client:
    """Submits datasets, images and jobs, and follows them.

    Args:
        broker: where messages go.
        store: where archives go and records lie.
    """

    def __init__(self, broker: Broker, store: Store) -> None:
        self.broker = broker
        self.store = store
        self.runs = Runs(store)
        self.jobs = Jobs(store)
        self.registry = Registry(store)

    # -- datasets

    def submit_dataset(
        self,
        archive: Path,
        *,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        on_copied: Callable[[int], None] | None = None,
        move: bool = False,
    ) -> str:
        """Puts an archive into the store and its message on the queue.

        Args:
            archive: a local zip; it is copied.
            name: what the run is called, cut to 200 characters; by default the file's name.
            params: training parameters.
            message_id: makes a second submission with the same id harmless.
            on_copied: called with the number of bytes copied, piece by piece.
            move: give the file to the store instead of copying it.

        Returns:
            The run's id.

        Raises:
            InvalidMessage: a parameter is unknown or out of range.
            Conflict: the file changed while it was copied.
            Retryable: broker or store are away.
            OSError: the file cannot be read.
        """
        checked = TrainingParams.parse(dict(params or {}))
        name = fit_name(name or archive.stem)
        message_id = message_id or uuid.uuid4().hex
        run_id = run_id_of(message_id)
        sha256 = sha256_of(archive)
        key = f"datasets/{sha256}/archive.zip"
        if not self.store.exists(key):
            self._upload(archive, key, on_copied, move=move, sha256=sha256)
        message = by_reference(f"{STORE_SCHEME}{key}", name=name, sha256=sha256, params=checked, message_id=message_id)
        self.broker.publish(self.broker.topology.datasets, message)
        # Last, so that a refused message leaves no run that waits forever. A trainer that was faster made the same.
        self.runs.create(run_id, message_id=message_id, name=name, params=checked)
        return run_id

    def follow_run(self, run_id: str, timeout_s: float | None = None) -> Iterator[Run]:
        """Yields the run's record whenever something happened, and last the final one.

        Raises:
            NotFound: there is no such run.
            GenderlineError: code `timeout`, after `timeout_s`; the run goes on.
        """
        for run, event in self._follow("run.*", "run_id", run_id, self.runs.get, timeout_s):
            # Events are fresher than the record, which is written less often; until the next stage begins.
            fresher = Progress.model_validate(event) if event else None
            yield run.changed(progress=fresher) if fresher and fresher.stage == run.state else run

    # -- jobs

    def submit_job(
        self,
        archive: Path,
        *,
        name: str | None = None,
        message_id: str | None = None,
        on_copied: Callable[[int], None] | None = None,
        move: bool = False,
    ) -> str:
        """Puts an archive of images into the store and a job on the queue. Returns the job's id."""
        name = fit_name(name or archive.stem)
        message_id = message_id or uuid.uuid4().hex
        job_id = job_id_of(message_id)
        key = Jobs.archive_key(job_id)
        if not self.store.exists(key):
            self._upload(archive, key, on_copied, move=move)
        self.broker.publish(
            self.broker.topology.jobs, by_reference(f"{STORE_SCHEME}{key}", name=name, message_id=message_id)
        )
        self.jobs.create(job_id, message_id=message_id, name=name)
        return job_id

    def follow_job(self, job_id: str, timeout_s: float | None = None) -> Iterator[tuple[Job, JobProgress]]:
        """Yields the job's record and how far it is, whenever something happened, and last the final one.

        Raises:
            NotFound: there is no such job.
            GenderlineError: code `timeout`, after `timeout_s`; the job goes on.
        """
        for job, event in self._follow("job.*", "job_id", job_id, self.jobs.get, timeout_s):
            yield job, JobProgress.model_validate(event) if event else self.jobs.progress(job)

    # -- predictions

    def predict(
        self,
        images: Sequence[bytes],
        *,
        model_version: int | None = None,
        probe: bool = False,
        timeout_s: float = 60.0,
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[list[Entry], dict[str, Any] | None]:
        """Predicts images through the queue, in packs.

        Args:
            images: encoded images.
            model_version: a version, or None for the champion.
            probe: whether the images are made to try out the model, and so count for none of the workers' figures.
            timeout_s: how long to wait for all replies; also the deadline after which workers skip the rest.
            on_done: called with the number of images answered so far.

        Returns:
            (an entry an image, in order, with its index as `id`; the model that answered last).

        Raises:
            GenderlineError: the error that a worker replied to a whole pack, or code `timeout`.
        """
        headers: dict[str, HeaderValue] = {"deadline": time.time() + timeout_s}
        if model_version is not None:
            headers["model_version"] = model_version
        if probe:
            headers[PROBE] = True
        entries: list[Entry | None] = [None] * len(images)
        model: dict[str, Any] | None = None
        answered = 0
        if not images:
            return [], None
        with self.broker.reply_queue() as reply_queue:
            self.broker.publish_many(
                [
                    Outgoing(
                        self.broker.topology.predictions,
                        pack_message(pack, reply_to=reply_queue.name, headers=headers),
                    )
                    for pack in _packs(images)
                ]
            )
            for reply in _until(reply_queue.receive, time.monotonic() + timeout_s):
                body = _reply_body(reply)
                model = body["model"] or model
                for entry in body["predictions"]:
                    answered += entries[entry["id"]] is None
                    entries[entry["id"]] = entry
                if on_done:
                    on_done(answered)
                if answered == len(images):
                    break
        missing = len(images) - answered
        if missing:
            raise GenderlineError(
                f"no prediction for {missing} of {len(images)} images within {timeout_s:g} s; "
                "is an inference worker up, and is there a model?",
                code="timeout",
            )
        return [entry for entry in entries if entry is not None], model

    # -- models

    def promote(self, version: int, reason: str) -> None:
        """Makes a version the champion, for good reason, and tells the workers."""
        self.registry.promote(version, reason)
        self.broker.emit(MODEL_PROMOTED, {"version": version, "reason": reason})

    def rollback(self, reason: str) -> int:
        """Makes the previous champion the champion again and tells the workers. Returns its version."""
        champion = self.registry.rollback(reason).champion
        assert champion is not None  # noqa: S101 - a rollback always ends at a version
        self.broker.emit(MODEL_PROMOTED, {"version": champion, "reason": reason})
        return champion

    def challenge(self, version: int, reason: str) -> None:
        """Makes a version the challenger, and tells the workers."""
        self.registry.challenge(version, reason)
        self.broker.emit(MODEL_CHALLENGED, {"version": version, "reason": reason})

    def dismiss(self, reason: str, version: int | None = None) -> int:
        """Takes the challenger's alias away, where it is `version` if one is given. Returns which it was."""
        dismissed = self.registry.dismiss(reason, version)
        self.broker.emit(MODEL_CHALLENGED, {"version": None, "reason": reason})
        return dismissed

    def shadow(self) -> ShadowFigures | None:
        """Returns how the challenger does beside the champion; None where there is none."""
        aliases, _ = self.registry.find_aliases()
        if aliases.challenger is None or aliases.champion is None:
            return None
        return shadow_figures(self.store, aliases.challenger, aliases.champion)

    # -- how

    def _upload(
        self,
        archive: Path,
        key: str,
        on_copied: Callable[[int], None] | None,
        *,
        move: bool,
        sha256: str | None = None,
    ) -> None:
        """Copies a file into the store; the user's own stays where it is, unless it is to be moved.

        With `sha256`, the copy must have it: other content under the hash would be refused by every trainer, and later
        submissions of the right content would not replace it.
        """
        if move:
            self.store.put_file(key, archive)
            return
        with tempfile.TemporaryDirectory(prefix="genderline-") as folder, archive.open("rb") as source:
            copy = Path(folder) / "archive.zip"
            digest = hashlib.sha256()
            with copy.open("wb") as target:
                while piece := source.read(2**20):
                    target.write(piece)
                    _begin_to_store(target, len(piece))
                    if sha256 is not None:
                        digest.update(piece)
                    if on_copied:
                        on_copied(len(piece))
            if sha256 not in {None, digest.hexdigest()}:
                raise Conflict(f"{archive} changed while it was copied; submit it again once it is complete")
            self.store.put_file(key, copy)

    def _follow(
        self, pattern: str, key: str, wanted: str, look: Callable[[str], R], timeout_s: float | None
    ) -> Iterator[tuple[R, dict[str, Any] | None]]:
        """Yields a record, with the newest progress that an event told of; last the final one, without any."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self.broker.subscribe([pattern]) as events:
            record = look(wanted)
            newest: dict[str, Any] | None = None
            yield record, None
            while not record.state.is_final:
                if deadline is not None and time.monotonic() > deadline:
                    raise GenderlineError(
                        f"{wanted} is still {record.state} after {timeout_s:g} s; it goes on", code="timeout"
                    )
                for event in events.receive(_POLL_S):
                    if event.payload.get(key) == wanted:
                        newest = event.payload.get("progress", newest)
                record = look(wanted)
                yield record, None if record.state.is_final else newest


def _packs(images: Sequence[bytes]) -> Iterator[list[tuple[str | int | None, bytes]]]:
    """Yields (index, image) pairs in packs that keep to the limit on images and stay far below a message's size."""
    pack: list[tuple[str | int | None, bytes]] = []
    size = 0
    for index, data in enumerate(images):
        if pack and (len(pack) == PACK_LIMIT or size + len(data) > _PACK_BYTES):
            yield pack
            pack, size = [], 0
        pack.append((index, data))
        size += len(data)
    if pack:
        yield pack


def _until(take: Callable[[float], list[Message]], deadline: float) -> Iterator[Message]:
    """Yields replies as they come, until the deadline on the monotonic clock."""
    while (remaining := deadline - time.monotonic()) > 0:
        yield from take(min(remaining, 5.0))


def _reply_body(reply: Message) -> dict[str, Any]:
    """Returns a reply's body, or raises the error that it carries for the whole message."""
    body: dict[str, Any] = json.loads(reply.body)
    if error := body.get("error"):
        raise GenderlineError(error["message"], code=error["code"])
    return body


def _begin_to_store(file: BufferedWriter, count: int) -> None:
    """Lets the disk begin with the last bytes written, so that syncing the whole file takes less long.

    To Linux it says that nobody will read them soon; and before it can forget them it has to store them.
    """
    if hasattr(os, "posix_fadvise"):  # macOS has none
        file.flush()
        os.posix_fadvise(file.fileno(), file.tell() - count, count, os.POSIX_FADV_DONTNEED)

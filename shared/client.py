"""The Python client: everything a user can ask of the service, through the broker and the store alone."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack

from shared.archives.archive import archive_stem
from shared.broker.base import Broker, HeaderValue, Message, MessageTooLarge, Outgoing, SentBack, Unconfirmed
from shared.errors import Conflict, GenderlineError, InvalidImage, InvalidMessage, NotFound, short_repr
from shared.events import (
    JobChanged,
    JobProgressed,
    ModelChallenged,
    ModelPromoted,
    ModelRegistered,
    RunChanged,
    RunProgressed,
    parse_event,
)
from shared.faces.labelling import LabelSpec
from shared.measures.at_threshold import Measures, measure
from shared.measures.comparison import Comparison, MatrixCell, compare
from shared.measures.groups import wilson_rate
from shared.measures.labels import LabelledFaces, read_labelled_faces
from shared.measures.shadow import ShadowFigures, shadow_figures
from shared.messages import (
    PACK_LIMIT,
    PROBE,
    by_reference,
    fit_name,
    job_id_of,
    pack_message,
    prediction_error,
    request_digest,
    run_id_of,
)
from shared.params import TrainingParams
from shared.records.annotations import Annotation, AnnotationChange, Annotations, Kind
from shared.records.dataset import ARCHIVE_LABELS, LABELS_JSON, DatasetSummary, archive_key, dataset_id, find_summary
from shared.records.deletion import Deletion, Dependent
from shared.records.edits import Edits
from shared.records.jobs import Job, JobProgress, Jobs
from shared.records.predictions import THRESHOLD, predict_female, read_predictions, write_predictions
from shared.records.record import DamagedRecord, Record
from shared.records.registry import Registry
from shared.records.runs import Run, Runs
from shared.store.base import STORE_SCHEME, Store, sha256_of
from shared.store.staging import StagedFile

Entry = dict[str, Any]
"""One image's prediction or error, as in a reply."""

CURRENT_EDITS: Final = "current"
"""Names the edits of a dataset that are in force now, in the place of a hash."""
_SHA256_DIGITS: Final = 64
_PACK_BYTES: Final = 8 * 2**20
"""Images beyond this go into the next pack; RabbitMQ 4 takes no message above 16 MiB."""
_POLL_S: Final = 1.0
"""How often a follower reads the record besides listening to events, which may be lost."""
_LOG = logging.getLogger(__name__)

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
        self.annotations = Annotations(store)
        self.edits = Edits(store)

    # -- datasets

    def submit_dataset(
        self,
        archive: Path,
        *,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        train: bool = True,
        message_id: str | None = None,
        on_copied: Callable[[int], None] | None = None,
        move: bool = False,
        sha256: str | None = None,
    ) -> str:
        """Puts an archive into the store and its message on the queue.

        Args:
            archive: a local zip; it is copied.
            name: what the run is called, cut to 200 characters; by default the file's name.
            params: training parameters.
            labels: where the labels stand, as in a message.
            train: False only reads the archive, so that somebody can look at its faces before they train on them.
            message_id: makes a second submission with the same id harmless.
            on_copied: called with the number of bytes copied, piece by piece.
            move: give the file to the store instead of copying it.
            sha256: of the archive, where the caller knows it.

        Returns:
            The run's id.

        Raises:
            InvalidMessage: a parameter or a field of `labels` is unknown or out of range.
            Conflict: the file changed while it was copied, or the id belongs to a run with another archive or other
                parameters.
            Retryable: broker or store are away.
            OSError: the file cannot be read.
        """
        checked = TrainingParams.parse(dict(params or {}))
        sha256 = sha256 or sha256_of(archive)
        spec = LabelSpec.parse(None if labels is None else dict(labels))
        dataset = dataset_id(sha256, spec)

        def store_archive() -> None:
            # What is damaged there is replaced: to submit it again is the way to mend it.
            key = archive_key(dataset)
            if not self.store.holds(key, archive.stat().st_size, sha256):
                self._upload(archive, key, on_copied, move=move, sha256=sha256)

        name = name or archive_stem(archive.name)
        return self._queue_run(
            dataset, name, checked, message_id, spec, sha256, train=train, store_archive=store_archive
        )

    def train_dataset(
        self,
        sha256: str,
        *,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        edits: str | None = None,
        train: bool = True,
        message_id: str | None = None,
    ) -> str:
        """Puts a new run on the queue for a dataset whose archive is in the store already.

        Args:
            sha256: the dataset.
            name: what the run is called; by default as the dataset's newest run.
            params: training parameters.
            edits: the hash of the corrections to train with, or `CURRENT_EDITS` for those in force now; None trains on
                the labels of the archive.
            train: False only reads the archive.
            message_id: makes a second submission with the same id harmless.

        Returns:
            The run's id.

        Raises:
            NotFound: there is no such dataset, or its archive was deleted, or it has no edits of that hash.
            InvalidMessage: a parameter is unknown or out of range.
            Conflict: the edits in force are asked for, and there are none; or `message_id` belongs to another run.
            Retryable: broker or store are away.
        """
        checked = TrainingParams.parse(dict(params or {}))
        if not self.store.exists(archive_key(sha256)):
            raise NotFound(f"the archive of dataset {sha256[:12]} is not in the store; upload it again")
        if name is None:
            name = next((run.name for run in self.runs.newest() if run.dataset == sha256), sha256[:12])
        if edits == CURRENT_EDITS:
            edits = self.edits.freeze(sha256)
            if edits is None:
                raise Conflict(f"dataset {sha256[:12]} has no edits to train with")
        elif edits is not None:
            self.edits.frozen(sha256, edits)
        key = f"datasets/{sha256}/{LABELS_JSON}"
        labels = LabelSpec.parse(self.store.get_json(key)) if self.store.exists(key) else None
        archive_sha256 = sha256 if labels is None else None  # with labels, the dataset's id is another hash
        return self._queue_run(sha256, name, checked, message_id, labels, archive_sha256, edits=edits, train=train)

    def find_summary(self, sha256: str) -> DatasetSummary | None:
        """Returns what a dataset holds; None before it is decoded.

        Raises:
            DamagedRecord: its summary cannot be read.
        """
        return find_summary(self.store, sha256)

    def resolve_dataset(self, text: str) -> str:
        """Returns the whole hash of a dataset that is named by its beginning, as lists and messages show it.

        Raises:
            NotFound: no dataset's hash begins so.
            Conflict: several do.
        """
        if len(text) == _SHA256_DIGITS:
            return text
        found = [sha256 for sha256 in self.store.children("datasets") if text and sha256.startswith(text)]
        if not found:
            raise NotFound(f"there is no dataset {text!r}")
        if len(found) > 1:
            raise Conflict(f"{len(found)} datasets begin with {text!r}: {', '.join(found)}; expected more digits")
        return found[0]

    def retry_run(self, run_id: str) -> str:
        """Sends a failed run's message back to its queue; where that is gone, a new run like it takes its place.

        Returns:
            The id of the run that goes on.

        Raises:
            NotFound: there is no such run, or its archive was deleted.
            Conflict: it has not failed.
        """
        run = self.runs.get(run_id)
        if not run.state.is_retryable:
            raise Conflict(f"run {run_id} is {run.state}; only a run that failed or was rejected can be retried")
        if sent := self.broker.retry_messages(lambda message_id: message_id == run.message_id):
            self.broker.emit(*RunChanged.of(self.runs.mark_requeued(run_id, sent[-1].retried_at)).wire())
            return run_id
        if not self.runs.get(run_id).state.is_retryable:  # somebody else was faster
            return run_id
        if run.dataset is None:
            raise Conflict(f"the message of run {run_id} is gone, and its dataset is not known; upload it again")
        params = run.params.as_dict() if run.params else None
        return self.train_dataset(run.dataset, name=run.name, params=params, edits=run.edits, train=run.train)

    def _queue_run(
        self,
        dataset: str,
        name: str,
        params: TrainingParams,
        message_id: str | None,
        labels: LabelSpec | None = None,
        archive_sha256: str | None = None,
        *,
        edits: str | None = None,
        train: bool = True,
        store_archive: Callable[[], None] | None = None,
    ) -> str:
        """Queues a run; where its id is known, makes sure that the same was asked for, and leaves it as it is."""
        known = None if message_id is None else self.runs.find(run_id_of(message_id))
        message_id = message_id or uuid.uuid4().hex
        run_id = run_id_of(message_id)
        # Another name does not make it another run.
        name = fit_name(name) if known is None else known.name
        message = by_reference(
            f"{STORE_SCHEME}{archive_key(dataset)}",
            name=name,
            sha256=archive_sha256,
            params=params,
            labels=labels,
            edits=edits,
            train=train,
            message_id=message_id,
        )
        digest = request_digest(message)
        if known is not None and known.request_sha256 not in {None, digest}:
            raise _key_is_taken(known, "whose archive or parameters are others")
        if store_archive is not None:
            store_archive()
        if known is not None:
            return run_id
        self._submit(self.broker.topology.datasets, message, f"run {run_id}")
        # Last, so that a refused message leaves no run that waits forever. A trainer that was faster made the same.
        self.runs.create(
            run_id,
            message_id=message_id,
            name=name,
            params=params,
            edits=edits,
            train=train,
            request_sha256=digest,
        )
        return run_id

    def _submit(self, queue: str, message: Message, name: str) -> None:
        """Publishes a message; without a confirmation, says that the run or job may yet be done."""
        try:
            self.broker.publish(queue, message)
        except Unconfirmed as error:
            raise Unconfirmed(f"{error}: {name} may yet be done") from error

    def follow_run(self, run_id: str, timeout_s: float | None = None) -> Iterator[Run]:
        """Yields the run's record whenever something happened, and last the final one.

        Raises:
            NotFound: there is no such run.
            GenderlineError: code `timeout`, after `timeout_s`; the run goes on.
        """
        for run, event in self._follow("run.*", "run_id", run_id, self.runs.get, timeout_s):
            # Events are fresher than the record, which is written less often; until the next stage begins.
            fresher = event.progress if isinstance(event, RunProgressed) else None
            yield run.changed(progress=fresher) if fresher and fresher.stage == run.state else run

    # -- jobs

    def submit_job(
        self,
        archive: Path,
        *,
        name: str | None = None,
        model_version: int | None = None,
        message_id: str | None = None,
        on_copied: Callable[[int], None] | None = None,
        move: bool = False,
        sha256: str | None = None,
    ) -> str:
        """Puts an archive of images into the store and a job on the queue.

        Args:
            archive: a local archive; it is copied.
            name: what the job is called; by default the file's name.
            model_version: a version, or None for the champion.
            message_id: makes a second submission with the same id harmless.
            on_copied: called with the number of bytes copied, piece by piece.
            move: give the file to the store instead of copying it.
            sha256: of the archive, where the caller knows it.

        Returns:
            The job's id.

        Raises:
            Conflict: the file changed while it was copied, or the id belongs to a job with another archive.
            Retryable: broker or store are away.
            OSError: the file cannot be read.
        """
        if message_id is not None and (known := self.jobs.find(job_id_of(message_id))) is not None:
            key = known.archive or Jobs.archive_key(known.job_id)
            if not self.store.holds(key, archive.stat().st_size, sha256 or sha256_of(archive)):
                raise _key_is_taken(known, "whose archive is another")
            return known.job_id
        message_id = message_id or uuid.uuid4().hex
        key = Jobs.archive_key(job_id_of(message_id))
        # Over what an earlier try may have left, which need not be the same.
        self._upload(archive, key, on_copied, move=move, sha256=sha256)
        return self._queue_job(key, name or archive_stem(archive.name), model_version, message_id)

    def predict_dataset(self, sha256: str, model_version: int) -> str:
        """Puts a job on the queue that predicts every image of a dataset. Returns the job's id.

        Raises:
            NotFound: there is no such dataset, or its archive was deleted.
            Retryable: broker or store are away.
        """
        key = archive_key(sha256)
        if not self.store.exists(key):
            raise NotFound(f"the archive of dataset {sha256[:12]} is not in the store; upload it again")
        return self._queue_job(key, f"dataset {sha256[:12]} by model {model_version}", model_version, uuid.uuid4().hex)

    def _queue_job(self, key: str, name: str, model_version: int | None, message_id: str) -> str:
        name, job_id = fit_name(name), job_id_of(message_id)
        headers: dict[str, HeaderValue] = {} if model_version is None else {"model_version": model_version}
        uri = f"{STORE_SCHEME}{key}"
        message = by_reference(uri, name=name, message_id=message_id, headers=headers)
        self._submit(self.broker.topology.jobs, message, f"job {job_id}")
        self.jobs.create(job_id, message_id=message_id, name=name, request_sha256=request_digest(message))
        return job_id

    def retry_job(self, job_id: str) -> str:
        """Sends a failed job's messages back to their queues. Returns its id.

        Raises:
            NotFound: there is no such job.
            Conflict: it has not failed, or its messages are gone.
        """
        job = self.jobs.get(job_id)
        if not job.state.is_retryable:
            raise Conflict(f"job {job_id} is {job.state}; only a job that failed or was rejected can be retried")
        if sent := self.broker.retry_messages(lambda it: it == job.message_id or it.startswith(f"{job_id}.")):
            self.broker.emit(*JobChanged.of(self.jobs.mark_requeued(job_id, sent[-1].retried_at)).wire())
        elif self.jobs.get(job_id).state.is_retryable:  # and nobody else was faster
            raise Conflict(f"the message of job {job_id} is gone; upload its images again")
        return job_id

    def follow_job(self, job_id: str, timeout_s: float | None = None) -> Iterator[tuple[Job, JobProgress]]:
        """Yields the job's record and how far it is, whenever something happened, and last the final one.

        Raises:
            NotFound: there is no such job.
            GenderlineError: code `timeout`, after `timeout_s`; the job goes on.
        """
        for job, event in self._follow("job.*", "job_id", job_id, self.jobs.get, timeout_s):
            yield job, event.progress if isinstance(event, JobProgressed) else self.jobs.progress(job)

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
            for index, entry in self._publish_packs(images, reply_queue.name, headers).items():
                entries[index] = entry
                answered += 1
            if on_done and answered:
                on_done(answered)
            deadline = time.monotonic() + timeout_s
            for reply in () if answered == len(images) else _until(reply_queue.receive, deadline):
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

    def _publish_packs(
        self, images: Sequence[bytes], reply_to: str, headers: Mapping[str, HeaderValue]
    ) -> dict[int, Entry]:
        """Publishes images in packs. Returns index → error entry of those that the broker does not take."""

        def outgoing(pack: Sequence[tuple[int, bytes]]) -> Outgoing:
            message = pack_message(pack, reply_to=reply_to, headers=headers)
            return Outgoing(self.broker.topology.predictions, message)

        packs = list(_packs(images))
        large = [pack for pack in packs if len(pack[0][1]) > _PACK_BYTES]  # each one image
        self.broker.publish_many([outgoing(pack) for pack in packs if len(pack[0][1]) <= _PACK_BYTES])
        refused: dict[int, Entry] = {}
        for ((index, image),) in large:
            try:
                self.broker.publish_many([outgoing([(index, image)])])
            except MessageTooLarge:
                told = f"found an image of {len(image):,} bytes, which the broker takes in no message; expected fewer"
                refused[index] = prediction_error(index, InvalidImage(told, code="image_too_large"))
        return refused

    # -- models

    def promote(self, version: int, reason: str, *, user: str | None = None) -> None:
        """Makes a version the champion, for good reason, and tells the workers."""
        self.registry.promote(version, reason, user=user)
        self.broker.emit(*ModelPromoted(version=version, reason=reason).wire())

    def adopt(self, version: int, reason: str) -> bool:
        """Announces a version that no run has made, and makes it the champion where there is none.

        Returns:
            Whether it is the champion.
        """
        card = self.registry.card(version)
        self.broker.emit(*ModelRegistered(version=version, run_id=card.run_id, metrics=card.metrics).wire())
        promoted = self.registry.promote_over(None, version, reason)
        if promoted:
            self.broker.emit(*ModelPromoted(version=version, reason=reason).wire())
        return promoted

    def rollback(self, reason: str, *, expected: int | None = None, user: str | None = None) -> int:
        """Makes the previous champion the champion again and tells the workers. Returns its version.

        Raises:
            Conflict: there is no previous champion, or it is not `expected`, where one is given.
        """
        champion = self.registry.rollback(reason, expected=expected, user=user).champion
        assert champion is not None  # noqa: S101 - a rollback always ends at a version
        self.broker.emit(*ModelPromoted(version=champion, reason=reason).wire())
        return champion

    def challenge(self, version: int, reason: str, *, user: str | None = None) -> None:
        """Makes a version the challenger, and tells the workers."""
        self.registry.challenge(version, reason, user=user)
        self.broker.emit(*ModelChallenged(version=version, reason=reason).wire())

    def dismiss(self, reason: str, version: int | None = None, *, user: str | None = None) -> int:
        """Takes the challenger's alias away, where it is `version` if one is given. Returns which it was."""
        dismissed = self.registry.dismiss(reason, version, user=user)
        self.broker.emit(*ModelChallenged(version=None, reason=reason).wire())
        return dismissed

    def shadow(self) -> ShadowFigures | None:
        """Returns how the challenger does beside the champion; None where there is none."""
        aliases, _ = self.registry.find_aliases()
        if aliases.challenger is None or aliases.champion is None:
            return None
        return shadow_figures(self.store, aliases.challenger, aliases.champion)

    def compare(
        self,
        first: int,
        second: int,
        *,
        dataset: str | None = None,
        split: str = "test",
        threshold: float = THRESHOLD,
        labels: str = "",
    ) -> tuple[Comparison, LabelledFaces]:
        """Compares two models on the same faces.

        Args:
            first: version of the model before.
            second: version of the model after.
            dataset: whose faces; by default those of `common_dataset`.
            split: a part of it, or `ALL_FACES`.
            threshold: predicted female from here on, by both.
            labels: the hash of the edits that make the labels, or `ARCHIVE_LABELS`; empty for those in force now.

        Returns:
            (the comparison, the faces that its indices mean).

        Raises:
            NotFound: there is no such model or dataset, or a model has not predicted it.
            Conflict: the dataset has no such faces.
        """
        cards = [self.registry.card(version) for version in (first, second)]
        sha256 = dataset or self.common_dataset(first, second)
        faces = read_labelled_faces(self.store, sha256, labels)
        probabilities = []
        for card in cards:
            try:
                probabilities.append(read_predictions(self.store, sha256, card, len(faces.names)))
            except NotFound:
                raise NotFound(f"model {card.version} has not predicted dataset {sha256[:12]}") from None
        found = compare(faces.labels, probabilities[0], probabilities[1], faces.members(split), threshold)
        if found is None:
            raise Conflict(f"dataset {sha256[:12]} has no {split} faces to compare on")
        return found, faces

    def common_dataset(self, first: int, second: int) -> str:
        """Returns the dataset to compare two models on: the second's own, or the first's where that is not here."""
        own = [self.registry.card(version).dataset.sha256 for version in (second, first)]
        return next((sha256 for sha256 in own if self.find_summary(sha256)), own[0])

    def measure(
        self,
        version: int,
        *,
        dataset: str | None = None,
        split: str = "test",
        threshold: float = THRESHOLD,
        labels: str | None = None,
    ) -> Measures:
        """Returns how well a model predicts the faces of a dataset at a decision threshold.

        Args:
            version: the model.
            dataset: whose faces; by default those of the dataset that it was trained on.
            split: a part of it, or `ALL_FACES`.
            threshold: predicted female from here on.
            labels: as `compare` takes them; by default those that the model was trained with, on its own dataset.

        Raises:
            NotFound: there is no such model or dataset, or the model has not predicted it.
            Conflict: the dataset has no such faces.
        """
        card = self.registry.card(version)
        sha256 = dataset or card.dataset.sha256
        if labels is None:
            labels = card.dataset.labels if sha256 == card.dataset.sha256 else ""
        faces = read_labelled_faces(self.store, sha256, labels)
        try:
            probabilities = read_predictions(self.store, sha256, card, len(faces.names))
        except NotFound:
            raise NotFound(f"model {version} has not predicted dataset {sha256[:12]}") from None
        found = measure(faces.labels, probabilities, faces.members(split), threshold)
        if found is None:
            raise Conflict(f"dataset {sha256[:12]} has no {split} faces")
        return found

    def accuracy_matrix(self) -> list[MatrixCell]:
        """Returns the accuracy of every model on the test faces of every dataset, by their labels now."""
        cards = self.registry.cards().records
        faces: dict[str, LabelledFaces] = {}
        for sha256 in self.store.children("datasets"):
            with contextlib.suppress(NotFound):  # not processed yet
                faces[sha256] = read_labelled_faces(self.store, sha256)
        cells = []
        for card in cards:
            for sha256, found in faces.items():
                accuracy = None
                with contextlib.suppress(NotFound):  # not predicted yet
                    probabilities = read_predictions(self.store, sha256, card, len(found.names))
                    correct = predict_female(probabilities) == (found.labels.gender == 1)
                    test = found.members("test")
                    accuracy = wilson_rate(int((correct & test).sum()), int(test.sum()))
                own = card.dataset.sha256 == sha256
                cells.append(MatrixCell(version=card.version, dataset=sha256, accuracy=accuracy, trained_on_it=own))
        return cells

    def score_dataset(self, sha256: str, version: int, on_progress: Callable[[JobProgress], None]) -> None:
        """Has a model predict every face of a dataset that it was not trained on, as a job, and keeps the result.

        Raises:
            NotFound: there is no such dataset or model, or the archive was deleted.
            GenderlineError: the job ended without results.
        """
        self.registry.card(version)
        names = read_labelled_faces(self.store, sha256, ARCHIVE_LABELS).names
        job_id = self.predict_dataset(sha256, version)
        for job, progress in self.follow_job(job_id):
            on_progress(progress)
            if job.error is not None:
                raise GenderlineError(job.error.message, code=job.error.code)
        write_predictions(self.store, sha256, version, names, self.store.get(Jobs.results_key(job_id)).decode())

    # -- failed messages

    def retry_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        """Sends dead letters back to their queues; their runs and jobs are queued again. None means all.

        Returns:
            How many.
        """
        sent = self.broker.retry_dead(dead_ids)
        self._mark_requeued(sent)
        return len(sent)

    # -- names, notes, tags, and the end

    def annotate(
        self, kind: Kind, which: str, *, user: str | None = None, **change: Unpack[AnnotationChange]
    ) -> Annotation:
        """Gives a dataset, run, model or job a name, a note and tags, as `Annotations.change` does.

        Raises:
            NotFound: there is no such thing.
            InvalidMessage: something is too long, or cannot be shown.
            Conflict: the name or note is another than was seen.
        """
        if not self._exists(kind, which):
            raise NotFound(f"there is no {kind} {which!r}")
        return self.annotations.change(kind, which, user=user, **change)

    def dependents(self, kind: Kind, which: str) -> list[Dependent]:
        """Returns what loses something if this is deleted, or raises `NotFound` or `Conflict` as `delete` would."""
        return Deletion(self.store).dependents(kind, which)

    def delete(self, kind: Kind, which: str, *, user: str | None = None) -> None:
        """Deletes a dataset, run, model or job for good, unless it is in use.

        Raises:
            NotFound: there is no such thing.
            Conflict: it is in use.
        """
        Deletion(self.store).delete(kind, which, user=user)

    def _exists(self, kind: Kind, which: str) -> bool:
        if kind == "dataset":
            return which in self.store.children("datasets")
        if kind == "model":
            return which.isdecimal() and self.store.exists(self.registry.card_key(int(which)))
        return self.store.exists(self.runs.key(which) if kind == "run" else self.jobs.key(which))

    # -- how

    def _mark_requeued(self, sent: Sequence[SentBack]) -> None:
        """Makes the runs and jobs queued again whose messages were sent back, and tells so."""
        for each in sent:
            # A message that was refused before it had a record has none, nor has one that a stranger put there.
            with contextlib.suppress(NotFound, InvalidMessage):
                try:
                    self._mark_one_requeued(each)
                except DamagedRecord as error:
                    _LOG.warning("message %s was sent back: %s", short_repr(each.message_id), error)

    def _mark_one_requeued(self, sent: SentBack) -> None:
        topology = self.broker.topology
        queue, message_id, retried_at = sent
        if queue == topology.datasets:
            run = self.runs.mark_requeued(run_id_of(message_id), retried_at)
            self.broker.emit(*RunChanged.of(run).wire())
        elif queue in (topology.jobs, topology.shards):
            job_id = job_id_of(message_id) if queue == topology.jobs else message_id.rpartition(".")[0]
            self.broker.emit(*JobChanged.of(self.jobs.mark_requeued(job_id, retried_at)).wire())

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

        With `sha256`, the copy must have it: other content under the hash would be refused by every trainer.
        """
        if move:
            self.store.put_file(key, archive)
            return
        with archive.open("rb") as source:
            copy = StagedFile(self.store.staging_folder(), hashed=sha256 is not None)
            try:
                while piece := source.read(2**20):
                    copy.write(piece)
                    if on_copied:
                        on_copied(len(piece))
                if sha256 is not None and sha256 != copy.sha256:
                    raise Conflict(f"{archive} changed while it was copied; submit it again once it is complete")
                copy.close()
                self.store.put_file(key, copy.path)
            finally:
                copy.discard()

    def _follow(
        self, pattern: str, key: str, wanted: str, look: Callable[[str], R], timeout_s: float | None
    ) -> Iterator[tuple[R, RunProgressed | JobProgressed | None]]:
        """Yields a record, with the newest progress that an event told of; last the final one, without any."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self.broker.subscribe([pattern]) as events:
            record = look(wanted)
            newest: RunProgressed | JobProgressed | None = None
            yield record, None
            while not record.state.is_final:
                if deadline is not None and time.monotonic() > deadline:
                    raise GenderlineError(
                        f"{wanted} is still {record.state} after {timeout_s:g} s; it goes on", code="timeout"
                    )
                for event in events.receive(_POLL_S):
                    if event.payload.get(key) == wanted:
                        parsed = parse_event(event)
                        newest = parsed if isinstance(parsed, RunProgressed | JobProgressed) else newest
                record = look(wanted)
                yield record, None if record.state.is_final else newest


def _key_is_taken(record: Run | Job, difference: str) -> Conflict:
    """Returns the error of a submission under the key of another one, which was made for something else."""
    return Conflict(
        f"the key {short_repr(record.message_id)} belongs to {record.record_id} of {record.created}, {difference}; "
        "expected the same request again, or a new key"
    )


def _packs(images: Sequence[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Yields (index, image) pairs in packs that keep to the limit on images and stay far below a message's size."""
    pack: list[tuple[int, bytes]] = []
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

"""What the store holds, read once where it cannot change any more: so that a page costs no hundred files.

Another process may delete any of it. So an object that a page asks for by its id is looked for in the store before it
is served from memory. Lists begin with the ids in the store, and look for nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.archives.archive import Archive, ArchiveLimits, plain_archive
from shared.datasets.columns import Dataset, load_dataset, with_corrections
from shared.errors import NotFound, Retryable
from shared.measures.groups import wilson_rate
from shared.records.annotations import Annotation, Annotations, Kind, with_name
from shared.records.dataset import (
    REFUSAL_JSON,
    REJECTS_CSV,
    SPLITS,
    SUMMARY_JSON,
    DatasetRefusal,
    DatasetSummary,
    RejectRow,
    find_summary,
    read_rejects_csv,
)
from shared.records.edits import Corrections, EditHistory, Edits, edits_key
from shared.records.evaluation import Rate
from shared.records.jobs import Job, Jobs
from shared.records.model_card import ModelCard
from shared.records.predictions import (
    list_predicting_versions,
    out_of_fold_key,
    predict_female,
    predictions_keys,
    read_out_of_fold,
    read_predictions,
)
from shared.records.record import DamagedRecord, Listing, Record, parse_record
from shared.records.registry import Registry
from shared.records.runs import Run, Runs
from shared.store.base import Store

_DATASETS_CACHED: Final = 4
_EDITED_CACHED: Final = 8
_PREDICTIONS_CACHED: Final = 16
_ARCHIVES_CACHED: Final = 4
_SMALL_CACHED: Final = 2000

_LOG = logging.getLogger(__name__)
_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_R = TypeVar("_R", bound=Record)


class LruCache(Generic[_K, _V]):
    """The most recently used values; `load` runs outside the lock, so a slow one holds up nobody else."""

    def __init__(self, load: Callable[[_K], _V], most: int) -> None:
        self._load = load
        self._most = most
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _K) -> _V:
        """Returns the value, loaded where it is not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = self._load(key)
        self.put(key, value)
        return value

    def find(self, key: _K) -> _V | None:
        """Returns the value if it is cached."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: _K, value: _V) -> None:
        """Caches a value, and lets go of the one that was used longest ago."""
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def drop(self, key: _K) -> None:
        """Lets go of a value, if it is cached."""
        with self._lock:
            self._values.pop(key, None)

    def drop_where(self, applies: Callable[[_K], bool]) -> None:
        """Lets go of the values whose keys fit."""
        with self._lock:
            for key in [key for key in self._values if applies(key)]:
                del self._values[key]

    def clear(self) -> None:
        """Lets go of all values."""
        with self._lock:
            self._values.clear()


class StoreCache:
    """Runs, jobs, models and datasets of a store.

    Args:
        store: where they lie.
        clock: seconds, monotonic.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._found: LruCache[tuple[str, int], bool] = LruCache(lambda key: self._look_for(key[0]), _SMALL_CACHED)
        self._runs = Runs(store)
        self._jobs = Jobs(store)
        self._registry = Registry(store)
        self._annotations = Annotations(store)
        self._ended_runs: LruCache[str, Run] = LruCache(self._runs.get, _SMALL_CACHED)
        self._ended_jobs: LruCache[str, Job] = LruCache(self._jobs.get, _SMALL_CACHED)
        self._cards: LruCache[int, ModelCard] = LruCache(self._registry.card, _SMALL_CACHED)
        self._summaries: LruCache[str, DatasetSummary] = LruCache(self._load_summary, _SMALL_CACHED)
        self._datasets: LruCache[str, Dataset] = LruCache(self._load_dataset, _DATASETS_CACHED)
        self._edits = Edits(store)
        self._histories: LruCache[tuple[str, bytes], tuple[EditHistory, Corrections]] = LruCache(
            lambda key: self._load_history(*key), _EDITED_CACHED
        )
        self._named_corrections: LruCache[tuple[str, str], Corrections] = LruCache(
            lambda key: self._edits.corrections(*key), _EDITED_CACHED
        )
        self._edited: LruCache[tuple[str, Corrections], Dataset] = LruCache(
            lambda key: with_corrections(self.dataset(key[0]), key[1]), _EDITED_CACHED
        )
        self._archives: LruCache[tuple[str, ArchiveLimits], Archive] = LruCache(
            lambda key: self._open_archive(*key), _ARCHIVES_CACHED
        )
        self._out_of_fold: LruCache[tuple[str, int], NDArray[np.float32]] = LruCache(
            lambda key: self._load_out_of_fold(*key), _PREDICTIONS_CACHED
        )
        self._predictions: LruCache[tuple[str, int], NDArray[np.float32]] = LruCache(
            lambda key: self._load_predictions(*key), _PREDICTIONS_CACHED
        )
        self._test_accuracies: LruCache[tuple[str, int, Corrections], Rate] = LruCache(
            lambda key: self._measure_accuracy(*key[:2]), _SMALL_CACHED
        )

    # -- runs and jobs

    def runs(self, limit: int | None = None, offset: int = 0, tag: str | None = None) -> Listing[Run]:
        """Returns the records of all runs, or of a page of them, or of those with a tag, as `Runs.page` does."""
        return self._runs.page(limit, offset, self._named_runs(), self._tagged("run", tag))

    def open_runs(self) -> Listing[Run]:
        """Returns the records of the runs that have not ended, newest first."""
        return self._runs.open(self._named_runs())

    def ended_runs(self, open_runs: Iterable[Run]) -> Iterator[Run]:
        """Yields the records of the runs that have ended, newest first, each read only when it is asked for.

        Args:
            open_runs: those that have not, and so need not be read.
        """
        passed_over, find = {run.run_id for run in open_runs}, self._named_runs()
        found = self._runs.newest(lambda run_id: None if run_id in passed_over else find(run_id))
        return (run for run in found if run.state.is_final)

    def find_run(self, run_id: str) -> Run | None:
        """Returns a run's record, or None."""
        self._forget_deleted("run", run_id)
        run = self._find_run(run_id)
        return run and with_name(run, self.annotation("run", run_id))

    def run(self, run_id: str) -> Run:
        """Returns a run's record, or raises `NotFound`."""
        return self.find_run(run_id) or self._runs.get(run_id)

    def jobs(self, limit: int | None = None, offset: int = 0, tag: str | None = None) -> Listing[Job]:
        """Returns the records of all jobs, or of a page of them, or of those with a tag, as `Jobs.page` does."""
        annotations = self.annotations("job")

        def find(job_id: str) -> Job | None:
            job = self._find_job(job_id)
            return job and with_name(job, annotations.get(job_id))

        return self._jobs.page(limit, offset, find, self._tagged("job", tag))

    def find_job(self, job_id: str) -> Job | None:
        """Returns a job's record, or None."""
        self._forget_deleted("job", job_id)
        job = self._find_job(job_id)
        return job and with_name(job, self.annotation("job", job_id))

    def job(self, job_id: str) -> Job:
        """Returns a job's record, or raises `NotFound`."""
        return self.find_job(job_id) or self._jobs.get(job_id)

    # -- names, notes and tags

    def annotations(self, kind: Kind) -> dict[str, Annotation]:
        """Returns what people say of the things of one kind, by id; nothing while the file is damaged."""
        return self._annotations.find_all(kind)[0]

    def annotation(self, kind: Kind, which: str) -> Annotation | None:
        """Returns what people say of one thing, if they do."""
        return self.annotations(kind).get(which)

    # -- models

    def cards(self, limit: int | None = None, offset: int = 0, tag: str | None = None) -> Listing[ModelCard]:
        """Returns the cards of all models, or of a page of them, or of those with a tag, as `Registry.page` does."""
        tagged = self._tagged("model", tag)
        only = None if tagged is None else {int(version) for version in tagged}
        return self._registry.page(limit, offset, self._cards.get, only)

    def card(self, version: int) -> ModelCard:
        """Returns a model's card, or raises `NotFound` or `DamagedRecord`."""
        self._forget_deleted("model", str(version))
        return self._cards.get(version)

    def champion(self) -> int | None:
        """Returns the version that serves; None where there is none, or the file that names it is damaged."""
        return self._registry.find_aliases()[0].champion

    def find_card(self, version: int) -> ModelCard | None:
        """Returns a model's card; None where the model was deleted."""
        try:
            return self.card(version)
        except NotFound:
            return None

    def forget(self, kind: Kind, which: str) -> None:
        """Lets go of what is cached of something that was deleted."""
        self._archives.drop_where(lambda key: key[0].startswith(f"{kind}s/{which}/"))
        if kind == "model":
            self._cards.drop(int(which))
            for by_version in (self._predictions, self._out_of_fold, self._test_accuracies):
                by_version.drop_where(lambda key: key[1] == int(which))
        elif kind == "dataset":
            self._summaries.drop(which)
            self._datasets.drop(which)
            self._histories.drop_where(lambda key: key[0] == edits_key(which))
            for by_dataset in (
                self._named_corrections,
                self._edited,
                self._predictions,
                self._out_of_fold,
                self._test_accuracies,
            ):
                by_dataset.drop_where(lambda key: key[0] == which)
        else:
            (self._ended_runs if kind == "run" else self._ended_jobs).drop(which)

    # -- datasets

    def named_datasets(self, tag: str | None = None) -> Iterator[tuple[str, str | None]]:
        """Yields (hash, name) of every dataset, those with the newest runs first; with a tag, of those that have it.

        The name is the one that people gave to it, else that of its newest run. Runs are read only as far as the caller
        goes on.
        """
        annotations = self.annotations("dataset")

        def name(sha256: str, otherwise: str | None) -> str | None:
            found = annotations.get(sha256)
            return found.name if found and found.name else otherwise

        left = dict.fromkeys(self.dataset_ids(tag))
        runs = self._runs.newest(self._named_runs())
        while left and (run := next(runs, None)) is not None:
            if run.dataset in left:
                del left[run.dataset]
                yield run.dataset, name(run.dataset, run.name)
        for sha256 in left:
            yield sha256, name(sha256, None)

    def decoded_datasets(self) -> Iterator[tuple[str, str, DatasetSummary]]:
        """Yields (hash, name, what it holds) of every decoded dataset that can be read, as `named_datasets` does."""
        for sha256, name in self.named_datasets():
            if summary := self.readable_summary(sha256):
                yield sha256, name or sha256[:12], summary

    def dataset_ids(self, tag: str | None = None) -> list[str]:
        """Returns the hashes of all datasets, or of those with a tag, whose archive is here, decoded or not."""
        tagged = self._tagged("dataset", tag)
        return [sha256 for sha256 in self._store.children("datasets") if tagged is None or sha256 in tagged]

    def summary(self, sha256: str) -> DatasetSummary | None:
        """Returns what a dataset holds; None before it is decoded, or raises `DamagedRecord`."""
        self._forget_deleted("dataset", sha256)
        return self._find_summary(sha256)

    def _find_summary(self, sha256: str) -> DatasetSummary | None:
        try:
            return self._summaries.get(sha256)
        except NotFound:
            return None

    def readable_summary(self, sha256: str) -> DatasetSummary | None:
        """Returns the same for a list of datasets, of which a damaged one must not keep the others from being shown."""
        try:
            return self._find_summary(sha256)
        except DamagedRecord as error:
            _LOG.error("%s", error)
            return None

    def dataset(self, sha256: str) -> Dataset:
        """Returns a decoded dataset.

        Raises:
            NotFound: there is none of that hash, or it is not decoded yet.
            DamagedRecord: one of its files is not what it should be.
        """
        self._forget_deleted("dataset", sha256)
        return self._datasets.get(sha256)

    def edit_history(self, sha256: str) -> EditHistory:
        """Returns the edits of a dataset's labels; none where nobody made any."""
        return self._history(sha256)[0]

    def corrections(self, sha256: str) -> Corrections:
        """Returns what the edits that are in force make of a dataset's labels."""
        return self._history(sha256)[1]

    def edited(self, sha256: str, labels: str = "", until: int | None = None) -> Dataset:
        """Returns a decoded dataset with corrected labels.

        Args:
            sha256: the dataset.
            labels: the hash of the corrections that a run was given, or `ARCHIVE_LABELS`; empty for those in force now.
            until: those that were in force after so many changes, as `EditHistory.corrections` counts them; None takes
                those in force now.

        Raises:
            NotFound: there is no such dataset, it is not decoded yet, or it has no edits of that hash.
        """
        self._forget_deleted("dataset", sha256)
        if labels:
            corrections = self._named_corrections.get((sha256, labels))
        elif until is None:
            corrections = self.corrections(sha256)
        else:
            corrections = self.edit_history(sha256).corrections(until)
        return self.dataset(sha256) if corrections.is_empty else self._edited.get((sha256, corrections))

    def refusal(self, sha256: str) -> DatasetRefusal | None:
        """Returns why an archive did not become a dataset; None where it did, or was not processed yet."""
        key = f"datasets/{sha256}/{REFUSAL_JSON}"
        return DatasetRefusal.model_validate_json(self._store.get(key)) if self._store.exists(key) else None

    def rejects(self, sha256: str) -> list[RejectRow]:
        """Returns the entries that were left out, in archive order."""
        text = self._store.get(f"datasets/{sha256}/{REJECTS_CSV}").decode()
        return read_rejects_csv(io.StringIO(text, newline=""))

    def predicting_versions(self, sha256: str) -> list[int]:
        """Returns the model versions whose predictions for a dataset's faces may be in the store, newest first."""
        return list_predicting_versions(self._store, sha256, self.cards().records)

    def predictions(self, sha256: str, version: int) -> NDArray[np.float32] | None:
        """Returns float32 (N,), the probability of female of every face by a model; None where there are none."""
        try:
            self._drop_deleted(self._predictions, sha256, version, predictions_keys)
            return self._predictions.get((sha256, version))
        except NotFound:
            return None

    def out_of_fold_predictions(self, sha256: str, version: int) -> NDArray[np.float32] | None:
        """Returns predictions by weights of a model that have not learned from the face; None where there are none.

        A model that was trained on other faces has learned from none of these.
        """
        try:
            self._drop_deleted(self._out_of_fold, sha256, version, lambda _, card: [out_of_fold_key(card.run_id)])
            return self._out_of_fold.get((sha256, version))
        except NotFound:
            return None

    def test_accuracy(self, sha256: str, version: int) -> Rate | None:
        """Returns a model's accuracy on a dataset's test faces, by their labels now; None where it predicted none."""
        try:
            self._forget_deleted("dataset", sha256)
            card = self.card(version)
            # Its own predictions go with its run; others go with the dataset or the model.
            if card.dataset.sha256 == sha256 and not any(map(self._exists, predictions_keys(sha256, card))):
                return None
            return self._test_accuracies.get((sha256, version, self.corrections(sha256)))
        except NotFound:
            return None

    # -- archives

    def archive(self, key: str, limits: ArchiveLimits) -> Archive:
        """Returns an archive in the store, open for any thread to read; it closes when nobody holds it any more.

        Raises:
            NotFound: there is none under the key.
            InvalidDataset: it breaks a limit or is damaged.
        """
        if self._archives.find((key, limits)) is not None and not self._exists(key):
            self._archives.drop((key, limits))
        return self._archives.get((key, limits))

    def close(self) -> None:
        """Lets go of everything that is kept."""
        self._archives.clear()
        self._edited.clear()
        self._predictions.clear()
        self._out_of_fold.clear()
        self._datasets.clear()

    # -- how

    def _forget_deleted(self, kind: Kind, which: str) -> None:
        """Lets go of something that is cached, if it was deleted, by this process or another one."""
        cached: object
        if kind == "model":
            cached, key = self._cards.find(int(which)), self._registry.card_key(int(which))
        elif kind == "dataset":
            cached, key = self._summaries.find(which), f"datasets/{which}/{SUMMARY_JSON}"
        elif kind == "run":
            cached, key = self._ended_runs.find(which), self._runs.key(which)
        else:
            cached, key = self._ended_jobs.find(which), self._jobs.key(which)
        if cached is not None and not self._exists(key):
            self.forget(kind, which)

    def _drop_deleted(
        self,
        cache: LruCache[tuple[str, int], NDArray[np.float32]],
        sha256: str,
        version: int,
        locate: Callable[[str, ModelCard], list[str]],
    ) -> None:
        """Lets go of a model's predictions where their file was deleted; raises `NotFound` where the model was."""
        card = self.card(version)
        if cache.find((sha256, version)) is not None and not any(map(self._exists, locate(sha256, card))):
            cache.drop((sha256, version))

    def _exists(self, key: str) -> bool:
        """Returns whether an object was there within this second: no thumbnail costs a request of its own on S3."""
        return self._found.get((key, int(self._clock())))

    def _look_for(self, key: str) -> bool:
        try:
            return self._store.exists(key)
        except Retryable:
            return True  # the store is away: memory goes on serving

    def _measure_accuracy(self, sha256: str, version: int) -> Rate:
        probabilities = self._predictions.get((sha256, version))
        data = self.edited(sha256)
        test = data.split == SPLITS.index("test")
        correct = predict_female(probabilities) == (data.gender == 1)
        rate = wilson_rate(int((correct & test).sum()), int(test.sum()))
        if rate is None:
            raise NotFound(f"dataset {sha256[:12]} has no test faces")
        return rate

    def _named_runs(self) -> Callable[[str], Run | None]:
        """Returns what finds a run under the name that people gave to it, with all names read once."""
        annotations = self.annotations("run")

        def find(run_id: str) -> Run | None:
            run = self._find_run(run_id)
            return run and with_name(run, annotations.get(run_id))

        return find

    def _tagged(self, kind: Kind, tag: str | None) -> set[str] | None:
        """Returns the ids of the things that have a tag; None for all things."""
        return None if tag is None else {key for key, found in self.annotations(kind).items() if tag in found.tags}

    def _find_run(self, run_id: str) -> Run | None:
        return _read_unless_final(self._ended_runs, self._runs.find, run_id)

    def _find_job(self, job_id: str) -> Job | None:
        return _read_unless_final(self._ended_jobs, self._jobs.find, job_id)

    def _load_summary(self, sha256: str) -> DatasetSummary:
        if (found := find_summary(self._store, sha256)) is None:
            raise NotFound(f"there is no decoded dataset {sha256[:12]!r}")
        return found

    def _load_dataset(self, sha256: str) -> Dataset:
        return load_dataset(self._store, sha256, self._summaries.get(sha256))

    def _open_archive(self, key: str, limits: ArchiveLimits) -> Archive:
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(self._store.local(key))
            plain = stack.enter_context(plain_archive(path, limits))
            archive = Archive(stack.enter_context(plain.open("rb")), limits)
            weakref.finalize(archive, stack.pop_all().close)
            return archive

    def _history(self, sha256: str) -> tuple[EditHistory, Corrections]:
        key = edits_key(sha256)
        try:
            data = self._store.get(key)
        except NotFound:
            return EditHistory(), Corrections()
        return self._histories.get((key, data))

    def _load_history(self, key: str, data: bytes) -> tuple[EditHistory, Corrections]:
        history = parse_record(data, key, EditHistory)
        return history, history.corrections()

    def _load_out_of_fold(self, sha256: str, version: int) -> NDArray[np.float32]:
        return read_out_of_fold(self._store, sha256, self.card(version), self._summaries.get(sha256).faces)

    def _load_predictions(self, sha256: str, version: int) -> NDArray[np.float32]:
        return read_predictions(self._store, sha256, self.card(version), self._summaries.get(sha256).faces)


def _read_unless_final(ended: LruCache[str, _R], find: Callable[[str], _R | None], key: str) -> _R | None:
    """Returns a record, read again for as long as it can change."""
    record = ended.find(key) or find(key)
    # Sent back from the dead letters, what has failed or was rejected goes on: its record may change yet.
    if record and record.state.is_final and not record.state.is_retryable:
        ended.put(key, record)
    return record

"""What the store holds, read once where it cannot change any more: so that a page costs no hundred files."""

from __future__ import annotations

import contextlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import NotFound
from shared.records.dataset import (
    FACES_CSV,
    FACES_NPY,
    REFUSAL_JSON,
    REJECTS_CSV,
    SPLITS,
    SUMMARY_JSON,
    DatasetRefusal,
    DatasetSummary,
    RejectRow,
    read_faces_csv,
    read_rejects_csv,
)
from shared.records.jobs import Job, Jobs
from shared.records.model_card import ModelCard
from shared.records.predictions import read_predictions
from shared.records.record import Listing, Record
from shared.records.registry import Registry
from shared.records.runs import Run, Runs
from shared.store.base import Store

_DATASETS_CACHED: Final = 4
_PREDICTIONS_CACHED: Final = 16
_SMALL_CACHED: Final = 2000

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A decoded dataset, as columns.

    Attributes:
        sha256: its id.
        summary: what it holds.
        names: of the archive's entries, by the face's index.
        age: int16 (N,), years, or `UNKNOWN`.
        gender: uint8 (N,), index into `shared.faces.labels.GENDERS`.
        ethnicity: int16 (N,), index into `shared.faces.labels.ETHNICITIES`, or `UNKNOWN`.
        split: uint8 (N,), index into `shared.records.dataset.SPLITS`.
        sizes: uint32 (N, 2), width and height of the original image in pixels.
        faces: uint8 (N, 128, 128), luma, mapped from the file.
        held: keeps the file of `faces` there.
    """

    sha256: str
    summary: DatasetSummary
    names: list[str]
    age: NDArray[np.int16]
    gender: NDArray[np.uint8]
    ethnicity: NDArray[np.int16]
    split: NDArray[np.uint8]
    sizes: NDArray[np.uint32]
    faces: NDArray[np.uint8]
    held: contextlib.ExitStack = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)


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

    def clear(self) -> None:
        """Lets go of all values."""
        with self._lock:
            self._values.clear()


class StoreCache:
    """Runs, jobs, models and datasets of a store.

    Args:
        store: where they lie.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs = Runs(store)
        self._jobs = Jobs(store)
        self._registry = Registry(store)
        self._ended_runs: LruCache[str, Run] = LruCache(self._runs.get, _SMALL_CACHED)
        self._ended_jobs: LruCache[str, Job] = LruCache(self._jobs.get, _SMALL_CACHED)
        self._cards: LruCache[int, ModelCard] = LruCache(self._registry.card, _SMALL_CACHED)
        self._summaries: LruCache[str, DatasetSummary] = LruCache(self._load_summary, _SMALL_CACHED)
        self._datasets: LruCache[str, Dataset] = LruCache(self._load_dataset, _DATASETS_CACHED)
        self._predictions: LruCache[tuple[str, int], NDArray[np.float32]] = LruCache(
            lambda key: self._load_predictions(*key), _PREDICTIONS_CACHED
        )

    # -- runs and jobs

    def runs(self, limit: int | None = None, offset: int = 0) -> Listing[Run]:
        """Returns the records of all runs, or of a page of them, as `Runs.page` does."""
        return self._runs.page(limit, offset, self.find_run)

    def open_runs(self) -> Listing[Run]:
        """Returns the records of the runs that have not ended, newest first."""
        return self._runs.open(self.find_run)

    def ended_runs(self, open_runs: Iterable[Run]) -> Iterator[Run]:
        """Yields the records of the runs that have ended, newest first, each read only when it is asked for.

        Args:
            open_runs: those that have not, and so need not be read.
        """
        passed_over = {run.run_id for run in open_runs}
        found = self._runs.newest(lambda run_id: None if run_id in passed_over else self.find_run(run_id))
        return (run for run in found if run.state.is_final)

    def find_run(self, run_id: str) -> Run | None:
        """Returns a run's record, or None."""
        return _read_unless_final(self._ended_runs, self._runs.find, run_id)

    def run(self, run_id: str) -> Run:
        """Returns a run's record, or raises `NotFound`."""
        return self.find_run(run_id) or self._runs.get(run_id)

    def jobs(self, limit: int | None = None, offset: int = 0) -> Listing[Job]:
        """Returns the records of all jobs, or of a page of them, as `Jobs.page` does."""
        return self._jobs.page(limit, offset, self.find_job)

    def find_job(self, job_id: str) -> Job | None:
        """Returns a job's record, or None."""
        return _read_unless_final(self._ended_jobs, self._jobs.find, job_id)

    def job(self, job_id: str) -> Job:
        """Returns a job's record, or raises `NotFound`."""
        return self.find_job(job_id) or self._jobs.get(job_id)

    # -- models

    def cards(self, limit: int | None = None, offset: int = 0) -> Listing[ModelCard]:
        """Returns the cards of all models, or of a page of them, as `Registry.page` does."""
        return self._registry.page(limit, offset, self.card)

    def card(self, version: int) -> ModelCard:
        """Returns a model's card, or raises `NotFound` or `DamagedRecord`."""
        return self._cards.get(version)

    # -- datasets

    def named_datasets(self) -> Iterator[tuple[str, str | None]]:
        """Yields (hash, name of the newest run) of every dataset, those with the newest runs first.

        Runs are read only as far as the caller goes on.
        """
        left = dict.fromkeys(self.dataset_ids())
        runs = self._runs.newest(self.find_run)
        while left and (run := next(runs, None)) is not None:
            if run.dataset in left:
                del left[run.dataset]
                yield run.dataset, run.name
        for sha256 in left:
            yield sha256, None

    def dataset_ids(self) -> list[str]:
        """Returns the hashes of all datasets whose archive is here, decoded or not."""
        return self._store.children("datasets")

    def summary(self, sha256: str) -> DatasetSummary | None:
        """Returns what a dataset holds; None before it is decoded."""
        try:
            return self._summaries.get(sha256)
        except NotFound:
            return None

    def dataset(self, sha256: str) -> Dataset:
        """Returns a decoded dataset.

        Raises:
            NotFound: there is none of that hash, or it is not decoded yet.
        """
        return self._datasets.get(sha256)

    def refusal(self, sha256: str) -> DatasetRefusal | None:
        """Returns why an archive did not become a dataset; None where it did, or was not processed yet."""
        key = f"datasets/{sha256}/{REFUSAL_JSON}"
        return DatasetRefusal.model_validate_json(self._store.get(key)) if self._store.exists(key) else None

    def rejects(self, sha256: str) -> list[RejectRow]:
        """Returns the entries that were left out, in archive order."""
        text = self._store.get(f"datasets/{sha256}/{REJECTS_CSV}").decode()
        return read_rejects_csv(io.StringIO(text, newline=""))

    def predicting_versions(self, sha256: str) -> list[int]:
        """Returns the model versions whose predictions for a dataset's faces are in the store, newest first."""
        found = {card.version for card in self.cards().records if card.dataset.sha256 == sha256}
        found |= {int(name.removesuffix(".csv")) for name in self._store.children(f"datasets/{sha256}/predictions")}
        return sorted(found, reverse=True)

    def predictions(self, sha256: str, version: int) -> NDArray[np.float32] | None:
        """Returns float32 (N,), the probability of female of every face by a model; None where there are none."""
        try:
            return self._predictions.get((sha256, version))
        except NotFound:
            return None

    def close(self) -> None:
        """Lets go of everything that is kept."""
        self._predictions.clear()
        self._datasets.clear()

    # -- how

    def _load_summary(self, sha256: str) -> DatasetSummary:
        return DatasetSummary.model_validate(self._store.get_json(f"datasets/{sha256}/{SUMMARY_JSON}"))

    def _load_dataset(self, sha256: str) -> Dataset:
        summary = self.summary(sha256)
        if summary is None:
            raise NotFound(f"there is no decoded dataset {sha256[:12]!r}")
        with contextlib.ExitStack() as stack:
            rows_path = stack.enter_context(self._store.local(f"datasets/{sha256}/{FACES_CSV}"))
            with rows_path.open(encoding="utf-8", newline="") as file:
                rows = read_faces_csv(file)
            path = stack.enter_context(self._store.local(f"datasets/{sha256}/{FACES_NPY}"))
            # Not pickled, and mapped: only the faces that are looked at are read.
            faces = np.load(path, mmap_mode="r", allow_pickle=False)
            return Dataset(
                sha256,
                summary,
                [row.name for row in rows],
                np.array([row.age for row in rows], np.int16),
                np.array([row.gender for row in rows], np.uint8),
                np.array([row.ethnicity for row in rows], np.int16),
                np.array([SPLITS.index(row.split) for row in rows], np.uint8),
                np.array([(row.width, row.height) for row in rows], np.uint32).reshape(-1, 2),
                faces,
                stack.pop_all(),
            )

    def _load_predictions(self, sha256: str, version: int) -> NDArray[np.float32]:
        return read_predictions(self._store, sha256, self.card(version))


def _read_unless_final(ended: LruCache[str, _R], find: Callable[[str], _R | None], key: str) -> _R | None:
    """Returns a record, read again for as long as it can change."""
    record = ended.find(key) or find(key)
    # Sent back from the dead letters, what has failed or was rejected goes on: its record may change yet.
    if record and record.state.is_final and not record.state.is_retryable:
        ended.put(key, record)
    return record

"""Deleting what is no longer wanted from the store, unless something that works or serves still needs it."""

from __future__ import annotations

import contextlib

from shared.errors import Conflict, NotFound
from shared.records.jobs import Jobs
from shared.records.record import DamagedRecord
from shared.records.registry import Registry
from shared.records.runs import Runs
from shared.store.base import Store


class Deletion:
    """Deletes datasets, runs and jobs.

    What is looked at first can change meanwhile: work that somebody submits in the very moment of the deletion misses
    its archive, and is rejected.

    Args:
        store: where they lie.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs = Runs(store)
        self._jobs = Jobs(store)
        self._registry = Registry(store)

    def dataset(self, sha256: str) -> None:
        """Deletes a dataset: its archive, its decoded faces, and what models predicted for them.

        Raises:
            NotFound: there is none of that hash.
            Conflict: a run may still read it, or a model in use was trained on it. The gate has to know which faces the
                champion has learned from.
        """
        if sha256 not in self._store.children("datasets"):
            raise NotFound(f"there is no dataset {sha256!r}")
        for run in self._runs.all().records:  # one whose record is damaged cannot go on
            # Before it is accepted, a run's record does not say of which dataset it is.
            if not run.state.is_final and run.dataset in {None, sha256}:
                raise Conflict(f"run {run.run_id} is {run.state} and may need the dataset; expected it to have ended")
        for alias, version in self._in_use().items():
            if self._registry.card(version).dataset.sha256 == sha256:
                raise Conflict(
                    f"version {version}, the {alias}, was trained on it; expected a model that is not in use"
                )
        self._store.delete(f"datasets/{sha256}")

    def run(self, run_id: str) -> None:
        """Deletes a run's record, curves, evaluation and predictions; its model stays.

        Raises:
            NotFound: there is no such run.
            Conflict: it has not ended, or its model is in use.
        """
        with contextlib.suppress(DamagedRecord):  # deleting it is the way to be rid of it
            if not (state := self._runs.get(run_id).state).is_final:
                raise Conflict(f"run {run_id} is {state}; expected one that has ended, so cancel it first")
        for alias, version in self._in_use().items():
            if self._registry.card(version).run_id == run_id:
                raise Conflict(f"version {version}, the {alias}, came of it; expected one that is not in use")
        self._runs.delete(run_id)

    def job(self, job_id: str) -> None:
        """Deletes a job's record, archive and results.

        Raises:
            NotFound: there is no such job.
            Conflict: it has not ended.
        """
        with contextlib.suppress(DamagedRecord):  # deleting it is the way to be rid of it
            if not (state := self._jobs.get(job_id).state).is_final:
                raise Conflict(f"job {job_id} is {state}; expected one that has ended, so cancel it first")
        self._jobs.delete(job_id)

    def _in_use(self) -> dict[str, int]:
        """Returns the versions in use by their alias."""
        aliases = self._registry.aliases()
        found = {"champion": aliases.champion, "previous": aliases.previous, "challenger": aliases.challenger}
        return {f"{alias} model": version for alias, version in found.items() if version is not None}

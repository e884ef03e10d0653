"""Deleting what is no longer wanted from the store, unless something that works or serves still needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.errors import Conflict, NotFound
from shared.params import named_version
from shared.records.annotations import Annotations, Kind
from shared.records.jobs import Jobs
from shared.records.model_card import ModelCard
from shared.records.predictions import predictions_key
from shared.records.record import DamagedRecord
from shared.records.registry import Registry
from shared.records.runs import Runs
from shared.store.base import Store


@dataclass(frozen=True, slots=True)
class Dependent:
    """Something that stays where its foundation is deleted, and is worth less then.

    Attributes:
        kind: what it is.
        which: its id.
        loss: what it loses, in words.
    """

    kind: Kind
    which: str
    loss: str


class Deletion:
    """Deletes datasets, runs, models and jobs.

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
        self._annotations = Annotations(store)

    def dependents(self, kind: Kind, which: str) -> list[Dependent]:
        """Returns what depends on something, and stays if that is deleted.

        Raises:
            NotFound: there is no such thing.
            Conflict: it is in use, so it cannot be deleted.
        """
        checks: dict[Kind, Callable[[str], list[Dependent]]] = {
            "dataset": self._check_dataset,
            "run": self._check_run,
            "model": self._check_model,
            "job": self._check_job,
        }
        return checks[kind](which)

    def delete(self, kind: Kind, which: str, *, user: str | None = None) -> None:
        """Deletes something for good, and keeps that `user` did.

        Of a dataset its archive goes, its decoded faces, and what models predicted for them; of a run its record,
        curves, evaluation and predictions; of a model its files and its predictions for other datasets; of a job its
        record, archive and results.

        Raises:
            NotFound: there is no such thing.
            Conflict: it is in use: a run or job may still read the dataset; a run or job has not ended, or needs the
                model; a model has an alias, or one with an alias came of the run, or has learned from the dataset, also
                through other models; another model has learned from the model. The gate has to know which faces a
                model has learned from.
        """
        self.dependents(kind, which)
        if kind == "dataset":
            self._store.delete(f"datasets/{which}")
        elif kind == "run":
            self._runs.delete(which)
        elif kind == "model":
            self._delete_model(int(which))
        else:
            self._jobs.delete(which)
        self._annotations.record_deletion(kind, which, user)

    def _check_dataset(self, sha256: str) -> list[Dependent]:
        if sha256 not in self._store.children("datasets"):
            raise NotFound(f"there is no dataset {sha256!r}")
        runs = self._runs.all().records
        for run in runs:  # one whose record is damaged cannot go on
            # Before it is accepted, a run's record does not say of which dataset it is.
            if not run.state.is_final and run.dataset in {None, sha256}:
                raise Conflict(f"run {run.run_id} is {run.state} and may need the dataset; expected it to have ended")
        for job in self._jobs.open().records:
            # Likewise, a job's record does not say where its archive lies.
            if job.archive is None or job.archive.startswith(f"datasets/{sha256}/"):
                raise Conflict(f"job {job.job_id} is {job.state} and may need the dataset; expected it to have ended")
        for alias, version in self._in_use().items():
            for card in self._lineage(version):
                if card.dataset.sha256 == sha256:
                    what = "was trained on it"
                    if card.version != version:
                        what = f"has learned from it through version {card.version}"
                    raise Conflict(f"version {version}, the {alias}, {what}; expected a model that is not in use")
        found = [Dependent("run", run.run_id, "its faces") for run in runs if run.dataset == sha256]
        models = [card.version for card in self._registry.cards().records if card.dataset.sha256 == sha256]
        return found + [Dependent("model", str(version), "the faces it was tested on") for version in models]

    def _check_run(self, run_id: str) -> list[Dependent]:
        with contextlib.suppress(DamagedRecord):  # deleting it is the way to be rid of it
            if not (state := self._runs.get(run_id).state).is_final:
                raise Conflict(f"run {run_id} is {state}; expected one that has ended, so cancel it first")
        for alias, version in self._in_use().items():
            if self._registry.card(version).run_id == run_id:
                raise Conflict(f"version {version}, the {alias}, came of it; expected one that is not in use")
        models = [card.version for card in self._registry.cards().records if card.run_id == run_id]
        return [Dependent("model", str(version), "its curves and predictions") for version in models]

    def _check_model(self, which: str) -> list[Dependent]:
        if not which.isdecimal() or not self._store.exists(self._registry.card_key(int(which))):
            raise NotFound(f"there is no model {which!r}")
        version = int(which)
        for alias, used in self._in_use().items():
            if used == version:
                raise Conflict(f"version {version} is the {alias}; expected one that is not in use")
        for run in self._runs.open().records:
            needed = () if run.params is None else (run.params.init, run.params.distil)
            if version in map(named_version, needed):
                raise Conflict(
                    f"run {run.run_id} is {run.state} and needs version {version}; expected it to have ended"
                )
        for job in self._jobs.open().records:
            if job.model is not None and job.model.version == version:
                raise Conflict(f"job {job.job_id} is {job.state} and uses version {version}; expected it to have ended")
        found: list[Dependent] = []
        with contextlib.suppress(DamagedRecord):  # deleting it is the way to be rid of it
            run_id = self._registry.card(version).run_id
            for card in self._registry.cards().records:
                if version in card.parents:
                    raise Conflict(
                        f"version {card.version} has learned from version {version}; expected it to be deleted before"
                    )
            if self._store.exists(self._runs.key(run_id)):
                found.append(Dependent("run", run_id, "its model"))
        return found

    def _check_job(self, job_id: str) -> list[Dependent]:
        with contextlib.suppress(DamagedRecord):  # deleting it is the way to be rid of it
            if not (state := self._jobs.get(job_id).state).is_final:
                raise Conflict(f"job {job_id} is {state}; expected one that has ended, so cancel it first")
        return []

    def _delete_model(self, version: int) -> None:
        for sha256 in self._store.children("datasets"):
            self._store.delete(predictions_key(sha256, version))
        self._registry.delete(version)

    def _lineage(self, version: int) -> Iterator[ModelCard]:
        """Yields the card of a version and of those that it has learned from, as far as they can be read."""
        card = self._registry.card(version)
        yield card
        for parent in card.parents:
            with contextlib.suppress(NotFound, DamagedRecord):
                yield from self._lineage(parent)

    def _in_use(self) -> dict[str, int]:
        """Returns the versions in use by their alias."""
        aliases = self._registry.aliases()
        found = {"champion": aliases.champion, "previous": aliases.previous, "challenger": aliases.challenger}
        return {f"{alias} model": version for alias, version in found.items() if version is not None}

"""What a worker's successor learns of its death, from copies of the file as it was at that moment."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from inference.model.run_journal import DEATHS, RunJournal


class Slot:
    """A worker's place, in which one process follows another."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "worker-0.runs"
        self._left = folder / "left.runs"

    def start(self) -> RunJournal:
        """Starts a worker, after one that died as `die_in` says, or that ended in order."""
        return RunJournal(self._path)

    def die_in(self, version: int, *, ended_before: Sequence[int] = ()) -> RunJournal:
        """Lets a worker end runs of some versions, then die in another one; returns its successor's journal."""
        journal = self.start()
        for ended in ended_before:
            journal.watched(ended, lambda: None)()
        journal.watched(version, lambda: shutil.copy(self._path, self._left))()
        self._left.replace(self._path)
        return self.start()


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(tmp_path)


def test_a_version_that_each_worker_dies_of_is_a_killer(slot: Slot) -> None:
    killers = [slot.die_in(7).killers for _ in range(DEATHS)]
    assert killers == [*[[]] * (DEATHS - 1), [7]]


def test_a_run_that_ended_in_between_clears_it(slot: Slot) -> None:
    for _ in range(DEATHS * 2):
        assert slot.die_in(7, ended_before=[7]).killers == []


def test_runs_of_others_that_ended_in_between_clear_nothing(slot: Slot) -> None:
    killers = [slot.die_in(7, ended_before=[3, 4]).killers for _ in range(DEATHS)]
    assert killers == [*[[]] * (DEATHS - 1), [7]]


def test_deaths_of_another_version_do_not_add_up(slot: Slot) -> None:
    for version in [1, 2] * (DEATHS - 1):
        assert slot.die_in(version).killers == []


def test_deaths_are_remembered_whatever_many_versions_run_beside(slot: Slot) -> None:
    killers = [slot.die_in(7, ended_before=range(100, 150)).killers for _ in range(DEATHS)]
    assert killers == [*[[]] * (DEATHS - 1), [7]]


def test_what_ran_at_a_death_is_known_until_the_next_start(slot: Slot) -> None:
    assert slot.die_in(7, ended_before=[3]).left_running == {7}
    assert slot.start().left_running == frozenset()


def test_a_worker_that_dies_in_no_run_is_no_news(slot: Slot) -> None:
    slot.die_in(7)
    for _ in range(DEATHS):
        assert slot.start().killers == []


def test_a_run_that_raises_has_ended(slot: Slot) -> None:
    def fail() -> None:
        raise ValueError("no")

    for _ in range(DEATHS):
        with pytest.raises(ValueError, match="no"):
            slot.start().watched(7, fail)()
    assert slot.start().killers == []


def test_what_was_refused_is_forgotten(slot: Slot) -> None:
    for _ in range(DEATHS):
        journal = slot.die_in(7)
    journal.forget()
    assert journal.killers == []
    assert slot.start().killers == []

"""Edits of labels: a history over the archive, one atomic step each, and copies of it that runs name by their hash."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from shared.errors import Conflict, InvalidMessage, NotFound
from shared.records.edits import CHANGES, Change, Corrections, Edit, EditHistory, Edits, edits_key
from shared.records.record import DamagedRecord
from shared.store.files import FileStore
from tests.support.builders.stores import StoreBuilder


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def dataset(store: FileStore) -> str:
    return StoreBuilder(store).dataset(30)


def test_the_newest_edit_of_a_face_is_in_force(store: FileStore, dataset: str) -> None:
    edits = Edits(store)
    edits.add(dataset, "male", [3, 1, 3], user="ann")
    edits.add(dataset, "female", [1, 7])
    edits.add(dataset, "exclude", [9])
    history = edits.add(dataset, "restore", [7])

    assert history.corrections() == Corrections(male=(3,), female=(1,), exclude=(9,))
    assert [(edit.number, edit.change, edit.faces, edit.user) for edit in history.edits] == [
        (1, "male", (1, 3), "ann"),
        (2, "female", (1, 7), None),
        (3, "exclude", (9,), None),
        (4, "restore", (7,), None),
    ]
    assert [edit.number for edit in history.of_face(7)] == [4, 2]
    assert edits.history(dataset) == history


def test_undoing_brings_back_what_was_before_and_stays_in_the_history(store: FileStore, dataset: str) -> None:
    edits = Edits(store)
    edits.add(dataset, "male", [1])
    edits.add(dataset, "female", [1])

    history, undone = edits.undo(dataset, user="bob")
    assert (undone.number, undone.undone_by) == (2, "bob")
    assert history.corrections().male == (1,)
    history, undone = edits.undo(dataset, 1)
    assert undone.number == 1
    assert history.corrections().is_empty
    assert len(history.edits) == 2
    for number, error in ((None, Conflict), (1, Conflict), (3, NotFound)):
        with pytest.raises(error):
            edits.undo(dataset, number)


def test_what_was_in_force_after_any_number_of_edits_and_undos_is_known() -> None:
    def edit(number: int, change: Change, at: int, undone_at: int | None = None) -> Edit:
        times = {"at": f"2026-01-01T00:00:{at:02}Z", "undone_at": undone_at and f"2026-01-01T00:00:{undone_at:02}Z"}
        return Edit.model_validate({"number": number, "change": change, "faces": (1,), **times})

    # The third was made on a machine whose clock is slow, and the first undone last of all.
    history = EditHistory(edits=(edit(1, "male", 1, 9), edit(2, "female", 4, 6), edit(3, "exclude", 3)))

    assert history.changes == 5
    found = [history.corrections(until) for until in range(6)]
    male, female, exclude = (Corrections.model_validate({change: (1,)}) for change in ("male", "female", "exclude"))
    assert found == [Corrections(), male, female, exclude, exclude, exclude]
    assert history.corrections() == history.corrections(5)
    without_third = EditHistory(edits=history.edits[:2])
    assert [without_third.corrections(until) for until in range(5)] == [
        Corrections(),
        male,
        female,
        male,
        Corrections(),
    ]


def test_edits_made_at_once_are_all_kept(store: FileStore, dataset: str) -> None:
    threads = [threading.Thread(target=Edits(store).add, args=(dataset, "male", [face])) for face in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    history = Edits(store).history(dataset)
    assert history.corrections().male == tuple(range(12))
    assert [edit.number for edit in history.edits] == list(range(1, 13))


def test_what_makes_no_sense_is_refused_and_changes_nothing(store: FileStore, dataset: str) -> None:
    edits = Edits(store)
    for change, faces in (("boy", [1]), ("male", []), ("male", [30]), ("male", [-1])):
        with pytest.raises(InvalidMessage):
            edits.add(dataset, change, faces)
    with pytest.raises(NotFound):
        edits.add("0" * 64, "male", [1])
    assert not store.exists(edits_key(dataset))
    assert CHANGES == ("male", "female", "exclude", "restore")


def test_a_frozen_copy_is_named_by_its_hash_and_outlives_later_edits(store: FileStore, dataset: str) -> None:
    edits = Edits(store)
    assert edits.freeze(dataset) is None
    edits.add(dataset, "female", [2])
    sha256 = edits.freeze(dataset)
    assert sha256 is not None
    assert edits.freeze(dataset) == sha256
    edits.add(dataset, "exclude", [3])

    assert edits.freeze(dataset) != sha256
    assert edits.frozen(dataset, sha256) == Corrections(female=(2,))
    with pytest.raises(NotFound):
        edits.frozen(dataset, "0" * 64)
    store.put(f"datasets/{dataset}/edits/{sha256}.json", b'{"schema": 1, "male": [2]}')
    with pytest.raises(NotFound):
        edits.frozen(dataset, sha256)


def test_the_same_corrections_have_the_same_hash_however_they_were_made(store: FileStore, dataset: str) -> None:
    edits = Edits(store)
    edits.add(dataset, "male", [5])
    edits.add(dataset, "male", [4])
    first = edits.freeze(dataset)
    edits.add(dataset, "female", [4, 5])
    edits.add(dataset, "male", [4, 5])

    assert edits.freeze(dataset) == first


def test_corrections_change_labels_and_leave_excluded_faces_theirs() -> None:
    genders = np.array([0, 1, 0, 1], np.uint8)

    corrected = Corrections(male=(1,), female=(2,), exclude=(3,)).apply(genders)

    assert corrected.tolist() == [0, 0, 1, 1]
    assert genders.tolist() == [0, 1, 0, 1]


def test_a_damaged_file_of_edits_is_named(store: FileStore, dataset: str) -> None:
    store.put(edits_key(dataset), b'{"edits": [{"number": "one"}]}')
    with pytest.raises(DamagedRecord, match=r"edits\.json"):
        Edits(store).history(dataset)

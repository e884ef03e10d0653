"""Names, notes and tags in a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.errors import InvalidMessage
from shared.records.annotations import Annotation, Annotations, annotations_key, known_tags
from shared.records.record import DamagedRecord
from shared.store.files import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def test_what_is_not_given_stays_and_an_empty_name_takes_the_name_away(store: FileStore) -> None:
    annotations = Annotations(store)
    annotations.change("run", "run-1", name=" winter ", note="one\r\ntwo", tags=["b", "a", "b"], user="alice")
    first = annotations.all("run")["run-1"]
    assert (first.name, first.note, first.tags, first.by) == ("winter", "one\ntwo", ("a", "b"), "alice")

    second = annotations.change("run", "run-1", add_tags=["c"], remove_tags=["a"])
    assert (second.name, second.note, second.tags, second.by) == ("winter", "one\ntwo", ("b", "c"), None)

    third = annotations.change("run", "run-1", name="", note="", tags=[])
    assert third == Annotation(updated=third.updated)
    assert annotations.all("job") == {}


def test_changes_at_the_same_time_are_all_kept(store: FileStore) -> None:
    annotations = Annotations(store)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: annotations.change("model", str(i % 4), add_tags=[f"tag{i}"]), range(20)))

    assert known_tags(annotations.all("model")) == sorted(f"tag{i}" for i in range(20))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "x" * 201}, "name has 201 characters; expected at most 200"),
        ({"name": "two\nlines"}, "on one line"),
        ({"note": "x" * 2001}, "note has 2001 characters"),
        ({"note": "\x1b[31m"}, "control characters"),
        ({"tags": ["a,b"]}, "without commas"),
        ({"tags": [""]}, "without commas"),
        ({"tags": [f"{i}" for i in range(21)]}, "at most 20"),
    ],
)
def test_what_no_page_could_show_is_refused(store: FileStore, change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidMessage, match=words):
        Annotations(store).change("run", "run-1", **change)  # type: ignore[arg-type]
    assert store.children("") == []


def test_a_damaged_file_is_named_and_stays(store: FileStore) -> None:
    store.put(annotations_key("run"), b"{")
    annotations = Annotations(store)

    found, damaged = annotations.find_all("run")

    assert (found, [error.key for error in damaged]) == ({}, ["annotations/runs.json"])
    with pytest.raises(DamagedRecord):
        annotations.change("run", "run-1", note="x")
    assert store.get(annotations_key("run")) == b"{"

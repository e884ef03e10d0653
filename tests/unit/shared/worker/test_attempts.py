from __future__ import annotations

from pathlib import Path

import pytest

from shared.broker.base import Delivery, Message
from shared.errors import Retryable
from shared.store.files import FileStore
from shared.worker.attempts import UNRECORDED, Attempts


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def delivery(count: int, body: bytes = b"work", message_id: str = "m1", queue: str = "jobs") -> Delivery:
    return Delivery(queue, Message(body, "text/plain", message_id), count, None)


def objects(store: FileStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_a_message_that_comes_for_the_first_times_costs_the_store_nothing(store: FileStore) -> None:
    attempts = Attempts(store)
    for count in range(UNRECORDED):
        assert attempts.begin(delivery(count)) == count
        attempts.end(delivery(count))
    assert list(store.root.iterdir()) == []


def test_what_counts_is_how_often_it_was_begun_by_anyone_and_not_how_often_it_came(store: FileStore) -> None:
    assert [Attempts(FileStore(store.root)).begin(delivery(count)) for count in (2, 9, 90)] == [2, 3, 4]


def test_a_message_that_ends_leaves_nothing_and_may_come_again(store: FileStore) -> None:
    attempts = Attempts(store)
    for count in (2, 3):
        attempts.begin(delivery(count))
    attempts.end(delivery(3))
    assert objects(store) == []
    assert attempts.begin(delivery(4)) == UNRECORDED


@pytest.mark.parametrize("other", [{"body": b"other"}, {"message_id": "m2"}, {"queue": "shards"}])
def test_no_other_message_is_counted_with_it(store: FileStore, other: dict[str, str]) -> None:
    attempts = Attempts(store)
    for count in (2, 3):
        attempts.begin(delivery(count))
    assert attempts.begin(delivery(9, **other)) == UNRECORDED  # type: ignore[arg-type]


def test_where_the_store_is_away_it_says_so_before_the_work_and_no_more_after_it(store: FileStore) -> None:
    attempts = Attempts(store)
    store.root.rmdir()
    store.root.touch()
    with pytest.raises(Retryable):
        attempts.begin(delivery(2))
    attempts.end(delivery(2))

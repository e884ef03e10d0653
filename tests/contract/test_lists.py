"""A list reads no more than it returns, however many runs, jobs, models and datasets there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication

from dashboard.store_cache import StoreCache
from shared.records.deletion import Deletion
from shared.records.jobs import Jobs, JobState
from shared.records.record import Fault, Listing
from shared.records.runs import Runs, RunState
from shared.store.base import Store
from shared.store.files import FileStore
from tests.support.builders.stores import StoreBuilder
from tests.support.dashboard_app import open_site

MANY = 30


class CountingStore(FileStore):
    """A folder that counts how many objects are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads = 0

    def get(self, key: str) -> bytes:
        self.reads += 1
        return super().get(key)


@pytest.fixture
def count_requests(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Gives a context that counts what reaches the S3 server."""

    @contextmanager
    def counting() -> Iterator[list[str]]:
        requests: list[str] = []
        answer = DomainDispatcherApplication.__call__

        def count(self: Any, environ: dict[str, Any], start: Any) -> Any:
            requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
            return answer(self, environ, start)

        with monkeypatch.context() as patch:
            patch.setattr(DomainDispatcherApplication, "__call__", count)
            yield requests

    return counting


def fill(store: Store) -> None:
    runs, jobs = Runs(store), Jobs(store)
    for i in range(MANY):
        runs.create(f"run-{i:02}", message_id=f"m{i}", name=f"run {i}", params=None, state=RunState.FAILED)
        jobs.create(f"job-{i:02}", message_id=f"m{i}", name=f"job {i}", state=JobState.FAILED)


LISTS: list[Callable[[StoreCache], Listing[Any]]] = [lambda cache: cache.runs(1), lambda cache: cache.jobs(1)]


@pytest.mark.parametrize("newest", LISTS, ids=["runs", "jobs"])
def test_the_first_list_after_a_start_takes_a_few_requests(
    open_again: Callable[[], Store],
    count_requests: Callable[[], Any],
    store_url: str,
    newest: Callable[[StoreCache], Listing[Any]],
) -> None:
    fill(open_again())
    store = open_again()
    with count_requests() as requests:
        found = newest(StoreCache(store))
    assert (len(found.records), found.total) == (1, MANY)
    assert len(requests) <= 4, requests  # ids, times, annotations and one record
    assert bool(requests) == store_url.startswith("s3")


def test_models_and_datasets_are_listed_by_a_few_requests(
    open_again: Callable[[], Store], count_requests: Callable[[], Any], store_url: str
) -> None:
    builder = StoreBuilder(open_again())
    trained = [builder.dataset(40) for _ in range(4)]
    for sha256 in trained:
        builder.model(sha256, f"run-{sha256[:12]}")
    store = open_again()
    cache = StoreCache(store)
    with count_requests() as requests:
        cards = cache.cards(1)
        sha256, _ = next(cache.named_datasets())
    assert (cards.records[0].version, cards.total, sha256) == (4, 4, trained[-1])
    assert len(requests) <= 8, requests
    assert bool(requests) == store_url.startswith("s3")
    assert [name for name, _ in cache.named_datasets()] == trained[::-1]


def test_a_page_of_a_folder_reads_its_own_records_only(tmp_path: Path) -> None:
    fill(FileStore(tmp_path))
    store = CountingStore(tmp_path)
    page = Runs(store).page(10, 20)
    assert [run.run_id for run in page.records] == [f"run-{i:02}" for i in range(9, -1, -1)]
    assert store.reads == 10


def test_the_overview_reads_the_newest_and_what_has_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_site(tmp_path) as site:
        site.builder.run("run-waiting", name="has waited for long")
        fill(site.store)
        read = FileStore.get
        keys: list[str] = []

        def note(self: FileStore, key: str) -> bytes:
            keys.append(key)
            return read(self, key)

        monkeypatch.setattr(FileStore, "get", note)
        assert "has waited for long" in site.web.get("/").text
    assert len({key for key in keys if key.startswith("runs/")}) == 21
    assert len({key for key in keys if key.startswith("jobs/")}) == 20


def test_records_of_an_older_release_are_listed_and_then_known(store: Store) -> None:
    fill(store)
    store.delete("index")
    before = StoreCache(store).runs(2)
    assert ([run.run_id for run in before.records], before.total) == (["run-29", "run-28"], MANY)
    assert len(store.children("index/runs/created")) == MANY


def test_a_run_that_ends_is_open_no_more_and_a_retried_one_is_again(store: Store) -> None:
    runs = Runs(store)
    runs.create("run-1", message_id="m", name="faces", params=None)
    assert [run.run_id for run in runs.open().records] == ["run-1"]
    runs.update("run-1", state=RunState.FAILED, error=Fault(code="internal", message="x"))
    assert runs.open().records == []
    runs.reopen("run-1", "now")
    assert [run.run_id for run in runs.open().records] == ["run-1"]


def test_an_entry_that_a_dead_process_left_is_cleared(store: Store) -> None:
    runs = Runs(store)
    runs.create("run-1", message_id="m", name="faces", params=None, state=RunState.CANCELLED)
    for left in ("run-1", "run-gone"):
        store.put(f"index/runs/open/{left}", b"")
    assert runs.open().records == []
    assert store.children("index/runs/open") == []


def test_a_deleted_run_is_in_no_list(store: Store) -> None:
    fill(store)
    Deletion(store).delete("run", "run-29")
    assert Runs(store).page(1).records[0].run_id == "run-28"
    assert len(store.children("index/runs/created")) == MANY - 1

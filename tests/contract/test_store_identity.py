"""A store knows itself: who has worked with one takes nothing else for it, on both stores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.broker.sqlite.broker import SqliteBroker
from shared.connect import open_store_for
from shared.errors import NotFound, Retryable
from shared.runtime.settings import Settings
from shared.store import open_store
from shared.store.base import Store
from shared.store.files import FileStore
from shared.store.identity import IDENTITY_KEY, IdentifiedStore, StoreReplaced, find_identity, give_identity
from shared.store.lease import LeaseLost, Leases
from shared.telemetry import heartbeat
from shared.telemetry.heartbeat import Heartbeat
from tests.contract.conftest import Place
from tests.contract.test_fencing import contents


def identified(store: Store, name: str = "ours", *, trusted_s: float = 0.0) -> IdentifiedStore:
    return IdentifiedStore(store, name, give_identity(store), trusted_s=trusted_s)


def every_use(store: Store, folder: Path) -> list[Callable[[], object]]:
    file = folder / "a file"
    file.write_bytes(b"x")
    return [
        lambda: store.put("runs/1/run.json", b"x"),
        lambda: store.create("runs/1/run.json", b"x"),
        lambda: store.put_file("runs/1/archive.zip", file),
        lambda: store.update("runs/1/run.json", lambda _: b"x"),
        lambda: store.delete("runs/1"),
        lambda: store.get("kept"),
        lambda: store.find_json("runs/1/run.json"),
        lambda: store.exists("kept"),
        lambda: store.size("kept"),
        lambda: store.children("runs"),
        lambda: store.folders_with("runs", "run.json"),
        store.staging_folder,
        lambda: store.local("kept").__enter__(),
        lambda: Leases(store, 10).lease("runs/1").acquire(),
    ]


def test_of_many_that_open_a_new_store_one_says_which_it_is(open_again: Callable[[], Store]) -> None:
    with ThreadPoolExecutor(8) as pool:
        identities = set(pool.map(lambda _: give_identity(open_again()), range(8)))
    assert len(identities) == 1
    assert find_identity(open_again()) == identities.pop()


@pytest.mark.parametrize("in_its_place", ["nothing", "another store", "a damaged file"])
def test_another_store_or_none_in_its_place_is_waited_for_and_neither_read_nor_filled(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, in_its_place: str
) -> None:
    ours = identified(store)
    ours.put("kept", b"ours")
    mine = store.get(IDENTITY_KEY)
    if in_its_place == "nothing":
        store.delete(IDENTITY_KEY)
    else:
        store.put(IDENTITY_KEY, b'{"id": "theirs"}' if in_its_place == "another store" else b"[")
    before = contents(store)
    for use in every_use(ours, tmp_path):
        with pytest.raises(StoreReplaced, match="in the place of the store ours that was in use"):
            use()
    assert contents(store) == before
    assert not ours.ping()
    assert ours.trouble is not None
    assert ours.trouble.kind == "replaced"
    assert len(caplog.records) == 1  # however often it was tried

    store.put(IDENTITY_KEY, mine)
    with caplog.at_level(logging.INFO):
        assert ours.get("kept") == b"ours"
    assert ours.trouble is None
    assert "the store ours is back" in caplog.text


def test_a_folder_that_was_renamed_away_is_not_made_again(tmp_path: Path) -> None:
    ours = identified(FileStore(tmp_path / "store"))
    ours.put("kept", b"ours")
    (tmp_path / "store").rename(tmp_path / "away")
    for use in every_use(ours, tmp_path):
        with pytest.raises(StoreReplaced, match="found none in the place"):
            use()
    assert not (tmp_path / "store").exists()
    (tmp_path / "away").rename(tmp_path / "store")
    ours.put("runs/1/run.json", b"x")
    assert ours.get("kept") == b"ours"


def test_the_plain_folder_itself_is_never_made_by_a_write(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    (tmp_path / "store").rmdir()
    with pytest.raises(Retryable):
        store.put("runs/1/run.json", b"x")
    assert not (tmp_path / "store").exists()


def test_what_is_missing_is_never_believed_without_a_look(store: Store) -> None:
    ours = identified(store, trusted_s=3600)
    ours.put("kept", b"ours")
    with pytest.raises(NotFound):
        ours.get("runs/none")
    store.delete(IDENTITY_KEY)
    store.delete("kept")
    for use in (lambda: ours.get("kept"), lambda: ours.exists("kept"), lambda: ours.children("runs")):
        with pytest.raises(StoreReplaced):
            use()


def test_an_owner_whose_store_is_away_still_owns_its_work_once_it_is_back(store: Store) -> None:
    ours = identified(store)
    lease = Leases(ours, 10).lease("runs/1")
    assert lease.acquire()
    mine = store.get(IDENTITY_KEY)
    store.delete(IDENTITY_KEY)
    with pytest.raises(StoreReplaced) as caught:
        lease.store.put("runs/1/run.json", b"x")
    assert not isinstance(caught.value, LeaseLost)
    store.put(IDENTITY_KEY, mine)
    lease.store.put("runs/1/run.json", b"x")


def settings_for(url: str) -> Settings:
    return Settings(store_url=url)


def test_the_embedded_broker_remembers_the_store_after_all_services_were_stopped(
    sqlite_place: Place, store_url: str
) -> None:
    with sqlite_place.open() as broker:
        first = open_store_for(settings_for(store_url), broker)
        first.put("kept", b"ours")
    open_store(store_url).delete(IDENTITY_KEY)
    with sqlite_place.open() as broker:
        with pytest.raises(StoreReplaced, match=r"found no store at .*; expected the one that this installation"):
            open_store_for(settings_for(store_url), broker)
        assert find_identity(open_store(store_url)) is None
        with pytest.raises(StoreReplaced, match="found no store"):
            open_store_for(settings_for(f"{store_url}-moved"), broker)
        other = open_store(f"{store_url}-other")
        give_identity(other)
        with pytest.raises(StoreReplaced, match="found another store"):
            open_store_for(settings_for(f"{store_url}-other"), broker)


def test_a_folder_that_is_not_there_is_not_made_where_the_broker_remembers_one(
    sqlite_place: Place, tmp_path: Path
) -> None:
    broker = sqlite_place.open()
    open_store_for(settings_for(f"file:{tmp_path / 'store'}"), broker)
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(StoreReplaced):
        open_store_for(settings_for(f"file:{tmp_path / 'store'}"), broker)
    assert not (tmp_path / "store").exists()


@pytest.mark.rabbitmq
def test_on_rabbitmq_the_services_that_run_name_the_store_and_no_other_is_made(
    rabbitmq_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.connect.HEARTBEAT_S", 0.5)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.1)
    broker = rabbitmq_place.open()
    settings = settings_for(f"file:{tmp_path / 'store'}")
    stop = threading.Event()
    ours = open_store_for(settings, broker)  # nobody runs: it is made
    service = threading.Thread(target=Heartbeat(broker, "trainer", dict, ours).run, args=[stop])
    service.start()
    try:
        (tmp_path / "store").rename(tmp_path / "away")
        with pytest.raises(StoreReplaced, match="found no store"):
            open_store_for(settings, rabbitmq_place.open())
        assert not (tmp_path / "store").exists()
    finally:
        stop.set()
        service.join()


class LateBroker(SqliteBroker):
    """A broker that is asked for its store at the moment when another service has just made one."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def remembered_store(self) -> str | None:
        self.meanwhile()
        return super().remembered_store()


def test_of_two_services_that_start_at_the_same_time_both_have_the_store_that_one_makes(
    store_url: str, tmp_path: Path
) -> None:
    with SqliteBroker(tmp_path / "broker.db") as other, LateBroker(tmp_path / "broker.db") as broker:
        broker.meanwhile = lambda: open_store_for(settings_for(store_url), other)
        found = open_store_for(settings_for(store_url), broker)
        assert found.identity == other.remembered_store() is not None


def test_a_store_of_an_earlier_release_gets_its_identity_once(store_url: str, sqlite_place: Place) -> None:
    open_store(store_url).put_json("format.json", {"format": 1})
    broker = sqlite_place.open()
    first = open_store_for(settings_for(store_url), broker)
    assert first.identity is not None
    assert open_store_for(settings_for(store_url), broker).identity == first.identity

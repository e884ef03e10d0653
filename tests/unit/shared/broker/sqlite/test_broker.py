from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.broker import open_broker
from shared.broker.base import Broker, BrokerClosed, BrokerError, Message, Outgoing
from shared.broker.sqlite import database
from shared.broker.sqlite.broker import SqliteBroker
from shared.broker.sqlite.database import QueueFile


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with SqliteBroker(tmp_path / "broker.db") as broker:
        yield broker


@pytest.mark.parametrize("place", ["a file that is no database", "below a file"])
def test_a_place_that_cannot_hold_the_broker_is_named(place: str, tmp_path: Path) -> None:
    taken = tmp_path / "notes.txt"
    taken.write_text("no database at all, but long enough to be asked for a header " * 20)
    path = taken if place == "a file that is no database" else taken / "broker.db"
    with pytest.raises(BrokerError, match=r"cannot open the embedded broker at .*notes\.txt"):
        open_broker(f"sqlite:///{path}")


def test_what_is_deleted_is_not_written_once_more(tmp_path: Path) -> None:
    with open_broker(f"sqlite:///{tmp_path / 'broker.db'}") as broker:
        queue = broker.topology.predictions
        broker.publish(queue, Message(bytes(1_000_000), "image/jpeg"))
        with broker.consume([queue], 1) as consumer:
            (delivery,) = consumer.receive(1, 1.0)
            log = tmp_path / "broker.db-wal"
            written = log.stat().st_size
            consumer.settle([delivery])
            assert log.stat().st_size - written < 100_000


def test_what_is_published_is_on_disk_when_that_returns_and_seen_by_others_before(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the machine's power could tell what is on disk; so the system's own call is looked at, and made."""
    queues = broker.topology
    seen: list[tuple[str, int]] = []

    def sync(descriptor: int) -> None:
        with SqliteBroker(tmp_path / "broker.db") as other:
            ready = sum(depth.ready for depth in other.depths().values())
        seen.append((Path(f"/proc/self/fd/{descriptor}").resolve().name, ready))
        os.fdatasync(descriptor)

    monkeypatch.setattr(database, "_sync_data", sync)
    broker.publish(queues.jobs, Message(b"work", "text/plain"))
    assert seen == [("broker.db-wal", 1)]
    with broker.consume([queues.jobs], 1) as consumer, broker.reply_queue() as reply_queue:
        # What a worker leaves for others is synced, what it only answers is not: it would answer again.
        consumer.settle(consumer.receive(1, 1.0), [Outgoing(queues.shards, Message(b"more", "text/plain"))] * 2)
        assert seen == [("broker.db-wal", 1), ("broker.db-wal", 2)]
        with broker.consume([queues.shards], 1) as shards:
            shards.settle(shards.receive(1, 1.0), [Outgoing(reply_queue.name, Message(b"done", "text/plain"))])
        broker.emit("run.progress", {})
    assert len(seen) == 2


def test_a_disk_that_fails_is_said(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(database, "_sync_data", sync)
    with pytest.raises(BrokerError, match=r"at .*broker\.db could not be synced: .*Input/output error"):
        broker.publish(broker.topology.jobs, Message(b"work", "text/plain"))


def test_a_thread_that_has_ended_leaves_no_file_open(broker: Broker, tmp_path: Path) -> None:
    """A status server has a thread for each request, and is asked every few seconds for as long as it lives."""

    def open_files() -> int:
        return sum(link.resolve().is_relative_to(tmp_path) for link in Path("/proc/self/fd").iterdir())

    before = open_files()
    for _ in range(20):
        thread = threading.Thread(target=broker.depths)
        thread.start()
        thread.join()
    # One more: SQLite keeps a file's descriptor for its next connection where closing it would give up locks.
    assert open_files() <= before + 1


def test_closing_waits_for_other_threads_and_ends_their_connections(tmp_path: Path) -> None:
    file = QueueFile(tmp_path / "broker.db")
    using, enough = threading.Event(), threading.Event()
    read: list[tuple[int]] = []
    refusals: list[BrokerClosed] = []

    def use() -> None:
        with file.read() as db:
            using.set()
            enough.wait(20)
            read.append(db.execute("SELECT 1").fetchone())
        try:
            file.version()
        except BrokerClosed as error:
            refusals.append(error)

    threads = [threading.Thread(target=use), threading.Thread(target=file.close)]
    threads[0].start()
    assert using.wait(20)
    threads[1].start()
    threads[1].join(0.1)
    assert threads[1].is_alive()
    enough.set()
    for thread in threads:
        thread.join(20)
    assert read == [(1,)]
    assert len(refusals) == 1
    assert not any(link.resolve().is_relative_to(tmp_path) for link in Path("/proc/self/fd").iterdir())


CLOSED_IN_THE_MIDST = """
import sys, threading
from pathlib import Path
from shared.broker.base import BrokerClosed
from shared.broker.sqlite.database import QueueFile

def use(file, using):
    try:
        while True:
            with file.write() as db:
                db.execute("INSERT INTO reply_queues SELECT hex(randomblob(8)), 0")
                db.execute("SELECT count(*) FROM reply_queues").fetchone()
            using.set()
    except BrokerClosed:
        pass

for number in range(40):
    file = QueueFile(Path(sys.argv[1]) / str(number))
    using = [threading.Event() for _ in range(3)]
    threads = [threading.Thread(target=use, args=(file, event)) for event in using]
    for thread in threads:
        thread.start()
    for event in using:
        event.wait()
    file.close()
    for thread in threads:
        thread.join()
"""


def test_closing_in_the_midst_of_statements_crashes_nothing(tmp_path: Path) -> None:
    """In a process of its own, which died of SIGSEGV in nearly every run when closing did not wait."""
    command = [sys.executable, "-c", CLOSED_IN_THE_MIDST, str(tmp_path)]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[5], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_full_disk_is_said_and_what_was_not_written_is_written_once_there_is_room(tmp_path: Path) -> None:
    file = QueueFile(tmp_path / "broker.db")

    def write() -> None:
        with file.write() as db:
            db.execute("INSERT INTO reply_queues VALUES (?, ?)", ("x" * 500_000, 0.0))

    with file.read() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages + 10}")
    with pytest.raises(BrokerError, match="database or disk is full"):
        write()
    with file.read() as db:
        db.execute("PRAGMA max_page_count = 100000")
    write()
    file.close()

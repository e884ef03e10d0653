from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.broker import open_broker
from shared.broker.base import Broker, BrokerClosed, BrokerError, Delivery, Depth, Message, Outgoing, ReplyQueue
from shared.broker.sqlite import broker as sqlite_broker
from shared.broker.sqlite import database, readers
from shared.broker.sqlite.broker import SqliteBroker
from shared.broker.sqlite.database import QueueFile
from tests.support.services import eventually


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

    monkeypatch.setattr(database, "sync_data", sync)
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

    monkeypatch.setattr(database, "sync_data", sync)
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
from tests.support.services import eventually

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


@pytest.mark.parametrize("how", ["deleted", "deleted with its log", "replaced"])
def test_a_file_that_goes_while_in_use_is_noticed_and_what_is_confirmed_then_is_in_the_new_one(
    how: str, broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broker.db"
    queue = broker.topology.predictions
    with (
        broker.consume([queue], 1) as consumer,
        broker.reply_queue() as reply_queue,
        broker.subscribe(["run.*"]) as events,
        SqliteBroker(path) as other,
    ):
        broker.publish_many([Outgoing(queue, Message(b"lost", "text/plain"))] * 5)
        held = consumer.receive(1, 5)
        for name in ("run.training", "run.failed"):
            broker.emit(name, {})
        events.receive(1)
        if how == "replaced":
            with SqliteBroker(tmp_path / "backup.db") as backup:
                backup.publish(queue, Message(b"of the backup", "text/plain"))
            (tmp_path / "backup.db").replace(path)
        else:
            for name in ("broker.db", "broker.db-wal", "broker.db-shm")[: 1 if how == "deleted" else 3]:
                (tmp_path / name).unlink()
        other.publish(queue, Message(b"work", "text/plain"))
        consumer.settle(held, [Outgoing(broker.topology.shards, Message(b"done", "text/plain"))])
        received = [delivery for _ in range(2 if how == "replaced" else 1) for delivery in consumer.receive(1, 5)]
        expected = [b"of the backup", b"work"] if how == "replaced" else [b"work"]
        assert [delivery.message.body for delivery in received[:1]] == expected[:1]
        assert reply_queue.receive(0) == []  # its reader is in the new file from here on
        consumer.settle(received, [Outgoing(reply_queue.name, Message(b"answer", "text/plain"))])
        other.emit("run.registered", {})
        assert [event.topic for event in events.receive(5)] == ["run.registered"]
        assert reply_queue.receive(5)
    assert broker.reconnects == 1
    assert "broker.db was deleted or replaced while in use" in caplog.text
    with SqliteBroker(path) as fresh:  # a process that starts now sees what the others confirmed
        assert fresh.depths()[fresh.topology.shards].ready == 1


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    SqliteBroker(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(BrokerError, match=r"broker\.db has format 7; this release reads format 1\."):
        SqliteBroker(path)


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0], ids=["back", "ahead"])
def test_leases_and_pauses_keep_to_time_when_the_clock_is_set(
    step_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall_clock = time.time
    with SqliteBroker(tmp_path / "broker.db", lease_s=0.4) as broker:
        queue = broker.topology.predictions
        broker.publish_many(
            [Outgoing(queue, Message(b"held", "text/plain")), Outgoing(queue, Message(b"late", "text/plain"))]
        )
        with broker.consume([queue], 2) as living:
            held, late = living.receive(2, 5)
            living.defer(late, 1.0)
            deferred_at = time.monotonic()
            monkeypatch.setattr(time, "time", lambda: wall_clock() + step_s)
            with broker.consume([queue], 2) as other:
                (delivery,) = other.receive(2, 10)
                assert delivery.message.body == b"late"  # and not what a living consumer holds
                assert 0.9 < time.monotonic() - deferred_at < 5
            living.settle([held])


def test_what_was_held_when_the_machine_was_restarted_is_due_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of leases starts anew with the machine."""
    path = tmp_path / "broker.db"
    before = SqliteBroker(path, lease_s=3600)
    queue = before.topology.predictions
    before.publish(queue, Message(b"held", "text/plain"))
    before.consume([queue], 1).receive(1, 5)
    for name in ("broker.db", "broker.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / f"copy-{name}")
    before.close()
    for name in ("broker.db", "broker.db-wal"):
        (tmp_path / f"copy-{name}").rename(tmp_path / name)
    started = time.monotonic()
    for module in (database, readers):
        monkeypatch.setattr(module, "now", lambda: time.monotonic() - started)
    with SqliteBroker(path, lease_s=3600) as after, after.consume([queue], 1) as consumer:
        assert [delivery.delivery_count for delivery in consumer.receive(1, 5)] == [1]


def test_the_oldest_dead_letters_go_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_broker, "DEAD_LETTERS_KEPT", 3)
    monkeypatch.setattr(sqlite_broker, "DEAD_BYTES_KEPT", 250)
    with SqliteBroker(tmp_path / "broker.db", lease_s=0.2) as broker:
        queue, dead = broker.topology.jobs, broker.topology.dead
        broker.publish_many([Outgoing(queue, Message(bytes(100), "text/plain", f"m{number}")) for number in range(5)])
        with broker.consume([queue], 5) as consumer:
            for delivery in consumer.receive(5, 5):
                consumer.dead_letter(delivery, "invalid_message")
        eventually(lambda: broker.depths()[dead].ready == 2, 10, "the oldest are gone")
        assert [letter.message.message_id for letter in broker.dead_letters()] == ["m3", "m4"]


def test_what_others_write_while_old_things_are_swept_away_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine may stop a thread at any point: here, just after it has looked at the clock."""
    path = tmp_path / "broker.db"
    opened: list[ReplyQueue] = []
    with SqliteBroker(path) as client, client.subscribe(["run.*"]) as events:

        def now_and_then_others() -> float:
            time_now = time.monotonic()
            if not opened:
                opened.append(client.reply_queue())
                client.emit("run.registered", {"run_id": "run-a"})
            return time_now

        monkeypatch.setattr(sqlite_broker, "now", now_and_then_others)
        with SqliteBroker(path, lease_s=0.2):
            eventually(lambda: opened, 10, "a sweep has begun")
        monkeypatch.undo()
        client.publish(opened[0].name, Message(b"answer", "text/plain"))
        assert [message.body for message in opened[0].receive(5)] == [b"answer"]
        assert [event.topic for event in events.receive(5)] == ["run.registered"]


def test_what_others_claim_while_a_connection_is_opened_stays_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broker.db"
    claimed: list[Delivery] = []
    with SqliteBroker(path) as holder:
        queue = holder.topology.predictions
        holder.publish(queue, Message(b"work", "text/plain"))
        with holder.consume([queue], 1) as consumer:

            def now_and_then_others() -> float:
                time_now = time.monotonic()
                if not claimed:
                    claimed.extend(consumer.receive(1, 5))
                return time_now

            monkeypatch.setattr(database, "now", now_and_then_others)
            with SqliteBroker(path) as newcomer, newcomer.consume([queue], 1) as other:
                assert claimed
                assert other.receive(1, 0.3) == []
            consumer.settle(claimed)
        assert holder.depths()[queue] == Depth(0, 0)


def test_leases_are_renewed_also_after_the_folder_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "broker" / "broker.db"
    with SqliteBroker(path, lease_s=0.4) as broker:
        queue = broker.topology.predictions
        broker.emit("run.training", {})
        with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
            db.execute("UPDATE events SET happened_at = 0")
            eventually(lambda: not db.execute("SELECT * FROM events").fetchall(), 10, "that thread has swept")
        shutil.rmtree(path.parent)
        eventually(lambda: broker.reconnects, 10, "the thread that renews leases has noticed")
        broker.emit("run.registered", {})
        broker.publish(queue, Message(b"work", "text/plain"))
        with broker.consume([queue], 1) as consumer, SqliteBroker(path, lease_s=0.4) as other:
            (delivery,) = consumer.receive(1, 5)
            with other.consume([queue], 1) as thief:
                assert thief.receive(1, 1.2) == []  # three leases long
            consumer.settle([delivery])


def test_dead_letters_are_dropped_and_sent_back_without_having_all_of_them_in_memory(tmp_path: Path) -> None:
    size, letters = 2**20, 12
    with SqliteBroker(tmp_path / "broker.db") as broker:
        queue, dead = broker.topology.jobs, broker.topology.dead
        with broker.consume([queue], letters) as consumer:
            for number in range(letters):
                broker.publish(queue, Message(bytes(size), "text/plain", f"m{number}"))
                (delivery,) = consumer.receive(1, 5)
                consumer.dead_letter(delivery, "invalid_message")
        (first, *_) = [letter.dead_id for letter in broker.dead_letters()]
        tracemalloc.start()
        try:
            assert broker.drop_dead([first]) == 1
            assert len(broker.retry_dead()) == letters - 1
            assert tracemalloc.get_traced_memory()[1] < 4 * size
        finally:
            tracemalloc.stop()
        assert broker.depths()[dead] == Depth(0, 0)
        assert broker.depths()[queue] == Depth(letters - 1, 0)

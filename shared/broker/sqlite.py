"""The embedded broker: durable queues with leases, and topic events, in one SQLite file shared by several processes.

How it works: a claim is an `UPDATE … RETURNING` that moves a message's `visible_at` from 0 (ready) into the future (the
end of its lease) and gives it a fresh `lease` token; acknowledging deletes the row where the token still matches, so a
late acknowledgement from a consumer that lost its lease changes nothing. A keeper thread extends the leases of living
consumers; those of dead ones run out. Bodies stand in a table of their own, since claiming rewrites the whole row.

Publishing work syncs to disk before it returns. Claims, acknowledgements and events survive the death of any process
but not of the machine's power, after which work is done once more.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from shared.broker.base import (
    DEAD_ID,
    DELIVERY_COUNT,
    ORIGIN,
    REASON,
    Broker,
    BrokerClosed,
    BrokerError,
    BrokerFull,
    Consumer,
    DeadLetter,
    Delivery,
    Depth,
    Event,
    Inbox,
    Message,
    Outgoing,
    Subscription,
    stamped,
    topic_matches,
    without_dead_headers,
)
from shared.topology import Topology

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    visible_at REAL NOT NULL DEFAULT 0,   -- 0: ready; later: when its lease or its pause ends
    lease TEXT,                           -- the holder's token; NULL while nobody holds it
    deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS messages_by_queue ON messages (queue, visible_at, id);
CREATE TABLE IF NOT EXISTS payloads (
    id INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL, content_type TEXT NOT NULL, correlation_id TEXT, reply_to TEXT,
    headers TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS inboxes (name TEXT PRIMARY KEY, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, happened_at REAL NOT NULL, topic TEXT NOT NULL, payload TEXT NOT NULL
);
"""
_INBOX_EXPIRY_S: Final = 600.0
_EVENTS_KEPT_S: Final = 60.0
_BUSY_TIMEOUT_S: Final = 30.0
_SHORTEST_POLL_S: Final = 0.0005
_LONGEST_POLL_S: Final = 0.003
_LONGEST_WORK_POLL_S: Final = 0.02
"""Datasets and jobs take seconds: who waits for them need not look at each of the thousands of predictions beside."""
_LONGEST_EVENT_POLL_S: Final = 0.05
"""Events are for people and for what may be a little late."""
_CHECKPOINT_PAGES: Final = 4000
"""Written before they are moved from the log to the file, which costs a sync: 16 MB, some dozens of packs of images."""
_CACHE_KIB: Final = 8000
_MAX_VARIABLES: Final = 500
"""Values in one `IN (…)`: far below every SQLite build's limit."""


class SqliteBroker(Broker):
    """The embedded broker on one file.

    Args:
        path: the database file; its folder is made.
        topology: the queues' names.
        lease_s: seconds after which a dead process's deliveries return to their queue.
        queue_limit: messages in one queue before publishing is refused.

    Raises:
        BrokerError: the file cannot be opened as a database.
    """

    def __init__(
        self, path: str | Path, topology: Topology | None = None, *, lease_s: float = 15.0, queue_limit: int = 1_000_000
    ) -> None:
        self.topology = topology or Topology()
        self.lease_s = lease_s
        self._path = Path(path)
        self._queue_limit = queue_limit
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._parts: list[_SqliteConsumer | _SqliteInbox | _SqliteSubscription] = []
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._write() as db:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
        except (sqlite3.DatabaseError, OSError) as error:
            raise BrokerError(f"cannot open the embedded broker at {self._path}: {error}") from error
        self._keeper = threading.Thread(target=self._keep_leases, name="broker-leases", daemon=True)
        self._keeper.start()

    # -- publishing

    def publish_many(self, outgoing: Sequence[Outgoing], timeout_s: float = _BUSY_TIMEOUT_S) -> None:
        with self._write(durable=True, timeout_s=timeout_s) as db:
            self._insert(db, outgoing)

    def _insert(self, db: sqlite3.Connection, outgoing: Sequence[Outgoing], *, drop_unroutable: bool = False) -> None:
        """Inserts messages in the open transaction, but for those to inboxes that are gone.

        With `drop_unroutable`, messages to any other unknown queue are left out too, instead of raising.
        """
        gone: set[str] = set()
        for queue, more in Counter(item.queue for item in outgoing).items():
            if queue in self.topology.work_queues:
                self._check_room(db, queue, more)
            elif queue != self.topology.dead and not _inbox_exists(db, queue):
                gone.add(queue)
                if not drop_unroutable and not queue.startswith(f"{self.topology.prefix}.inbox."):
                    raise BrokerError(f"queue {queue!r} does not exist; queues: {', '.join(self.topology.queues)}")
        kept = [item for item in outgoing if item.queue not in gone]
        # Ids chosen here, in the transaction, let two statements insert any number of messages.
        found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
        first = (found[0] if found else 0) + 1
        db.executemany(
            "INSERT INTO messages (id, queue) VALUES (?, ?)",
            [(row, item.queue) for row, item in enumerate(kept, start=first)],
        )
        db.executemany(
            "INSERT INTO payloads VALUES (?, ?, ?, ?, ?, ?, ?)",
            [_payload(row, stamped(item.message)) for row, item in enumerate(kept, start=first)],
        )

    def _check_room(self, db: sqlite3.Connection, queue: str, more: int) -> None:
        """Raises BrokerFull where `more` messages are more than `queue` may hold."""
        low, high = db.execute("SELECT min(id), max(id) FROM messages").fetchone()
        if low is None or high - low + 1 + more <= self._queue_limit:
            return  # the whole table spans too few ids for any queue to be full: two index look-ups instead of a count
        (held,) = db.execute("SELECT count(*) FROM messages WHERE queue = ?", (queue,)).fetchone()
        if held + more > self._queue_limit:
            raise BrokerFull(f"queue {queue} holds {held} messages; its limit is {self._queue_limit}")

    # -- consuming

    def consume(self, queues: Sequence[str], prefetch: int) -> Consumer:
        unknown = [queue for queue in queues if queue not in self.topology.queues]
        if unknown:
            raise ValueError(f"unknown queues {unknown}; expected some of {self.topology.queues}")
        consumer = _SqliteConsumer(self, queues, prefetch)
        self._keep(consumer)
        return consumer

    def _keep(self, part: _SqliteConsumer | _SqliteInbox | _SqliteSubscription) -> None:
        with self._lock:
            self._parts.append(part)

    def _forget(self, part: _SqliteConsumer | _SqliteInbox | _SqliteSubscription) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._parts.remove(part)

    def _keep_leases(self) -> None:
        """Extends the leases of this process's consumers until the broker closes; runs in a thread of its own."""
        while not self._closed.wait(self.lease_s / 4):
            with self._lock:
                consumers = [part for part in self._parts if isinstance(part, _SqliteConsumer)]
            try:
                for consumer in consumers:
                    consumer.renew()
                self._sweep()
            except BrokerError:
                continue  # a busy moment; the next turn comes well before a lease runs out

    def _sweep(self) -> None:
        """Deletes old events and the inboxes that nobody has read for long."""
        now = time.time()
        with self._read() as db:
            stale = [name for (name,) in db.execute("SELECT name FROM inboxes WHERE expires_at < ?", (now,))]
            (old,) = db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM events WHERE happened_at < ? LIMIT 1)", (now - _EVENTS_KEPT_S,)
            ).fetchone()
        if stale or old:
            with self._write() as db:
                for name in stale:
                    _delete_inbox(db, name)
                db.execute("DELETE FROM events WHERE happened_at < ?", (now - _EVENTS_KEPT_S,))

    # -- events

    def emit(self, topic: str, payload: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokerError), self._write(timeout_s=2.0) as db:
            db.execute(
                "INSERT INTO events (happened_at, topic, payload) VALUES (?, ?, ?)",
                (time.time(), topic, json.dumps(payload)),
            )

    def subscribe(self, patterns: Sequence[str] = ("#",)) -> Subscription:
        subscription = _SqliteSubscription(self, patterns)
        self._keep(subscription)
        return subscription

    def inbox(self) -> Inbox:
        inbox = _SqliteInbox(self)
        self._keep(inbox)
        return inbox

    # -- looking in

    def depths(self) -> dict[str, Depth]:
        found = dict.fromkeys(self.topology.queues, Depth(0, 0))
        with self._read() as db:
            rows = db.execute(
                "SELECT queue, sum(lease IS NULL), sum(lease IS NOT NULL) FROM messages GROUP BY queue"
            ).fetchall()
        for queue, ready, held in rows:
            if queue in found:
                found[queue] = Depth(ready, held)
        return found

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        with self._read() as db:
            rows = _messages(db, "m.queue = ? ORDER BY m.id LIMIT ?", (self.topology.dead, limit))
        return [
            DeadLetter(
                dead_id=str(message.headers.get(DEAD_ID, message.message_id)),
                reason=str(message.headers.get(REASON, "unknown")),
                origin=str(message.headers.get(ORIGIN, "unknown")),
                delivery_count=int(message.headers.get(DELIVERY_COUNT, 0)),
                message=message,
            )
            for _, message, _ in rows
        ]

    def retry_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        def back(db: sqlite3.Connection, message: Message) -> bool:
            origin = str(message.headers.get(ORIGIN))
            if origin not in self.topology.work_queues:
                return False
            self._insert(db, [Outgoing(origin, without_dead_headers(message))])
            return True

        return self._take_dead(dead_ids, back)

    def drop_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        return self._take_dead(dead_ids, lambda _db, _message: True)

    def _take_dead(self, dead_ids: Sequence[str] | None, handle: Callable[[sqlite3.Connection, Message], bool]) -> int:
        """Deletes the dead letters that `handle` says yes to, all in one transaction."""
        wanted = None if dead_ids is None else set(dead_ids)
        with self._write(durable=True) as db:
            done = [
                row
                for row, message, _ in _messages(db, "m.queue = ? ORDER BY m.id", (self.topology.dead,))
                if (wanted is None or str(message.headers.get(DEAD_ID, message.message_id)) in wanted)
                and handle(db, message)
            ]
            _delete_rows(db, done)
        return len(done)

    @property
    def reconnects(self) -> int:
        return 0  # a file is not reconnected to

    def ping(self, timeout_s: float = 2.0) -> bool:  # noqa: ARG002 - a file answers at once
        try:
            with self._read() as db:
                db.execute("SELECT 1 FROM messages LIMIT 1")
        except BrokerError:
            return False
        return True

    def close(self) -> None:
        if self._closed.is_set():
            return
        with self._lock:
            parts = list(self._parts)
        for part in parts:
            part.close()
        self._closed.set()
        self._keeper.join()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    # -- connections and transactions

    def _connection(self) -> sqlite3.Connection:
        """Returns this thread's connection."""
        if self._closed.is_set():
            raise BrokerClosed("the broker was closed")
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                connection = sqlite3.connect(
                    self._path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
                )
                # Setting the mode needs the file for itself for a moment; other processes may be at the same step.
                _until_free(lambda: connection.execute("PRAGMA journal_mode = WAL"), _BUSY_TIMEOUT_S)
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
                # Debian's SQLite, for one, writes zeros over whatever is deleted: every image twice.
                connection.execute("PRAGMA secure_delete = OFF")
            except sqlite3.Error as error:
                raise BrokerError(f"cannot open the embedded broker at {self._path}: {error}") from error
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise BrokerError(f"the embedded broker at {self._path} failed: {error}") from error

    @contextlib.contextmanager
    def _write(self, *, durable: bool = False, timeout_s: float = _BUSY_TIMEOUT_S) -> Iterator[sqlite3.Connection]:
        """A write transaction; `durable` ones are on disk when it ends.

        SQLite's own busy handler sleeps up to 100 ms between tries; waiting in short, random steps keeps the tail of
        the latency short where several processes write.
        """
        db = self._connection()
        try:
            if durable:
                db.execute("PRAGMA synchronous = FULL")
            _until_free(lambda: db.execute("BEGIN IMMEDIATE"), timeout_s)
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            _until_free(lambda: db.execute("COMMIT"), timeout_s)
        except sqlite3.OperationalError as error:
            raise BrokerError(f"the embedded broker at {self._path} failed: {error}") from error
        finally:
            if durable and not self._closed.is_set():
                db.execute("PRAGMA synchronous = NORMAL")

    def _version(self) -> int:
        """Returns a number that changes when another connection writes. Read it *before* looking, then wait on it."""
        with self._read() as db:
            (version,) = db.execute("PRAGMA data_version").fetchone()
            return int(version)

    def _wait_for_change(self, seen: int, timeout_s: float, waiting: _Waiting, stopped: Callable[[], bool]) -> None:
        """Waits until the version is no longer `seen`, `stopped()` says so, or the time is up.

        `data_version` is read from shared memory in microseconds, but a thread that wakes takes the interpreter from
        those that work: the pauses grow to the longest of `waiting`.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = waiting.next_pause_s()
        while self._version() == seen and (remaining := deadline - time.monotonic()) > 0 and not stopped():
            time.sleep(min(pause_s, remaining))
            pause_s = min(pause_s * 1.3, waiting.longest_s)


class _Waiting:
    """How long one wait for something of interest pauses between its looks.

    Each change that brings nothing makes the next pause twice as long: where others are busy, what waits for something
    else must not look at each of their thousands of changes a second.

    Args:
        longest_s: what the pauses grow to.
    """

    def __init__(self, longest_s: float) -> None:
        self.longest_s = longest_s
        self._pause_s = _SHORTEST_POLL_S / 2

    def next_pause_s(self) -> float:
        """Returns the pause for the next look."""
        self._pause_s = min(self._pause_s * 2, self.longest_s)
        return self._pause_s


class _SqliteConsumer(Consumer):
    """Claims rows under one lease token, which is also what acknowledging is checked against."""

    def __init__(self, broker: SqliteBroker, queues: Sequence[str], prefetch: int) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        self._prefetch = prefetch
        interactive = broker.topology.predictions in queues
        self._longest_poll_s = _LONGEST_POLL_S if interactive else _LONGEST_WORK_POLL_S
        self._held: dict[str, set[tuple[int, str]]] = {queue: set() for queue in queues}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def dead_queue(self) -> str:
        return self._broker.topology.dead

    def take(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        with _ended_by(self._closed):
            return self._take(limit, timeout_s)
        return []

    def _take(self, limit: int, timeout_s: float | None) -> list[Delivery]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = _Waiting(self._longest_poll_s)
        while not self._closed.is_set():
            seen = self._broker._version()
            for queue in self._queues:
                if deliveries := self._claim(queue, limit):
                    return deliveries
            remaining = 0.25 if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                break
            # A lease that runs out changes nothing in the file, so look again four times a second in any case.
            self._broker._wait_for_change(seen, min(remaining, 0.25), waiting, self._closed.is_set)
        return []

    def _claim(self, queue: str, limit: int) -> list[Delivery]:
        with self._lock:
            room = min(limit, self._prefetch - len(self._held[queue])) if self._prefetch else limit
        if room < 1:
            return []
        now = time.time()
        with self._broker._read() as db:
            # A read first: an empty queue must not cost a write transaction each time somebody else writes.
            (due,) = db.execute(
                "SELECT EXISTS (SELECT 1 FROM messages WHERE queue = ? AND visible_at <= ?)", (queue, now)
            ).fetchone()
        if not due:
            return []
        lease = uuid.uuid4().hex
        with self._broker._write() as db:
            db.execute(
                "UPDATE messages SET visible_at = 0, lease = NULL "
                "WHERE queue = ? AND visible_at > 0 AND visible_at <= ?",
                (queue, now),
            )
            claimed = db.execute(
                "UPDATE messages SET visible_at = ?, lease = ?, deliveries = deliveries + 1 WHERE id IN "
                "(SELECT id FROM messages WHERE queue = ? AND visible_at = 0 ORDER BY id LIMIT ?) RETURNING id",
                (now + self._broker.lease_s, lease, queue, room),
            ).fetchall()
            with self._lock:
                self._held[queue].update((row, lease) for (row,) in claimed)
        if not claimed:
            return []
        with self._broker._read() as db:
            rows = _messages(db, f"m.id IN ({_marks(claimed)}) ORDER BY m.id", [row for (row,) in claimed])
        return [Delivery(queue, message, count - 1, (row, lease)) for row, message, count in rows]

    def settle(self, deliveries: Sequence[Delivery], outgoing: Sequence[Outgoing] = ()) -> None:
        # One transaction: the results are in exactly when the work is out. Only results that leave the system for
        # another process's work are worth a sync; replies and acknowledgements would be made again.
        durable = any(item.queue in self._broker.topology.queues for item in outgoing)
        with self._broker._write(durable=durable) as db:
            # A client's mistake in `reply_to` must not stop the work: hence no complaint about unknown queues.
            self._broker._insert(db, outgoing, drop_unroutable=True)
            claims: dict[str, list[int]] = {}
            for row, lease in (delivery.token for delivery in deliveries):
                claims.setdefault(lease, []).append(row)
            for lease, rows in claims.items():
                _delete_held(db, lease, rows)
        self._release(deliveries)

    def retry(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        self._give_back(delivery, delay_s, counted=1)

    def postpone(self, delivery: Delivery, delay_s: float) -> None:
        self._give_back(delivery, delay_s, counted=0)

    def _give_back(self, delivery: Delivery, delay_s: float, counted: int) -> None:
        row, lease = delivery.token
        visible_at = time.time() + delay_s if delay_s > 0 else 0
        with self._broker._write() as db:
            db.execute(
                "UPDATE messages SET visible_at = ?, lease = NULL, deliveries = deliveries - 1 + ? "
                "WHERE id = ? AND lease = ?",
                (visible_at, counted, row, lease),
            )
        self._release([delivery])

    def _release(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            for delivery in deliveries:
                self._held[delivery.queue].discard(delivery.token)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Nothing is ever pending: `settle` returns when it is done."""

    def renew(self) -> None:
        """Extends the leases of everything held."""
        with self._lock:
            held = [token for tokens in self._held.values() for token in tokens]
        if held:
            until = time.time() + self._broker.lease_s
            with self._broker._write() as db:
                db.executemany(
                    "UPDATE messages SET visible_at = ? WHERE id = ? AND lease = ?", [(until, *token) for token in held]
                )

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._broker._forget(self)
        with self._lock:
            held = [token for tokens in self._held.values() for token in tokens]
        if held:
            with self._broker._write() as db:
                db.executemany(
                    "UPDATE messages SET visible_at = 0, lease = NULL, deliveries = deliveries - 1 "
                    "WHERE id = ? AND lease = ?",
                    held,
                )


class _SqliteInbox(Inbox):
    """Rows of a queue of its own, deleted as they are read."""

    def __init__(self, broker: SqliteBroker) -> None:
        self._broker = broker
        self._closed = threading.Event()
        self._expires_at = 0.0
        self.name = f"{broker.topology.prefix}.inbox.{uuid.uuid4().hex}"
        self._touch()

    def _touch(self) -> None:
        """Says that somebody still reads here, once a minute at the most."""
        if self._expires_at - time.time() < _INBOX_EXPIRY_S - 60:
            self._expires_at = time.time() + _INBOX_EXPIRY_S
            with self._broker._write() as db:
                db.execute("INSERT OR REPLACE INTO inboxes VALUES (?, ?)", (self.name, self._expires_at))

    def take(self, timeout_s: float) -> list[Message]:
        with _ended_by(self._closed):
            return self._take(timeout_s)
        return []

    def _take(self, timeout_s: float) -> list[Message]:
        deadline = time.monotonic() + timeout_s
        waiting = _Waiting(_LONGEST_POLL_S)
        while not self._closed.is_set():
            self._touch()
            seen = self._broker._version()
            with self._broker._read() as db:
                rows = _messages(db, "m.queue = ? ORDER BY m.id LIMIT 1000", (self.name,))
            if rows:
                with self._broker._write() as db:
                    _delete_rows(db, [row for row, _, _ in rows])
                return [message for _, message, _ in rows]
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            self._broker._wait_for_change(seen, min(remaining, 30.0), waiting, self._closed.is_set)
        return []

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._broker._forget(self)
            with contextlib.suppress(BrokerError), self._broker._write() as db:
                _delete_inbox(db, self.name)


class _SqliteSubscription(Subscription):
    """Reads the events that came after the last one it saw."""

    def __init__(self, broker: SqliteBroker, patterns: Sequence[str]) -> None:
        self._broker = broker
        self._patterns = tuple(patterns)
        self._closed = threading.Event()
        with broker._read() as db:
            # The sequence, not the table: old events may all have been swept.
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        self._seen: int = row[0] if row else 0

    def take(self, timeout_s: float) -> list[Event]:
        with _ended_by(self._closed):
            return self._take(timeout_s)
        return []

    def _take(self, timeout_s: float) -> list[Event]:
        deadline = time.monotonic() + timeout_s
        waiting = _Waiting(_LONGEST_EVENT_POLL_S)
        while not self._closed.is_set():
            seen = self._broker._version()
            with self._broker._read() as db:
                rows = db.execute(
                    "SELECT id, topic, payload FROM events WHERE id > ? ORDER BY id LIMIT 1000", (self._seen,)
                ).fetchall()
            if rows:
                self._seen = rows[-1][0]
                events = [
                    Event(topic, json.loads(payload))
                    for _, topic, payload in rows
                    if any(topic_matches(pattern, topic) for pattern in self._patterns)
                ]
                if events:
                    return events
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            self._broker._wait_for_change(seen, remaining, waiting, self._closed.is_set)
        return []

    def close(self) -> None:
        self._closed.set()
        self._broker._forget(self)


@contextlib.contextmanager
def _ended_by(closed: threading.Event) -> Iterator[None]:
    """Lets a `take` that was interrupted by closing end quietly, whatever it stumbled over."""
    try:
        yield
    except (BrokerError, sqlite3.ProgrammingError):
        if not closed.is_set():
            raise


def _until_free(step: Callable[[], object], timeout_s: float) -> None:
    """Runs a statement again, in short random pauses, for as long as another connection holds the lock."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            step()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise
            if time.monotonic() > deadline:
                raise BrokerError(f"the embedded broker's file stayed locked for {timeout_s:g} s") from error
            time.sleep(random.uniform(0.0002, 0.002))
        else:
            return


def _inbox_exists(db: sqlite3.Connection, name: str) -> bool:
    return db.execute("SELECT 1 FROM inboxes WHERE name = ?", (name,)).fetchone() is not None


def _messages(db: sqlite3.Connection, where: str, values: Sequence[object]) -> list[tuple[int, Message, int]]:
    """Returns (row id, message, deliveries) of the rows that match; `where` is a constant of this file."""
    rows = db.execute(
        "SELECT m.id, m.deliveries, p.message_id, p.content_type, p.correlation_id, p.reply_to, p.headers, p.body "  # noqa: S608
        f"FROM messages m JOIN payloads p ON p.id = m.id WHERE {where}",
        values,
    ).fetchall()
    return [
        (row, Message(body, content_type, message_id, correlation_id, reply_to, json.loads(headers)), deliveries)
        for row, deliveries, message_id, content_type, correlation_id, reply_to, headers, body in rows
    ]


def _delete_rows(db: sqlite3.Connection, rows: Sequence[int]) -> None:
    for start in range(0, len(rows), _MAX_VARIABLES):
        part = rows[start : start + _MAX_VARIABLES]
        for table in ("messages", "payloads"):
            db.execute(f"DELETE FROM {table} WHERE id IN ({_marks(part)})", part)  # noqa: S608 - a constant and marks


def _delete_held(db: sqlite3.Connection, lease: str, rows: Sequence[int]) -> None:
    """Deletes those of the rows that this claim still holds."""
    for start in range(0, len(rows), _MAX_VARIABLES):
        part = rows[start : start + _MAX_VARIABLES]
        held = db.execute(
            f"DELETE FROM messages WHERE id IN ({_marks(part)}) AND lease = ? RETURNING id",  # noqa: S608 - marks
            (*part, lease),
        ).fetchall()
        db.execute(f"DELETE FROM payloads WHERE id IN ({_marks(held)})", [row for (row,) in held])  # noqa: S608 - marks


def _payload(row: int, message: Message) -> tuple[object, ...]:
    return (
        row,
        message.message_id,
        message.content_type,
        message.correlation_id,
        message.reply_to,
        json.dumps(message.headers),
        message.body,
    )


def _delete_inbox(db: sqlite3.Connection, name: str) -> None:
    db.execute("DELETE FROM payloads WHERE id IN (SELECT id FROM messages WHERE queue = ?)", (name,))
    db.execute("DELETE FROM messages WHERE queue = ?", (name,))
    db.execute("DELETE FROM inboxes WHERE name = ?", (name,))


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))

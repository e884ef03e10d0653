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
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from shared.broker.base import (
    DEAD_BYTES_KEPT,
    DEAD_ID,
    DEAD_LETTERS_KEPT,
    DELIVERY_COUNT,
    ORIGIN,
    PREFETCH_BYTES,
    REASON,
    Broker,
    BrokerError,
    Consumer,
    DeadLetter,
    Depth,
    Outgoing,
    ReplyQueue,
    SentBack,
    Subscription,
    requeued_copy,
)
from shared.broker.sqlite.database import BUSY_TIMEOUT_S, QueueFile, now
from shared.broker.sqlite.readers import REPLY_QUEUE_EXPIRY_S, SqliteConsumer, SqliteReplyQueue, SqliteSubscription
from shared.broker.sqlite.tables import (
    dead_letters_beyond,
    delete_old_events,
    delete_reply_queue,
    delete_rows,
    expired_reply_queues,
    has_old_events,
    headers_in,
    insert,
    messages_by_id,
    messages_in,
)
from shared.topology import Topology

log = logging.getLogger(__name__)

_Wanted = Callable[[str, Mapping[str, Any]], bool]
"""Whether to take a dead letter, by its message id and headers."""
_EVENTS_KEPT_S: Final = 60.0


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

    remembers_stores = True

    def __init__(
        self, path: str | Path, topology: Topology | None = None, *, lease_s: float = 15.0, queue_limit: int = 1_000_000
    ) -> None:
        self.topology = topology or Topology()
        self.lease_s = lease_s
        self._queue_limit = queue_limit
        self._file = QueueFile(Path(path))
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._parts: list[SqliteConsumer | SqliteReplyQueue | SqliteSubscription] = []
        self._keeper = threading.Thread(target=self._keep_leases, name="broker-leases", daemon=True)
        self._keeper.start()

    # -- publishing

    def publish_many(self, outgoing: Sequence[Outgoing], timeout_s: float = BUSY_TIMEOUT_S) -> None:
        with self._file.write(durable=True, timeout_s=timeout_s) as db:
            insert(db, self.topology, outgoing, queue_limit=self._queue_limit)

    # -- consuming

    def consume(self, queues: Sequence[str], prefetch: int, prefetch_bytes: int = PREFETCH_BYTES) -> Consumer:
        unknown = [queue for queue in queues if queue not in self.topology.queues]
        if unknown:
            raise ValueError(f"unknown queues {unknown}; expected some of {self.topology.queues}")
        consumer = SqliteConsumer(
            self._file,
            self.topology,
            queues,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            lease_s=self.lease_s,
            queue_limit=self._queue_limit,
            forget=self._forget,
        )
        self._keep(consumer)
        return consumer

    def _keep(self, part: SqliteConsumer | SqliteReplyQueue | SqliteSubscription) -> None:
        with self._lock:
            self._parts.append(part)

    def _forget(self, part: SqliteConsumer | SqliteReplyQueue | SqliteSubscription) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._parts.remove(part)

    def _keep_leases(self) -> None:
        """Extends the leases of this process's consumers until the broker closes; runs in a thread of its own."""
        while not self._closed.wait(self.lease_s / 4):
            with self._lock:
                consumers = [part for part in self._parts if isinstance(part, SqliteConsumer)]
            try:
                for consumer in consumers:
                    consumer.renew()
                self._sweep()
            except BrokerError:
                continue  # a busy moment; the next turn comes well before a lease runs out
            except Exception:  # without this thread, all that is at hand would be handed to others, too
                log.exception("the leases could not be renewed this time")

    def _sweep(self) -> None:
        """Deletes old events, reply queues that nobody has read for long, and dead letters beyond their limit."""
        with self._file.read() as db:
            excess = dead_letters_beyond(db, self.topology.dead, DEAD_LETTERS_KEPT, DEAD_BYTES_KEPT)
        if excess:
            with self._file.write() as db:
                delete_rows(db, excess)
            log.warning("dropped the %d oldest dead letters: there were too many", len(excess))
        with self._file.read() as db:  # a look first: a sweep that finds nothing must not cost a write transaction
            if not (expired_reply_queues(db, now(), REPLY_QUEUE_EXPIRY_S) or has_old_events(db, now(), _EVENTS_KEPT_S)):
                return
        with self._file.write() as db:
            # The time within the transaction: nobody has written a later one, but before the machine was restarted.
            time_now = now()
            for name in expired_reply_queues(db, time_now, REPLY_QUEUE_EXPIRY_S):
                delete_reply_queue(db, name)
            delete_old_events(db, time_now, _EVENTS_KEPT_S)

    # -- events

    def emit(self, topic: str, payload: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokerError), self._file.write(timeout_s=2.0) as db:
            db.execute(
                "INSERT INTO events (happened_at, topic, payload) VALUES (?, ?, ?)",
                (now(), topic, json.dumps(payload)),
            )

    def subscribe(self, patterns: Sequence[str] = ("#",)) -> Subscription:
        subscription = SqliteSubscription(self._file, patterns, self._forget)
        self._keep(subscription)
        return subscription

    def reply_queue(self) -> ReplyQueue:
        name = f"{self.topology.reply_queue_prefix}{uuid.uuid4().hex}"
        reply_queue = SqliteReplyQueue(self._file, name, self._forget)
        self._keep(reply_queue)
        return reply_queue

    # -- looking in

    def depths(self, timeout_s: float = 10.0) -> dict[str, Depth]:  # noqa: ARG002 - a file answers at once
        found = dict.fromkeys(self.topology.queues, Depth(0, 0))
        with self._file.read() as db:
            rows = db.execute(
                "SELECT queue, sum(lease IS NULL), sum(lease IS NOT NULL) FROM messages GROUP BY queue"
            ).fetchall()
        for queue, ready, held in rows:
            if queue in found:
                found[queue] = Depth(ready, held)
        return found

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        with self._file.read() as db:
            rows = messages_in(db, self.topology.dead, limit)
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

    def retry_dead(self, dead_ids: Sequence[str] | None = None) -> list[SentBack]:
        return self._send_back(_named(dead_ids))

    def retry_messages(self, wanted: Callable[[str], bool]) -> list[SentBack]:
        return self._send_back(lambda message_id, _: wanted(message_id))

    def drop_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        return self._take_dead(_named(dead_ids), lambda _db, _row, _headers: True)

    def _send_back(self, wanted: _Wanted) -> list[SentBack]:
        sent: list[SentBack] = []
        retried_at = time.time()  # what goes into headers is not the file's own clock

        def back(db: sqlite3.Connection, row: int, headers: Mapping[str, Any]) -> bool:
            origin = str(headers.get(ORIGIN))
            if origin not in self.topology.work_queues:
                return False
            ((_, message, _),) = messages_by_id(db, [row])
            back_to = [Outgoing(origin, requeued_copy(message, retried_at))]
            insert(db, self.topology, back_to, queue_limit=self._queue_limit)
            sent.append(SentBack(origin, message.message_id, retried_at))
            return True

        self._take_dead(wanted, back)
        return sent

    def _take_dead(self, wanted: _Wanted, handle: Callable[[sqlite3.Connection, int, Mapping[str, Any]], bool]) -> int:
        """Deletes the wanted dead letters that `handle` says yes to, all in one transaction.

        It is given one row after the other, with the headers: all bodies together may not fit into memory.
        """
        with self._file.write(durable=True) as db:
            done = [
                row
                for row, message_id, headers in headers_in(db, self.topology.dead)
                if wanted(message_id, headers) and handle(db, row, headers)
            ]
            delete_rows(db, done)
        return len(done)

    def remembered_store(self) -> str | None:
        with self._file.read() as db:
            found = db.execute("SELECT identity FROM stores WHERE prefix = ?", (self.topology.prefix,)).fetchone()
        return None if found is None else str(found[0])

    def remember_store(self, identity: str) -> None:
        if self.remembered_store() is None:
            with self._file.write(durable=True) as db:
                db.execute("INSERT OR IGNORE INTO stores VALUES (?, ?)", (self.topology.prefix, identity))

    @property
    def reconnects(self) -> int:
        return self._file.reopened

    def ping(self, timeout_s: float = 2.0) -> bool:  # noqa: ARG002 - a file answers at once
        try:
            with self._file.read() as db:
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
        self._file.close()


def _named(dead_ids: Sequence[str] | None) -> _Wanted:
    """Returns the test of whether a letter's id is among these; None names all."""
    wanted = None if dead_ids is None else frozenset(dead_ids)
    return lambda message_id, headers: wanted is None or str(headers.get(DEAD_ID, message_id)) in wanted

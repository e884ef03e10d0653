"""Readers of the embedded broker's file: consumers of work, reply queues, and subscriptions to events."""

from __future__ import annotations

import contextlib
import itertools
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from shared.broker.base import (
    BrokerError,
    Consumer,
    Delivery,
    Event,
    Message,
    Outgoing,
    ReplyQueue,
    Subscription,
    read_event,
    topic_matches,
    without_forged_reply_to,
)
from shared.broker.sqlite.database import QueueFile, Waiting, now
from shared.broker.sqlite.tables import (
    delete_held,
    delete_reply_queue,
    delete_rows,
    insert,
    messages_by_id,
    messages_in,
    sizes_by_id,
)
from shared.topology import Topology

REPLY_QUEUE_EXPIRY_S: Final = 600.0
_LONGEST_POLL_S: Final = 0.003
_LONGEST_WORK_POLL_S: Final = 0.02
"""Datasets and jobs take seconds: who waits for them need not look at each of the thousands of predictions beside."""
_LONGEST_EVENT_POLL_S: Final = 0.05
"""Events are for people and for what may be a little late."""


class _Claim(NamedTuple):
    """A delivery's token.

    Attributes:
        row: of the message.
        lease: what the row says while it is held.
        reopened: that of the file before the claim.
    """

    row: int
    lease: str
    reopened: int


class SqliteConsumer(Consumer):
    """Claims rows under one lease token, which is also what acknowledging is checked against.

    Args:
        file: where the queues are.
        topology: their names.
        queues: those to take from, in this order.
        prefetch: deliveries held at once of each queue; 0: any number.
        prefetch_bytes: bytes of their bodies.
        lease_s: seconds that a claim holds unless it is renewed.
        queue_limit: messages that a queue of work may hold.
        forget: told when this consumer is closed.
    """

    def __init__(
        self,
        file: QueueFile,
        topology: Topology,
        queues: Sequence[str],
        *,
        prefetch: int,
        prefetch_bytes: int,
        lease_s: float,
        queue_limit: int,
        forget: Callable[[SqliteConsumer], None],
    ) -> None:
        self._file = file
        self._topology = topology
        self._lease_s = lease_s
        self._queue_limit = queue_limit
        self._forget = forget
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._prefetch_bytes = prefetch_bytes
        interactive = topology.predictions in queues
        self._longest_poll_s = _LONGEST_POLL_S if interactive else _LONGEST_WORK_POLL_S
        self._held: dict[str, dict[_Claim, int]] = {queue: {} for queue in queues}  # bytes of each
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def dead_queue(self) -> str:
        return self._topology.dead

    def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        with _ended_by(self._closed):
            return self._take(limit, timeout_s)
        return []

    def _take(self, limit: int, timeout_s: float | None) -> list[Delivery]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = Waiting(self._longest_poll_s)
        while not self._closed.is_set():
            seen = self._file.version()
            for queue in self._queues:
                if deliveries := self._claim(queue, limit):
                    return deliveries
            remaining = 0.25 if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                break
            # A lease that runs out changes nothing in the file, so look again four times a second in any case.
            self._file.wait_for_change(seen, min(remaining, 0.25), waiting, self._closed.is_set)
        return []

    def _claim(self, queue: str, limit: int) -> list[Delivery]:
        with self._lock:
            held = self._held[queue]
            room = min(limit, self._prefetch - len(held)) if self._prefetch else limit
            room_bytes = self._prefetch_bytes - sum(held.values()) if self._prefetch else math.inf
        if room < 1 or room_bytes <= 0:
            return []
        with self._file.read() as db:
            # A read first: an empty queue must not cost a write transaction each time somebody else writes.
            (due,) = db.execute(
                "SELECT EXISTS (SELECT 1 FROM messages WHERE queue = ? AND visible_at <= ?)", (queue, now())
            ).fetchone()
        if not due:
            return []
        lease, reopened = uuid.uuid4().hex, self._file.reopened
        with self._file.write() as db:
            time_now = now()  # a lease begins when it is granted, and not when it is waited for
            db.execute(
                "UPDATE messages SET visible_at = 0, set_at = 0, lease = NULL "
                "WHERE queue = ? AND visible_at > 0 AND visible_at <= ?",
                (queue, time_now),
            )
            claimed = db.execute(
                "UPDATE messages SET visible_at = ?, set_at = ?, lease = ?, deliveries = deliveries + 1 WHERE id IN "
                "(SELECT id FROM messages WHERE queue = ? AND visible_at = 0 ORDER BY id LIMIT ?) RETURNING id",
                (time_now + self._lease_s, time_now, lease, queue, room),
            ).fetchall()
            sizes = sizes_by_id(db, [row for (row,) in claimed])
            reached = itertools.accumulate(sizes.values(), initial=0)
            excess = [row for row, before in zip(sizes, reached, strict=False) if before >= room_bytes]
            for row in excess:
                db.execute(
                    "UPDATE messages SET visible_at = 0, set_at = 0, lease = NULL, deliveries = deliveries - 1 "
                    "WHERE id = ?",
                    (row,),
                )
                del sizes[row]
            with self._lock:
                self._held[queue].update((_Claim(row, lease, reopened), size) for row, size in sizes.items())
        if not sizes:
            return []
        with self._file.read() as db:
            rows = messages_by_id(db, list(sizes))
        return [
            Delivery(
                queue,
                without_forged_reply_to(message, self._topology.queues),
                count - 1,
                _Claim(row, lease, reopened),
            )
            for row, message, count in rows
        ]

    def settle(self, deliveries: Sequence[Delivery], outgoing: Sequence[Outgoing] = ()) -> None:
        # One transaction: the results are in exactly when the work is out. Only results that leave the system for
        # another process's work are worth a sync; replies and acknowledgements would be made again.
        durable = any(item.queue in self._topology.queues for item in outgoing)
        claims: list[_Claim] = [delivery.token for delivery in deliveries]
        rows: dict[str, list[int]] = {}
        for claim in claims:
            rows.setdefault(claim.lease, []).append(claim.row)
        with self._file.write(durable=durable) as db:
            held = sum(delete_held(db, lease, of_lease) for lease, of_lease in rows.items())
            # What is held no longer is another's, who answers it; but nobody has what went with a file.
            if held or not claims or any(claim.reopened != self._file.reopened for claim in claims):
                # A client's mistake in `reply_to` must not stop the work: hence no complaint about unknown queues.
                insert(db, self._topology, outgoing, queue_limit=self._queue_limit, drop_unroutable=True)
        self._release(deliveries)

    def requeue(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        self._give_back(delivery, delay_s, counted=1)

    def defer(self, delivery: Delivery, delay_s: float) -> None:
        self._give_back(delivery, delay_s, counted=0)

    def _give_back(self, delivery: Delivery, delay_s: float, counted: int) -> None:
        row, lease, _ = delivery.token
        with self._file.write() as db:
            set_at = now() if delay_s > 0 else 0
            db.execute(
                "UPDATE messages SET visible_at = ?, set_at = ?, lease = NULL, deliveries = deliveries - 1 + ? "
                "WHERE id = ? AND lease = ?",
                (set_at + max(0.0, delay_s), set_at, counted, row, lease),
            )
        self._release([delivery])

    def _release(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            for delivery in deliveries:
                self._held[delivery.queue].pop(delivery.token, None)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Nothing is ever pending: `settle` returns when it is done."""

    def renew(self) -> None:
        """Extends the leases of everything held."""
        with self._lock:
            held = [claim for claims in self._held.values() for claim in claims]
        if held:
            with self._file.write() as db:
                time_now = now()
                db.executemany(
                    "UPDATE messages SET visible_at = ?, set_at = ? WHERE id = ? AND lease = ?",
                    [(time_now + self._lease_s, time_now, claim.row, claim.lease) for claim in held],
                )

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._forget(self)
        with self._lock:
            held = [claim for claims in self._held.values() for claim in claims]
        if held:
            with self._file.write() as db:
                db.executemany(
                    "UPDATE messages SET visible_at = 0, set_at = 0, lease = NULL, deliveries = deliveries - 1 "
                    "WHERE id = ? AND lease = ?",
                    [(claim.row, claim.lease) for claim in held],
                )


class SqliteReplyQueue(ReplyQueue):
    """Rows of a queue of its own, deleted as they are read.

    Args:
        file: where they are.
        name: of the queue.
        forget: told when this reply queue is closed.
    """

    def __init__(self, file: QueueFile, name: str, forget: Callable[[SqliteReplyQueue], None]) -> None:
        self._file = file
        self._forget = forget
        self._closed = threading.Event()
        self._expires_at = -math.inf
        self._reopened = file.reopened
        self.name = name
        self._touch()

    def _touch(self) -> None:
        """Says that somebody still reads here, once a minute at the most."""
        reopened = self._file.reopened
        if self._expires_at - now() < REPLY_QUEUE_EXPIRY_S - 60 or reopened != self._reopened:
            with self._file.write() as db:
                expires_at = now() + REPLY_QUEUE_EXPIRY_S
                db.execute("INSERT OR REPLACE INTO reply_queues VALUES (?, ?)", (self.name, expires_at))
            self._expires_at, self._reopened = expires_at, reopened

    def receive(self, timeout_s: float) -> list[Message]:
        with _ended_by(self._closed):
            return self._take(timeout_s)
        return []

    def _take(self, timeout_s: float) -> list[Message]:
        deadline = time.monotonic() + timeout_s
        waiting = Waiting(_LONGEST_POLL_S)
        while not self._closed.is_set():
            self._touch()
            seen = self._file.version()
            with self._file.read() as db:
                rows = messages_in(db, self.name, limit=1000)
            if rows:
                with self._file.write() as db:
                    delete_rows(db, [row for row, _, _ in rows])
                return [message for _, message, _ in rows]
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            self._file.wait_for_change(seen, min(remaining, 30.0), waiting, self._closed.is_set)
        return []

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._forget(self)
            with contextlib.suppress(BrokerError), self._file.write() as db:
                delete_reply_queue(db, self.name)


class SqliteSubscription(Subscription):
    """Reads the events that came after the last one it saw.

    Args:
        file: where they are.
        patterns: the topics of interest.
        forget: told when this subscription is closed.
    """

    def __init__(self, file: QueueFile, patterns: Sequence[str], forget: Callable[[SqliteSubscription], None]) -> None:
        self._file = file
        self._forget = forget
        self._patterns = tuple(patterns)
        self._closed = threading.Event()
        with file.read() as db:
            # The sequence, not the table: old events may all have been swept.
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        self._seen: int = row[0] if row else 0
        self._reopened = file.reopened

    def receive(self, timeout_s: float) -> list[Event]:
        with _ended_by(self._closed):
            return self._take(timeout_s)
        return []

    def _take(self, timeout_s: float) -> list[Event]:
        deadline = time.monotonic() + timeout_s
        waiting = Waiting(_LONGEST_EVENT_POLL_S)
        while not self._closed.is_set():
            seen = self._file.version()
            if self._file.reopened != self._reopened:
                self._reopened, self._seen = self._file.reopened, 0  # another file counts from the beginning
                self.gaps += 1
            with self._file.read() as db:
                rows = db.execute(
                    "SELECT id, topic, CAST(payload AS BLOB) FROM events WHERE id > ? ORDER BY id LIMIT 1000",
                    (self._seen,),
                ).fetchall()
            if rows:
                self._seen = rows[-1][0]
                events = [
                    event
                    for _, topic, body in rows
                    if any(topic_matches(pattern, topic) for pattern in self._patterns)
                    and (event := read_event(topic, body))
                ]
                if events:
                    return events
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            self._file.wait_for_change(seen, remaining, waiting, self._closed.is_set)
        return []

    def close(self) -> None:
        self._closed.set()
        self._forget(self)


@contextlib.contextmanager
def _ended_by(closed: threading.Event) -> Iterator[None]:
    """Lets a `receive` that was interrupted by closing end quietly, whatever it stumbled over."""
    try:
        yield
    except (BrokerError, sqlite3.ProgrammingError):
        if not closed.is_set():
            raise

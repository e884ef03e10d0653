"""The rows of the embedded broker's file, within a transaction of the caller's."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from shared.broker.base import BrokerError, BrokerFull, Message, Outgoing, stamped
from shared.topology import Topology

_MAX_VARIABLES: Final = 500
"""Values in one `IN (…)`: far below every SQLite build's limit."""
_OLD_EVENTS: Final = "happened_at < ? OR happened_at > ?"


def insert(
    db: sqlite3.Connection,
    topology: Topology,
    outgoing: Sequence[Outgoing],
    *,
    queue_limit: int,
    drop_unroutable: bool = False,
) -> None:
    """Inserts messages, but for those to reply queues that are gone.

    Args:
        db: in a transaction.
        topology: which queues there are.
        outgoing: the messages and where they go.
        queue_limit: how many messages a queue of work may hold.
        drop_unroutable: leave messages to any other unknown queue out too, instead of raising.

    Raises:
        BrokerFull: a queue would hold more than it may.
        BrokerError: a queue is unknown.
    """
    gone: set[str] = set()
    for queue, more in Counter(item.queue for item in outgoing).items():
        if queue in topology.work_queues:
            _check_room(db, queue, more, queue_limit)
        elif queue != topology.dead and not reply_queue_exists(db, queue):
            gone.add(queue)
            if not drop_unroutable and not queue.startswith(topology.reply_queue_prefix):
                raise BrokerError(f"queue {queue!r} does not exist; queues: {', '.join(topology.queues)}")
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


def _check_room(db: sqlite3.Connection, queue: str, more: int, limit: int) -> None:
    """Raises BrokerFull where `more` messages are more than `queue` may hold."""
    low, high = db.execute("SELECT min(id), max(id) FROM messages").fetchone()
    if low is None or high - low + 1 + more <= limit:
        return  # the whole table spans too few ids for any queue to be full: two index look-ups instead of a count
    (held,) = db.execute("SELECT count(*) FROM messages WHERE queue = ?", (queue,)).fetchone()
    if held + more > limit:
        raise BrokerFull(f"queue {queue} holds {held} messages; its limit is {limit}")


def reply_queue_exists(db: sqlite3.Connection, name: str) -> bool:
    """Returns whether a reply queue of this name is open."""
    return db.execute("SELECT 1 FROM reply_queues WHERE name = ?", (name,)).fetchone() is not None


def messages_in(db: sqlite3.Connection, queue: str, limit: int = -1) -> list[tuple[int, Message, int]]:
    """Returns (row id, message, deliveries) of a queue's first messages; of all, where `limit` is negative."""
    return _messages(db, "m.queue = ? ORDER BY m.id LIMIT ?", (queue, limit))


def messages_by_id(db: sqlite3.Connection, rows: Sequence[int]) -> list[tuple[int, Message, int]]:
    """Returns (row id, message, deliveries) of the rows, in their order in the queue."""
    return _messages(db, f"m.id IN ({_marks(rows)}) ORDER BY m.id", rows)


def headers_in(db: sqlite3.Connection, queue: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Returns (row id, message id, headers) of a queue's messages, whose bodies stay where they are."""
    rows = db.execute(
        "SELECT m.id, p.message_id, p.headers FROM messages m JOIN payloads p ON p.id = m.id WHERE m.queue = ? "
        "ORDER BY m.id",
        (queue,),
    ).fetchall()
    return [(row, message_id, json.loads(headers)) for row, message_id, headers in rows]


def sizes_by_id(db: sqlite3.Connection, rows: Sequence[int]) -> dict[int, int]:
    """Returns the bytes of the rows' bodies, in their order in the queue."""
    return dict(db.execute(f"SELECT id, length(body) FROM payloads WHERE id IN ({_marks(rows)}) ORDER BY id", rows))  # noqa: S608 - marks


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


def dead_letters_beyond(db: sqlite3.Connection, queue: str, letters: int, size_bytes: int) -> list[int]:
    """Returns the rows of the oldest dead letters, without which there are no more than so many, of no more bytes."""
    return [
        row
        for (row,) in db.execute(
            "SELECT id FROM (SELECT m.id, row_number() OVER newer AS n, sum(length(p.body)) OVER newer AS b "
            "FROM messages m JOIN payloads p ON p.id = m.id WHERE m.queue = ? WINDOW newer AS (ORDER BY m.id DESC)) "
            "WHERE n > ? OR b > ?",
            (queue, letters, size_bytes),
        )
    ]


def delete_rows(db: sqlite3.Connection, rows: Sequence[int]) -> None:
    """Deletes messages, whoever holds them."""
    for start in range(0, len(rows), _MAX_VARIABLES):
        part = rows[start : start + _MAX_VARIABLES]
        for table in ("messages", "payloads"):
            db.execute(f"DELETE FROM {table} WHERE id IN ({_marks(part)})", part)  # noqa: S608 - a constant and marks


def delete_held(db: sqlite3.Connection, lease: str, rows: Sequence[int]) -> int:
    """Deletes those of the rows that this claim still holds. Returns how many."""
    deleted = 0
    for start in range(0, len(rows), _MAX_VARIABLES):
        part = rows[start : start + _MAX_VARIABLES]
        held = db.execute(
            f"DELETE FROM messages WHERE id IN ({_marks(part)}) AND lease = ? RETURNING id",  # noqa: S608 - marks
            (*part, lease),
        ).fetchall()
        db.execute(f"DELETE FROM payloads WHERE id IN ({_marks(held)})", [row for (row,) in held])  # noqa: S608 - marks
        deleted += len(held)
    return deleted


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


def delete_reply_queue(db: sqlite3.Connection, name: str) -> None:
    """Deletes a reply queue and what nobody has read in it."""
    db.execute("DELETE FROM payloads WHERE id IN (SELECT id FROM messages WHERE queue = ?)", (name,))
    db.execute("DELETE FROM messages WHERE queue = ?", (name,))
    db.execute("DELETE FROM reply_queues WHERE name = ?", (name,))


def expired_reply_queues(db: sqlite3.Connection, time_now: float, expiry_s: float) -> list[str]:
    """Returns the reply queues that nobody has read for long, or that are of the time before the machine was restarted.

    Args:
        db: in a transaction, if what is returned shall be deleted.
        time_now: of the clock that starts anew with the machine; what lies further ahead than `expiry_s` is older.
        expiry_s: how long a reply queue stays.
    """
    found = db.execute(
        "SELECT name FROM reply_queues WHERE expires_at < ? OR expires_at > ?", (time_now, time_now + expiry_s)
    )
    return [name for (name,) in found]


def has_old_events(db: sqlite3.Connection, time_now: float, kept_s: float) -> bool:
    """Returns whether there are events that `delete_old_events` would delete."""
    (found,) = db.execute(
        f"SELECT EXISTS (SELECT 1 FROM events WHERE {_OLD_EVENTS})",  # noqa: S608 - a constant
        (time_now - kept_s, time_now),
    ).fetchone()
    return bool(found)


def delete_old_events(db: sqlite3.Connection, time_now: float, kept_s: float) -> None:
    """Deletes events that are older, or of the time before the machine was restarted: ahead of its clock."""
    db.execute(f"DELETE FROM events WHERE {_OLD_EVENTS}", (time_now - kept_s, time_now))  # noqa: S608 - a constant


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))

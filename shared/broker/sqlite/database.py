"""The file of the embedded broker: its tables, a connection for each thread, transactions, and waiting for changes.

Times in the file are those of `now`, a clock that no one sets and that all processes of the machine share.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from shared.broker.base import BrokerClosed, BrokerError
from shared.broker.sqlite.file_system import require_own_disk

_SCHEMA: Final = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    visible_at REAL NOT NULL DEFAULT 0,   -- 0: ready; later: when its lease or its pause ends
    set_at REAL NOT NULL DEFAULT 0,       -- when `visible_at` was set
    lease TEXT,                           -- the holder's token; NULL while nobody holds it
    deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX messages_by_queue ON messages (queue, visible_at, id);
CREATE TABLE payloads (
    id INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL, content_type TEXT NOT NULL, correlation_id TEXT, reply_to TEXT,
    headers TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE reply_queues (name TEXT PRIMARY KEY, expires_at REAL NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, happened_at REAL NOT NULL, topic TEXT NOT NULL, payload TEXT NOT NULL
);
"""
_ADDED: Final = "CREATE TABLE IF NOT EXISTS stores (prefix TEXT PRIMARY KEY, identity TEXT NOT NULL)"
"""What releases before did without, and do not mind."""
BUSY_TIMEOUT_S: Final = 30.0
_FORMAT: Final = 1
"""`PRAGMA user_version` of a file with these tables."""
_SHORTEST_POLL_S: Final = 0.0005
_CHECKPOINT_PAGES: Final = 4000
"""Written before they are moved from the log to the file, which costs a sync: 16 MB, some dozens of packs of images."""
_CACHE_KIB: Final = 8000

_LOG: Final = logging.getLogger(__name__)

now: Final = time.monotonic
"""Seconds since some moment before the machine started. A wall clock that is set would end leases and pauses early, or
late by as much; this clock only starts anew with the machine, when nobody holds anything any more."""

sync_data: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


_Identity = tuple[tuple[int, int] | None, ...]
"""Device and inode number of the database, its log and its shared memory; None for one that is not there."""


class _Owned:
    """A thread's connection, closed when its thread ends: what a thread holds for itself goes with it.

    The connection alone would stay open until the garbage is collected, since it and its cache hold one another.

    Attributes:
        identity: of the file that it has open.
        in_use: held by the thread while it uses the connection. Whoever closes it from another thread must hold this
            too: Python's `sqlite3` crashes where a connection is closed in the midst of a statement.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.identity: _Identity = ()
        self.in_use = threading.RLock()

    def __del__(self) -> None:
        self.connection.close()


class QueueFile:
    """One SQLite file that several threads and processes read and write.

    A file that was deleted or replaced while it was in use is noticed by every process before its next transaction, and
    opened anew: a message confirmed from then on is in the file that the path names.

    Args:
        path: the file; it and its folder are made.

    Attributes:
        reopened: how often the file had been deleted or replaced.

    Raises:
        BrokerError: it cannot be opened as a database, has another format, or lies on a disk of other machines.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._owned: weakref.WeakSet[_Owned] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._noticed: set[_Identity] = set()
        self.reopened = 0
        require_own_disk(path.parent)
        self._own()

    def close(self) -> None:
        """Closes every thread's connection once it is not in use; from here on, using the file raises BrokerClosed."""
        self._closed.set()
        with self._lock:
            every = list(self._owned)
        for owned in every:
            with owned.in_use:
                owned.connection.close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, which nobody closes meanwhile."""
        owned = self._own()
        with owned.in_use:
            self._check_open()
            yield owned.connection

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise BrokerClosed("the broker was closed")

    def _own(self) -> _Owned:
        self._check_open()
        owned: _Owned | None = getattr(self._local, "owned", None)
        try:
            if owned is not None and not owned.connection.in_transaction and not self._is_in_place(owned):
                self._notice_replaced(owned.identity)
                owned = None
            if owned is not None:
                return owned
            owned = self._open()
        except (sqlite3.Error, OSError) as error:
            raise BrokerError(f"cannot open the embedded broker at {self._path}: {error}") from error
        with self._lock:
            self._check_open()  # else it would be missing among those that are being closed
            self._owned.add(owned)
        self._local.owned = owned
        return owned

    def _is_in_place(self, owned: _Owned) -> bool:
        """Returns whether the path still names the file that a connection has open."""
        return _identity(self._path) == owned.identity[0]

    def _notice_replaced(self, identity: _Identity) -> None:
        with self._lock:
            if identity in self._noticed:
                return  # another thread has said so
            self._noticed.add(identity)
            self.reopened += 1
        _LOG.error("%s was deleted or replaced while in use: what it held is lost to us; opening it anew", self._path)
        if not self._path.parent.exists():
            return  # and so is all that was beside it
        # What is left of the old file beside the path is not the new one's: SQLite would read one with the other.
        with _lock_folder(self._path):
            for file, old in zip(_files(self._path)[1:], identity[1:], strict=True):
                if old is not None and _identity(file) == old:
                    file.unlink()

    def _open(self) -> _Owned:
        """Opens a connection; makes the file, with its tables, where there is none."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_folder(self._path):  # so that one process makes the file, and the others find it whole
            if not self._path.exists():
                for left_over in _files(self._path)[1:]:
                    left_over.unlink(missing_ok=True)
                self._path.touch(0o666)  # less the umask; SQLite alone would keep a group from writing
            connection = sqlite3.connect(
                self._path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            owned = _Owned(connection)  # which closes it, whatever happens here
            # Setting the mode needs the file for itself for a moment; other processes may be at the same step.
            _until_free(lambda: connection.execute("PRAGMA journal_mode = WAL"), BUSY_TIMEOUT_S)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
            # Debian's SQLite, for one, writes zeros over whatever is deleted: every image twice.
            connection.execute("PRAGMA secure_delete = OFF")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if not tables:
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
            elif found != _FORMAT:
                raise BrokerError(
                    f"the embedded broker at {self._path} has format {found}; this release reads format {_FORMAT}. "
                    "Finish its work with the release that wrote it, or move the file away"
                )
            else:
                self._end_leases_before_restart(connection)
            _until_free(lambda: connection.execute(_ADDED), BUSY_TIMEOUT_S)
            owned.identity = tuple(map(_identity, _files(self._path)))
            return owned

    @staticmethod
    def _end_leases_before_restart(connection: sqlite3.Connection) -> None:
        """Makes due what was held or postponed before the machine was restarted, which started the clock anew."""
        later = "SELECT EXISTS (SELECT 1 FROM messages WHERE set_at > ?)"
        if connection.execute(later, (now(),)).fetchone() == (0,):
            return
        _until_free(lambda: connection.execute("BEGIN IMMEDIATE"), BUSY_TIMEOUT_S)
        # The time within the transaction: whatever others have claimed while this one waited lies before it.
        connection.execute("UPDATE messages SET visible_at = 0, set_at = 0, lease = NULL WHERE set_at > ?", (now(),))
        _until_free(lambda: connection.execute("COMMIT"), BUSY_TIMEOUT_S)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, for reading only."""
        try:
            with self._connection() as db:
                yield db
        except sqlite3.Error as error:
            raise BrokerError(f"the embedded broker at {self._path} failed: {error}") from error

    @contextlib.contextmanager
    def write(self, *, durable: bool = False, timeout_s: float = BUSY_TIMEOUT_S) -> Iterator[sqlite3.Connection]:
        """A write transaction; `durable` ones are on disk when it ends.

        SQLite's own busy handler sleeps up to 100 ms between tries; waiting in short, random steps keeps the tail of
        the latency short where several processes write. The log is synced after the transaction instead of in it, as
        `synchronous = FULL` would: meanwhile, others can write, and see what was written.
        """

        def begin() -> None:
            self._check_open()
            db.execute("BEGIN IMMEDIATE")

        try:
            with self._connection() as db:
                _until_free(begin, timeout_s)
                try:
                    yield db
                    _until_free(lambda: db.execute("COMMIT"), timeout_s)
                except BaseException:
                    if db.in_transaction:  # SQLite itself has rolled back what a full disk, for one, cut short
                        db.execute("ROLLBACK")
                    raise
        except sqlite3.DatabaseError as error:
            raise BrokerError(f"the embedded broker at {self._path} failed: {error}") from error
        if durable:
            self._sync()
            if not self._is_in_place(self._local.owned):
                raise BrokerError(f"{self._path} was deleted or replaced while it was written to; nothing is confirmed")

    def _sync(self) -> None:
        """Waits until the log is on disk.

        Whatever another process has moved from it to the file is on disk already: moving it syncs both. It may be
        closed here again: SQLite keeps its locks on its other files.
        """
        try:
            log = os.open(f"{self._path}-wal", os.O_RDONLY)
            try:
                sync_data(log)
            finally:
                os.close(log)
        except OSError as error:
            raise BrokerError(f"the embedded broker at {self._path} could not be synced: {error}") from error

    def version(self) -> int:
        """Returns a number that changes when another connection writes. Read it *before* looking, then wait on it."""
        with self.read() as db:
            version: int = db.execute("PRAGMA data_version").fetchone()[0]
        return version

    def wait_for_change(self, seen: int, timeout_s: float, waiting: Waiting, stopped: Callable[[], bool]) -> None:
        """Waits until the version is no longer `seen`, `stopped()` says so, or the time is up.

        `data_version` is read from shared memory in microseconds, but a thread that wakes takes the interpreter from
        those that work: the pauses grow to the longest of `waiting`.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = waiting.next_pause_s()
        while self.version() == seen and (remaining := deadline - time.monotonic()) > 0 and not stopped():
            time.sleep(min(pause_s, remaining))
            pause_s = min(pause_s * 1.3, waiting.longest_s)


def _files(path: Path) -> tuple[Path, ...]:
    """Returns the database, its log and its shared memory."""
    return path, Path(f"{path}-wal"), Path(f"{path}-shm")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - before every transaction: `Path.stat` takes twice as long
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _lock_folder(path: Path) -> Iterator[None]:
    """Keeps other processes from opening a file of this folder; those that have it open go on."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


class Waiting:
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

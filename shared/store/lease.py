"""Leases in the store: who may work on something now, across machines, with nothing but the store's atomic `create`.

Each owner writes a file of its own, `lease/<number>`, and changes it now and then. A new owner may create the file of
the next number only once the newest has not changed for a while, and of several that try, one wins. An owner that was
stopped for too long finds a higher number than its own. What it wrote as the owner goes through `Lease.store`, which
then refuses it: the number is a *fencing token*.

No clock is trusted: how long a file has not changed is measured by whoever waits for it, on its own monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from shared.errors import NotFound, Retryable
from shared.store.base import Fence, Store

_SIGHTINGS_KEPT: Final = 1000
_LOG = logging.getLogger(__name__)


class LeaseLost(Retryable):
    """Another process has taken the work over; this one must leave it alone."""


class Leases:
    """Makes the leases of one process, and remembers what it has seen of those of others.

    Args:
        store: where leases are kept.
        ttl_s: seconds after which an owner that does not renew counts as dead.
        clock: seconds, monotonic.
    """

    def __init__(self, store: Store, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self.ttl_s = ttl_s
        self._clock = clock
        self._sightings: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def lease(self, prefix: str) -> Lease:
        """Returns a lease, not acquired yet, on the work under a prefix such as `runs/run-1`."""
        return Lease(self, prefix)

    def unchanged_s(self, key: str, content: bytes) -> float:
        """Returns for how long a lease's file has had this content, as far as this process has seen."""
        now = self._clock()
        with self._lock:
            if self._sightings.get(key, (b"", now))[0] != content:
                self._sightings.pop(key, None)
            _, since = self._sightings.setdefault(key, (content, now))
            while len(self._sightings) > _SIGHTINGS_KEPT:
                del self._sightings[next(iter(self._sightings))]
        return now - since


class Lease(Fence):
    """One owner's lease on the work under `prefix`.

    Args:
        leases: of this process.
        prefix: the work, such as `runs/run-1`.
    """

    def __init__(self, leases: Leases, prefix: str) -> None:
        self._leases = leases
        self._plain_store = leases.store
        self._folder = f"{prefix}/lease"
        self._owner = f"{_pid_space()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._number = 0
        self._renewals = 0
        self.store: Store = FencedStore(leases.store, self)
        """The store as the owner writes to it: once the lease is lost, every write raises `LeaseLost`."""

    @property
    def number(self) -> int:
        """The fencing number; 0 while the lease is not held."""
        return self._number

    @property
    def folder(self) -> str:
        """Store key of the lease."""
        return self._folder

    def acquire(self) -> bool:
        """Tries to become the owner. Returns False while another one lives."""
        numbers = self._numbers()
        newest = max(numbers, default=0)
        if newest and not self._is_free(self._key(newest)):
            return False
        self._renewals = 0
        if not self._plain_store.create(self._key(newest + 1), self._content()):
            return False
        self._number = newest + 1
        self._plain_store.discard_staged(self)
        for number in numbers:
            self._plain_store.delete(self._key(number))
        return True

    def require(self) -> None:
        """Makes sure that the lease is held.

        Raises:
            LeaseLost: another process has taken over, or this one never was the owner.
        """
        if not self._number or max(self._numbers(), default=0) != self._number:
            raise LeaseLost(f"the lease {self._folder} is not held: another process has taken over, or it was released")

    def renew(self) -> None:
        """Says that the owner is alive; raises `LeaseLost` where it no longer is the owner."""
        self._renewals += 1
        self._plain_store.put_fenced(self._key(self._number), self._content(), self)

    def release(self) -> None:
        """Lets the next one take over at once. Harmless where the lease was lost."""
        if self._number:
            with contextlib.suppress(LeaseLost):
                self._plain_store.put_fenced(self._key(self._number), self._content(released=True), self)
            self._number = 0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps an acquired lease for as long as the context lasts, and releases it then."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._leases.ttl_s / 4):
                try:
                    self.renew()
                except LeaseLost:
                    return  # the next write says so
                except Retryable as error:
                    _LOG.warning("%s: %s", self._folder, error)

        keeper = threading.Thread(target=renew, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()
            self.release()

    def _is_free(self, key: str) -> bool:
        """Returns whether the newest lease was released, or its owner is dead."""
        content = _find(self._plain_store, key)
        if content is None:
            return True
        try:
            held = json.loads(content)
            owner, released = str(held["owner"]), bool(held.get("released"))
        except (ValueError, TypeError, KeyError):  # damaged: it frees itself as that of any dead owner
            owner, released = "", False
        if released or _died_here(owner):
            return True
        return self._leases.unchanged_s(key, content) >= self._leases.ttl_s

    def _numbers(self) -> list[int]:
        return [int(name) for name in self._plain_store.children(self._folder) if name.isdecimal()]

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:08d}"

    def _content(self, *, released: bool = False) -> bytes:
        content: dict[str, Any] = {"owner": self._owner, "renewals": self._renewals, "released": released}
        return json.dumps(content).encode()


class FencedStore(Store):
    """A store in which only the owner of a lease can write.

    Args:
        store: the store itself.
        fence: of the owner.
    """

    def __init__(self, store: Store, fence: Fence) -> None:
        self._store = store
        self._fence = fence
        self._updating = threading.Lock()

    def put(self, key: str, data: bytes) -> None:  # noqa: D102
        self._store.put_fenced(key, data, self._fence)

    def put_file(self, key: str, path: Path) -> None:  # noqa: D102
        self._store.put_fenced(key, path, self._fence)

    def put_fenced(self, key: str, content: bytes | Path, fence: Fence) -> None:  # noqa: D102
        self._store.put_fenced(key, content, fence)

    def create(self, key: str, data: bytes) -> bool:  # noqa: D102
        self._fence.require()
        return self._store.create(key, data)

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:  # noqa: D102
        if not key.startswith(self._fence.folder.rpartition("/")[0] + "/"):  # not the owner's alone
            self._fence.require()
            self._store.update(key, change)
            return
        with self._updating:  # of other processes, none owns the lease
            after = change(_find(self._store, key))
            if after is not None:
                self.put(key, after)

    def delete(self, key: str) -> None:  # noqa: D102
        self._fence.require()
        self._store.delete(key)

    def discard_staged(self, fence: Fence) -> None:  # noqa: D102
        self._store.discard_staged(fence)

    def get(self, key: str) -> bytes:  # noqa: D102
        return self._store.get(key)

    def exists(self, key: str) -> bool:  # noqa: D102
        return self._store.exists(key)

    def size(self, key: str) -> int:  # noqa: D102
        return self._store.size(key)

    def children(self, prefix: str) -> list[str]:  # noqa: D102
        return self._store.children(prefix)

    def folders_with(self, prefix: str, name: str) -> list[str]:  # noqa: D102
        return self._store.folders_with(prefix, name)

    def local(self, key: str) -> contextlib.AbstractContextManager[Path]:  # noqa: D102
        return self._store.local(key)

    def staging_folder(self) -> Path:  # noqa: D102
        return self._store.staging_folder()

    def ping(self) -> bool:  # noqa: D102
        return self._store.ping()


def _find(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NotFound:
        return None


def _pid_space() -> str:
    """Returns what process ids are unique in: the host, and on Linux its namespace (containers may share a host).

    Names say little, since cloned machines share theirs, and the first namespace of each has one number. So the id that
    Linux gives a machine each time it starts belongs to it.
    """
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _died_here(owner: str) -> bool:
    """Returns whether the owner was a process of this machine that is gone: then nobody needs to wait for its lease."""
    space, pid, _ = owner.rsplit(":", 2) if owner.count(":") >= 2 else ("", "", "")
    if space != _pid_space():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, as another user
    return False

"""Leases in the store: who may work on something now, across machines, with nothing but the store's atomic `create`.

Each owner writes a file of its own, `lease/<generation>`, and keeps it fresh. A new owner may create the next
generation only once the newest is stale, and of several that try, one wins. An owner that was paused for too long finds
a higher generation than its own, and stops.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.errors import Retryable
from shared.store.base import Store


class LeaseLost(Retryable):
    """Another process has taken the work over; this one must leave it alone."""


class Lease:
    """One owner's lease on the work under `prefix`.

    Args:
        store: where leases are kept.
        prefix: the work, such as `runs/run-1`.
        ttl_s: seconds after which an owner that does not renew counts as dead.
        clock: Unix time in seconds.
    """

    def __init__(self, store: Store, prefix: str, ttl_s: float, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._folder = f"{prefix}/lease"
        self._ttl_s = ttl_s
        self._clock = clock
        self._owner = f"{_pid_space()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._generation = 0

    def acquire(self) -> bool:
        """Tries to become the owner. Returns False while another one lives."""
        newest = self._newest()
        if newest:
            held = self._store.find_json(f"{self._folder}/{newest:08d}")
            if held and held["expires"] > self._clock() and not _died_here(str(held["owner"])):
                return False
        if not self._store.create(f"{self._folder}/{newest + 1:08d}", self._content()):
            return False
        self._generation = newest + 1
        return True

    def renew(self) -> None:
        """Says that the owner is alive.

        Raises:
            LeaseLost: another process has taken over, or this one never was the owner.
        """
        if not self._generation or self._newest() != self._generation:
            raise LeaseLost(f"the lease {self._folder} is not held: another process has taken over, or it was released")
        self._store.put(f"{self._folder}/{self._generation:08d}", self._content())

    def release(self) -> None:
        """Lets the next one take over at once. Harmless where the lease was lost."""
        if self._generation:
            self._store.put(f"{self._folder}/{self._generation:08d}", self._content(expires=0.0))
            self._generation = 0

    def _newest(self) -> int:
        return max((int(name) for name in self._store.children(self._folder) if name.isdecimal()), default=0)

    def _content(self, expires: float | None = None) -> bytes:
        content: dict[str, Any] = {
            "owner": self._owner,
            "expires": self._clock() + self._ttl_s if expires is None else expires,
        }
        return json.dumps(content).encode()


def _pid_space() -> str:
    """Returns what process ids are unique in: the host, and on Linux its namespace (containers may share a host)."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{namespace}"


def _died_here(owner: str) -> bool:
    """Returns whether the owner was a process of this machine that is gone: then nobody needs to wait for its lease."""
    space, pid, _ = owner.rsplit(":", 2)
    if space != _pid_space():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, as another user
    return False

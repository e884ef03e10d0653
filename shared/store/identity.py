"""A store that knows itself: `identity.json`, written once, says which store it is.

A share that is not mounted leaves an empty folder behind, and somebody may put another folder in its place. A service
that has worked with one store must neither take such a place for it nor fill it: it waits until its own is back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from shared.clock import now_iso
from shared.errors import NotFound, Retryable
from shared.store.base import Fence, Store, StoreTrouble, json_bytes

IDENTITY_KEY: Final = "identity.json"
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class StoreReplaced(Retryable):
    """Another store lies where ours was, or none: it is waited for."""


def find_identity(store: Store) -> str | None:
    """Returns which store this is; None where nobody has written that yet, or nobody can read it."""
    try:
        found = store.find_json(IDENTITY_KEY)
    except ValueError:
        return None
    return str(found["id"]) if isinstance(found, dict) and "id" in found else None


def give_identity(store: Store) -> str:
    """Returns which store this is; gives it an identity where it has none. Of many that do so, one wins.

    Raises:
        StoreReplaced: the file is there and cannot be read.
    """
    store.create(IDENTITY_KEY, json_bytes({"id": uuid.uuid4().hex, "created": now_iso()}))
    if (found := find_identity(store)) is None:
        raise StoreReplaced(f"{IDENTITY_KEY} in the store is damaged. Put it back from a backup")
    return found


class IdentifiedStore(Store):
    """A store that makes sure, before each operation, that it still is the one that it was.

    Args:
        store: the store itself.
        name: its URL, for messages.
        identity: which store it is.
        trusted_s: seconds for which it is not looked at again. What is missing is never believed without a look.
    """

    def __init__(self, store: Store, name: str, identity: str, *, trusted_s: float = 0.0) -> None:
        self._below = store
        self._name = name
        self._identity = identity
        self._trusted_s = trusted_s
        self._trusted_until = 0.0  # monotonic clock
        self._trouble: StoreTrouble | None = None
        self._lock = threading.Lock()

    @property
    def identity(self) -> str | None:  # noqa: D102
        return self._identity

    @property
    def trouble(self) -> StoreTrouble | None:  # noqa: D102
        return self._trouble

    def ping(self) -> bool:  # noqa: D102
        try:
            self._look()
        except Retryable:
            return False
        return self._below.ping()

    @property
    def _store(self) -> Store:
        """The store below, once it is known to be ours."""
        if time.monotonic() >= self._trusted_until:
            self._look()
        return self._below

    def _look(self) -> None:
        """Raises `Retryable` where the store is away or another one, and notes that."""
        try:
            found = find_identity(self._below)
            if found != self._identity:
                other = "another one" if found else "none"
                raise StoreReplaced(
                    f"found {other} in the place of the store {self._name} that was in use (its {IDENTITY_KEY} has "
                    f"the id {self._identity}); waiting for it: is its disk or share mounted?"
                )
        except Retryable as error:
            self._note(StoreTrouble("replaced" if isinstance(error, StoreReplaced) else "away", str(error)))
            raise
        self._note(None)
        self._trusted_until = time.monotonic() + self._trusted_s

    def _note(self, trouble: StoreTrouble | None) -> None:
        with self._lock:
            before, self._trouble = self._trouble, trouble
        if trouble is not None:
            self._trusted_until = 0.0
            if before is None or before.kind != trouble.kind:
                _LOG.error("%s", trouble.text)
        elif before is not None:
            _LOG.info("the store %s is back", self._name)

    def _believed(self, answer: T, *, nothing: bool) -> T:
        """Returns an answer, after another look where it says that there is nothing."""
        if nothing:
            self._look()
        return answer

    @contextlib.contextmanager
    def _missing_believed(self) -> Iterator[None]:
        try:
            yield
        except NotFound:
            self._look()
            raise

    def put(self, key: str, data: bytes) -> None:  # noqa: D102
        self._store.put(key, data)

    def create(self, key: str, data: bytes) -> bool:  # noqa: D102
        return self._store.create(key, data)

    def put_file(self, key: str, path: Path) -> None:  # noqa: D102
        self._store.put_file(key, path)

    def put_fenced(self, key: str, content: bytes | Path, fence: Fence) -> None:  # noqa: D102
        self._store.put_fenced(key, content, fence)

    def discard_staged(self, fence: Fence) -> None:  # noqa: D102
        self._store.discard_staged(fence)

    def get(self, key: str) -> bytes:  # noqa: D102
        with self._missing_believed():
            return self._store.get(key)

    def exists(self, key: str) -> bool:  # noqa: D102
        found = self._store.exists(key)
        return self._believed(found, nothing=not found)

    def size(self, key: str) -> int:  # noqa: D102
        with self._missing_believed():
            return self._store.size(key)

    def children(self, prefix: str) -> list[str]:  # noqa: D102
        names = self._store.children(prefix)
        return self._believed(names, nothing=not names)

    def folders_with(self, prefix: str, name: str) -> list[str]:  # noqa: D102
        names = self._store.folders_with(prefix, name)
        return self._believed(names, nothing=not names)

    def staging_folder(self) -> Path:  # noqa: D102
        return self._store.staging_folder()

    def delete(self, key: str) -> None:  # noqa: D102
        self._store.delete(key)

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:  # noqa: D102
        self._store.update(key, change)

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:  # noqa: D102
        with contextlib.ExitStack() as stack:
            with self._missing_believed():
                path = stack.enter_context(self._store.local(key))
            yield path


def watch_store(store: Store, stop: threading.Event, every_s: float = 2.0) -> None:
    """Looks at the store until `stop`, so that its trouble is said even while nobody uses it."""
    while not stop.wait(every_s):
        store.ping()

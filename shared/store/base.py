"""What every store does: plain files under keys. Objects become visible whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, cast, get_args

from shared.errors import InvalidMessage, NotFound, short_repr

STORE_SCHEME: Final = "store:"
_LONGEST_NAME: Final = 200
_LONGEST_KEY: Final = 900
"""In bytes; file systems end at 255 a name, S3 at 1024 a key, and both need room for prefixes."""


StoreTroubleKind = Literal["away", "replaced"]
STORE_TROUBLES: Final[tuple[StoreTroubleKind, ...]] = get_args(StoreTroubleKind)


class StoreTrouble(NamedTuple):
    """Why the store cannot be used now: a word for programs and a sentence for people."""

    kind: StoreTroubleKind
    text: str


class Fence(Protocol):
    """Lets the owner of a lease write, and nobody who owned it before.

    Attributes:
        number: grows with every acquisition of the lease.
        folder: store key of the lease.
    """

    @property
    def number(self) -> int: ...  # noqa: D102

    @property
    def folder(self) -> str: ...  # noqa: D102

    def require(self) -> None:
        """Raises `LeaseLost` where somebody else has acquired the lease since."""


class Store(ABC):
    """Objects under keys such as `runs/run-1/run.json`.

    A key is a relative POSIX path in which no name starts with a dot; anything else raises `InvalidMessage`, since keys
    may come from messages. All methods raise `Retryable` where the disk or the bucket is away or full.
    """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole, over any before it; it is durable on return."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Writes the object only where there is none. Returns whether it did; of many callers, one wins."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Moves a local file into the store, over any object before it: the file may be gone afterwards."""

    @abstractmethod
    def put_fenced(self, key: str, content: bytes | Path, fence: Fence) -> None:
        """Writes an object whole, or moves a local file there, as the owner of a lease.

        A process that was stopped at any moment of this, and goes on after another one has acquired the lease, changes
        nothing.

        Raises:
            LeaseLost: another process owns the lease now.
        """

    @abstractmethod
    def discard_staged(self, fence: Fence) -> None:
        """Makes fenced writes fail that former owners of the lease have begun; a new owner calls it before it reads."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Returns an object's bytes, or raises `NotFound`."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Returns whether there is such an object."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Returns an object's size in bytes, or raises `NotFound`."""

    @abstractmethod
    def children(self, prefix: str) -> list[str]:
        """Returns the names directly below a prefix, sorted; empty where there is nothing."""

    @abstractmethod
    def folders_with(self, prefix: str, name: str) -> list[str]:
        """Returns the names directly below a prefix, sorted, that hold an object called `name`."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Deletes an object, or everything below a prefix. Deleting nothing is no error."""

    @abstractmethod
    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replaces an object by what `change` makes of its bytes, as one atomic step.

        Args:
            key: of the object.
            change: given the present bytes, None where there is no object; returns those to write, None to leave the
                object as it is. It may be called more than once, where another process writes meanwhile.
        """

    @abstractmethod
    def local(self, key: str) -> contextlib.AbstractContextManager[Path]:
        """Gives the object as a local file to read from, for as long as the context lasts."""

    @abstractmethod
    def staging_folder(self) -> Path:
        """Returns a local folder for files that `put_file` will move into the store: where it can, on the same disk.

        Its files are no objects. Raises `Retryable` where it cannot be made.
        """

    @abstractmethod
    def ping(self) -> bool:
        """Returns whether the store answers."""

    @property
    def identity(self) -> str | None:
        """Which store this is, where it makes sure of that; see `shared.store.identity`."""
        return None

    @property
    def trouble(self) -> StoreTrouble | None:
        """Why the store could not be used when it was tried last; None where it could, or nobody looks."""
        return None

    def holds(self, key: str, size_bytes: int, sha256: str) -> bool:
        """Returns whether there is an object with this content: it is read only where its size is right."""
        try:
            if self.size(key) != size_bytes:
                return False
            with self.local(key) as path:
                return sha256_of(path) == sha256
        except NotFound:
            return False

    def update_json(self, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Replaces a JSON object by what `change` makes of it (of `{}` where there is none), as one atomic step."""
        value: dict[str, Any] = {}

        def change_bytes(data: bytes | None) -> bytes:
            nonlocal value
            value = change({} if data is None else json.loads(data))
            return json_bytes(value)

        self.update(key, change_bytes)
        return value

    def put_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON object, indented for the person who opens it."""
        self.put(key, json_bytes(value))

    def get_json(self, key: str) -> dict[str, Any]:
        """Returns a JSON object, or raises `NotFound`."""
        return cast(dict[str, Any], json.loads(self.get(key)))

    def find_json(self, key: str) -> dict[str, Any] | None:
        """Returns a JSON object, or None where there is none."""
        try:
            return self.get_json(key)
        except NotFound:
            return None


def checked_key(key: str) -> str:
    """Returns `key` where it is a plain relative path.

    Raises:
        InvalidMessage: code `uri_not_allowed`, for absolute paths, `..`, hidden names (half-written objects have such),
            backslashes, control characters, emptiness, and names or keys that are too long.
    """
    parts = key.split("/")
    if "\\" in key or not key.isprintable() or any(not part or part.startswith(".") for part in parts):
        raise InvalidMessage(
            f"{short_repr(key)} is not a store key; expected names joined by '/', none of them empty or hidden",
            code="uri_not_allowed",
        )
    if len(key.encode()) > _LONGEST_KEY or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise InvalidMessage(
            f"{short_repr(key)} is too long for a store key; expected at most {_LONGEST_NAME} bytes a name and "
            f"{_LONGEST_KEY} in all",
            code="uri_not_allowed",
        )
    return key


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Returns a JSON text for people: indented, and readable but for what is not text at all."""
    # JSON lets a client send half a surrogate pair, which UTF-8 cannot carry: it stays the escape that it was.
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace")

"""The store: plain files under keys, on a disk or in an S3 bucket. Objects become visible whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

from shared.errors import InvalidMessage, NotFound, Retryable

STORE_SCHEME: Final = "store:"


class Store(ABC):
    """Objects under keys such as `runs/run-1/run.json`.

    A key is a relative POSIX path without `..`; anything else raises `InvalidMessage`, since keys may come from
    messages. All methods raise `Retryable` where the disk or the bucket is away or full.
    """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole, over any before it; it is durable on return."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Writes the object only where there is none. Returns whether it did; of many callers, one wins."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Moves a local file into the store: it may be gone afterwards."""

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
    def delete(self, key: str) -> None:
        """Deletes an object, or everything below a prefix. Deleting nothing is no error."""

    @abstractmethod
    def update_json(self, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Replaces a JSON object by what `change` makes of it (of `{}` where there is none), as one atomic step."""

    @abstractmethod
    def local(self, key: str) -> contextlib.AbstractContextManager[Path]:
        """Gives the object as a local file to read from, for as long as the context lasts."""

    @abstractmethod
    def ping(self) -> bool:
        """Returns whether the store answers."""

    def put_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON object, indented for the person who opens it."""
        self.put(key, _json_bytes(value))

    def get_json(self, key: str) -> dict[str, Any]:
        """Returns a JSON object, or raises `NotFound`."""
        return cast(dict[str, Any], json.loads(self.get(key)))

    def find_json(self, key: str) -> dict[str, Any] | None:
        """Returns a JSON object, or None where there is none."""
        try:
            return self.get_json(key)
        except NotFound:
            return None


class FileStore(Store):
    """The store in a folder. Several processes of one machine, or of many over a shared file system, may use it.

    Args:
        root: the folder; it is made.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self._local_lock = threading.Lock()
        with _retryable(f"the store's folder {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Returns where an object lies, or would lie."""
        return self.root / checked_key(key)

    def put(self, key: str, data: bytes) -> None:  # noqa: D102
        with _retryable(key), self._written_aside(key, data) as (temporary, target):
            temporary.replace(target)

    def create(self, key: str, data: bytes) -> bool:  # noqa: D102
        with _retryable(key), self._written_aside(key, data) as (temporary, target):
            try:
                # A hard link, unlike a rename, fails where the name is taken.
                target.hardlink_to(temporary)
            except FileExistsError:
                return False
        return True

    def put_file(self, key: str, path: Path) -> None:  # noqa: D102
        target = self.path(key)
        with _retryable(key):
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.stat().st_dev != target.parent.stat().st_dev:
                # A rename does not cross file systems, so the copy is made whole beside its place first.
                aside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
                shutil.copyfile(path, aside)
                path.unlink()
                path = aside
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(target)

    def get(self, key: str) -> bytes:  # noqa: D102
        with _retryable(key):
            return self.path(key).read_bytes()

    def exists(self, key: str) -> bool:  # noqa: D102
        return self.path(key).is_file()

    def size(self, key: str) -> int:  # noqa: D102
        with _retryable(key):
            return self.path(key).stat().st_size

    def children(self, prefix: str) -> list[str]:  # noqa: D102
        folder = self.path(prefix) if prefix else self.root
        try:
            return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - names only
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, key: str) -> None:  # noqa: D102
        path = self.path(key)
        with _retryable(key):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def update_json(self, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:  # noqa: D102
        with self._exclusive(key):
            value = change(self.find_json(key) or {})
            self.put_json(key, value)
        return value

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:  # noqa: D102
        path = self.path(key)
        if not path.is_file():
            raise NotFound(f"there is no object {key!r} in the store")
        yield path

    def ping(self) -> bool:  # noqa: D102
        return os.access(self.root, os.W_OK)

    @contextlib.contextmanager
    def _written_aside(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """Writes a hidden, synced file next to the object's place and removes it afterwards, if it is still there."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # mkstemp's 0600 would keep another service's user from reading it
            yield temporary, target
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _exclusive(self, key: str) -> Iterator[None]:
        """Holds a lock on the key against every process of this machine; the kernel frees it if the holder dies."""
        import fcntl  # noqa: PLC0415 - POSIX only, and only here

        lock = self.path(f"{key}.lock").with_name(f".{PurePosixPath(key).name}.lock")
        with _retryable(key):
            lock.parent.mkdir(parents=True, exist_ok=True)
            with self._local_lock, lock.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield


def open_store(url: str) -> Store:
    """Opens the store that `url` names.

    Args:
        url: `file:PATH` (relative to the working folder, or absolute) or `s3://BUCKET/PREFIX`.

    Raises:
        Retryable: it cannot be reached.
        ValueError: the scheme is unknown.
    """
    if url.startswith("file:"):
        return FileStore(url.removeprefix("file:").removeprefix("//"))
    if url.startswith("s3://"):
        from shared.store_s3 import S3Store  # noqa: PLC0415 - needs the extra `s3`

        return S3Store(url)
    raise ValueError(f"unknown store URL {url!r}; expected file:PATH or s3://BUCKET/PREFIX")


def checked_key(key: str) -> str:
    """Returns `key` where it is a plain relative path.

    Raises:
        InvalidMessage: code `uri_not_allowed`, for absolute paths, `..`, backslashes, control characters and emptiness.
    """
    parts = key.split("/")
    if not key or any(part in {"", ".", ".."} for part in parts) or "\\" in key or not key.isprintable():
        raise InvalidMessage(f"{key!r} is not a store key; expected names joined by '/'", code="uri_not_allowed")
    return key


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


@contextlib.contextmanager
def _retryable(what: str) -> Iterator[None]:
    """Turns the operating system's errors into ours."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotFound(f"there is no object {what!r} in the store") from None
    except OSError as error:
        raise Retryable(f"the store failed on {what!r}: {error.strerror or error}") from error

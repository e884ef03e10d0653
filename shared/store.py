"""The store: plain files under keys, on a disk or in an S3 bucket. Objects become visible whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

from shared.errors import InvalidMessage, NotFound, Retryable, shown

STORE_SCHEME: Final = "store:"
_MODE: Final = 0o644
"""What a temporary file's 0600 becomes, so that another service's user can read the object."""
_LONGEST_NAME: Final = 200
_LONGEST_KEY: Final = 900
"""In bytes; file systems end at 255 a name, S3 at 1024 a key, and both need room for prefixes."""


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


class FileStore(Store):
    """The store in a folder. Several processes of one machine, or of many over a shared file system, may use it.

    Args:
        root: the folder; it is made.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        with _writing(f"its folder {self.root}"):
            _make_folder(self.root)

    def path(self, key: str) -> Path:
        """Returns where an object lies, or would lie."""
        return self.root / checked_key(key)

    def put(self, key: str, data: bytes) -> None:  # noqa: D102
        with _writing(key), self._written_aside(key, data) as (temporary, target):
            temporary.replace(target)

    def create(self, key: str, data: bytes) -> bool:  # noqa: D102
        with _writing(key), self._written_aside(key, data) as (temporary, target):
            try:
                # A hard link, unlike a rename, fails where the name is taken.
                target.hardlink_to(temporary)
            except FileExistsError:
                return False
        return True

    def put_file(self, key: str, path: Path) -> None:  # noqa: D102
        target = self.path(key)
        with path.open("rb") as source, _writing(key):
            _make_folder(target.parent)
            with contextlib.suppress(PermissionError):  # a file may be moved without being owned
                path.chmod(_MODE)
            os.fsync(source.fileno())
            try:
                path.replace(target)
            except OSError as error:
                # A rename does not cross file systems, nor two mounts of the same one: there the file is copied.
                if error.errno != errno.EXDEV:
                    raise
                with _aside(target) as (copy, temporary):
                    shutil.copyfileobj(source, copy, 2**20)
                    _sync(copy)
                    temporary.replace(target)
                path.unlink()
            _sync_folder(target.parent)

    def get(self, key: str) -> bytes:  # noqa: D102
        with _reading(key):
            return self.path(key).read_bytes()

    def exists(self, key: str) -> bool:  # noqa: D102
        with _reading(key):
            return self.path(key).is_file()

    def size(self, key: str) -> int:  # noqa: D102
        with self.local(key) as path, _reading(key):
            return path.stat().st_size

    def children(self, prefix: str) -> list[str]:  # noqa: D102
        folder = self.path(prefix) if prefix else self.root
        try:
            with _reading(prefix):
                names = os.listdir(folder)  # noqa: PTH208 - names only
        except NotFound:
            return []
        return sorted(name for name in names if not name.startswith("."))

    def delete(self, key: str) -> None:  # noqa: D102
        path = self.path(key)
        with contextlib.suppress(NotFound), _reading(key):
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
        if not self.exists(key):
            raise _not_found(key)
        yield self.path(key)

    def ping(self) -> bool:  # noqa: D102
        return os.access(self.root, os.W_OK)

    @contextlib.contextmanager
    def _written_aside(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """Writes a hidden, synced file next to the object's place, and makes what the caller does with it durable."""
        target = self.path(key)
        _make_folder(target.parent)
        with _aside(target) as (file, temporary):
            file.write(data)
            _sync(file)
            yield temporary, target
        _sync_folder(target.parent)

    @contextlib.contextmanager
    def _exclusive(self, key: str) -> Iterator[None]:
        """Holds a lock on the key against every other thread and process; the kernel frees it if the holder dies."""
        import fcntl  # noqa: PLC0415 - POSIX only, and only here

        target = self.path(key)
        with contextlib.ExitStack() as stack:
            with _writing(key):
                _make_folder(target.parent)
                lock = stack.enter_context(target.with_name(f".{target.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def open_store(url: str) -> Store:
    """Opens the store that `url` names.

    Args:
        url: `file:PATH` (relative to the working folder, or absolute) or `s3://BUCKET/PREFIX`.

    Raises:
        Retryable: it cannot be reached.
        ValueError: the scheme is unknown, no folder or bucket is named, or S3 support is not installed.
    """
    if url.startswith("file:") and (path := url.removeprefix("file:").removeprefix("//")):
        return FileStore(path)
    if url.startswith("s3://"):
        try:
            from shared.store_s3 import S3Store  # noqa: PLC0415 - only where S3 is used
        except ImportError:
            raise ValueError(f"the store {url} needs S3 support, which is not installed (extra `s3`)") from None
        return S3Store(url)
    raise ValueError(f"unknown store URL {url!r}; expected file:PATH or s3://BUCKET/PREFIX")


def checked_key(key: str) -> str:
    """Returns `key` where it is a plain relative path.

    Raises:
        InvalidMessage: code `uri_not_allowed`, for absolute paths, `..`, hidden names (half-written objects have such),
            backslashes, control characters, emptiness, and names or keys that are too long.
    """
    parts = key.split("/")
    if "\\" in key or not key.isprintable() or any(not part or part.startswith(".") for part in parts):
        raise InvalidMessage(
            f"{shown(key)} is not a store key; expected names joined by '/', none of them empty or hidden",
            code="uri_not_allowed",
        )
    if len(key.encode()) > _LONGEST_KEY or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise InvalidMessage(
            f"{shown(key)} is too long for a store key; expected at most {_LONGEST_NAME} bytes a name and "
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


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Gives a new hidden file next to `target`, and removes it afterwards if it is still there."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            temporary.chmod(_MODE)
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: a file's own sync says nothing of the name it was given."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _not_found(key: str) -> NotFound:
    return NotFound(f"there is no object {key!r} in the store")


@contextlib.contextmanager
def _reading(key: str) -> Iterator[None]:
    """Turns the operating system's errors into ours, where a missing file means a missing object."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _not_found(key) from None
    except OSError as error:
        raise _failed(key, error) from error


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    """Turns the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise _failed(what, error) from error


def _failed(what: str, error: OSError) -> Retryable:
    return Retryable(f"the store failed on {what}: {error.strerror or error}")

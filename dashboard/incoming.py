"""Uploads in parts, which may be interrupted and resumed: the core of the protocol tus 1.0 (https://tus.io).

Each lies as one file in the store's staging folder, whose length is the offset from which to go on. It is hashed while
it comes in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from shared.errors import Conflict, GenderlineError, InvalidDataset, InvalidMessage, NotFound, Retryable, short_repr
from shared.store.staging import remove_old_files, start_writeback

KEPT_S: Final = 24 * 3600.0
"""An upload to which nothing was added for so long is removed."""

RECEIVED_BODY: Final = "genderline.received_body"
"""The key of a request's environment under which the server puts the `StagedFile` of a large body."""

_ID: Final = re.compile("[0-9a-f]{32}")
_PIECE: Final = 2**20
_DIGESTS_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Upload:
    """How far an upload is.

    Attributes:
        upload_id: its id.
        offset: bytes that are here.
        size: bytes that it will have.
    """

    upload_id: str
    offset: int
    size: int


@dataclass
class _Digest:
    """The SHA-256 of a file's first bytes."""

    count: int = 0
    state: Any = field(default_factory=hashlib.sha256)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def catch_up(self, path: Path, count: int) -> None:
        """Reads what is missing of the first `count` bytes from the file: what another process has written."""
        with self.lock, path.open("rb") as file:
            if self.count > count:
                self.count, self.state = 0, hashlib.sha256()
            file.seek(self.count)
            while self.count < count and (piece := file.read(min(_PIECE, count - self.count))):
                self.add(piece)

    def add(self, data: bytes) -> None:
        self.state.update(data)
        self.count += len(data)


class IncomingUploads:
    """All uploads that are not finished.

    Args:
        folder: the store's staging folder.
        max_bytes: the most that one may have.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._digests: OrderedDict[str, _Digest] = OrderedDict()
        self._lock = threading.Lock()

    def create(self, size: int) -> Upload:
        """Begins an upload of `size` bytes, and removes what was left for too long.

        Raises:
            GenderlineError: code `too_large`.
            Retryable: the disk has no room for it.
        """
        if size > self._max_bytes:
            raise GenderlineError(f"found {size:,} bytes, expected at most {self._max_bytes:,}", code="too_large")
        with _room():
            remove_old_files(self._folder, KEPT_S)
            free = shutil.disk_usage(self._folder).free
            if free < size:
                raise Retryable(f"the disk of the store has room for {free:,} bytes; the upload has {size:,}")
            upload_id = secrets.token_hex(16)
            self._path(upload_id, size).touch(0o600, exist_ok=False)
        return Upload(upload_id, 0, size)

    def find(self, upload_id: str) -> Upload:
        """Returns how far an upload is, or raises `NotFound`."""
        path = self._find(upload_id)
        return Upload(upload_id, path.stat().st_size, _size_of(path))

    def append(self, upload_id: str, offset: int, body: IO[bytes], length: int | None) -> Upload:
        """Adds the bytes of a request. Where its connection breaks, those that came stay.

        Args:
            upload_id: the upload.
            offset: where the client goes on.
            body: the bytes.
            length: how many they are, where that is known.

        Raises:
            NotFound: there is no such upload.
            Conflict: it stands at another offset, or another request is adding to it.
            InvalidMessage: these are more bytes than the upload was to have.
            Retryable: the disk is full.
        """
        path = self._find(upload_id)
        size = _size_of(path)
        with _room(), path.open("ab", buffering=0) as file, _alone(file):
            here = file.seek(0, os.SEEK_END)
            if offset != here:
                raise Conflict(f"found Upload-Offset {offset}, expected {here}: so many bytes are here")
            if here + (length or 0) > size:
                raise InvalidMessage(f"found {here + (length or 0):,} bytes, expected {size:,}")
            digest = self._digest(upload_id)
            digest.catch_up(path, here)
            while piece := body.read(min(_PIECE, size - here)):
                while piece:
                    written = file.write(piece)
                    digest.add(piece[:written])
                    here, piece = here + written, piece[written:]
            start_writeback(file.fileno(), offset, here - offset)
        return Upload(upload_id, here, size)

    @contextlib.contextmanager
    def finished(self, upload_id: str) -> Iterator[tuple[Path, str]]:
        """Gives a finished upload as (a file that may be moved away, its SHA-256).

        It is removed at the end, unless an error says that the request may be made once more.

        Raises:
            NotFound: there is no such upload.
            Conflict: it is not complete.
        """
        path = self._find(upload_id)
        found = self.find(upload_id)
        if found.offset < found.size:
            raise Conflict(f"found {found.offset:,} of {found.size:,} bytes; expected all of them before this call")
        digest = self._digest(upload_id)
        with _room():
            digest.catch_up(path, found.size)
        sha256 = digest.state.hexdigest()
        # Another name of the same file: where the broker is away, the client comes again.
        given = path.with_name(f"given-{secrets.token_hex(8)}")
        with _room():
            given.hardlink_to(path)
        try:
            yield given, sha256
        except InvalidDataset:
            self.delete(upload_id)
            raise
        finally:
            given.unlink(missing_ok=True)
        with contextlib.suppress(NotFound):  # the same request, sent once more, was quicker
            self.delete(upload_id)

    def delete(self, upload_id: str) -> None:
        """Removes an upload, or raises `NotFound`."""
        self._find(upload_id).unlink(missing_ok=True)
        with self._lock:
            self._digests.pop(upload_id, None)

    def _path(self, upload_id: str, size: int) -> Path:
        return self._folder / f"upload-{upload_id}.{size}"

    def _find(self, upload_id: str) -> Path:
        found = list(self._folder.glob(f"upload-{upload_id}.*")) if _ID.fullmatch(upload_id) else []
        if not found:
            raise NotFound(f"there is no upload {short_repr(upload_id)}; it may have been used, or be too old")
        return found[0]

    def _digest(self, upload_id: str) -> _Digest:
        with self._lock:
            digest = self._digests.setdefault(upload_id, _Digest())
            self._digests.move_to_end(upload_id)
            while len(self._digests) > _DIGESTS_KEPT:
                self._digests.popitem(last=False)
        return digest


def _size_of(path: Path) -> int:
    return int(path.suffix.removeprefix("."))


@contextlib.contextmanager
def _alone(file: IO[bytes]) -> Iterator[None]:
    """Holds the file against every other request, in this process and in others."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict("another request is adding to this upload; expected one at a time") from None
    yield


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Turns the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise Retryable(f"the upload cannot be stored: {error.strerror or error}") from error

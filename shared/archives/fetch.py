"""Where an archive comes from (the message, the store, an allowed folder, S3): always a local file in the end."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

from shared.archives.archive import ArchiveLimits, check_archive
from shared.errors import InvalidMessage, NotFound, Retryable, short_repr
from shared.messages import ArchiveRequest
from shared.records.dataset import archive_key, damaged_archive, dataset_id
from shared.runtime.settings import Settings
from shared.store.base import STORE_SCHEME, Store, sha256_of

_PIECE: Final = 2**20


@contextlib.contextmanager
def fetch_archive(request: ArchiveRequest, store: Store, settings: Settings, folder: Path) -> Iterator[Path]:
    """Gives the request's archive as a local file, checked before it is copied or kept.

    Its size, that it is an archive at all, and, where the request names one, its `sha256` are checked.

    Args:
        request: by value or by reference.
        store: for `store:` URIs.
        settings: the allowed roots, the allowed buckets and the limits.
        folder: for a temporary copy, which every archive gets that does not lie in the store.

    Yields:
        The file, only to be read.

    Raises:
        InvalidMessage: code `uri_not_allowed`, `uri_not_found`, `sha256_mismatch` or `archive_too_large`.
        InvalidDataset: code `invalid_archive` or `archive_too_large`, as from `check_archive`.
        DamagedRecord: the archive of a dataset in the store is not the one that was put there.
        Retryable: the store or the bucket is away, or the disk is full.
    """
    with _local(request, store, settings, folder) as path:
        if request.sha256 is None:
            _check_file(path, settings)
        else:
            dataset, found = dataset_id(request.sha256, request.labels), sha256_of(path)
            # The hash is checked first. A damaged archive may not open, and its sender is not to blame.
            if found != request.sha256 and request.uri == f"{STORE_SCHEME}{archive_key(dataset)}":
                raise damaged_archive(dataset, f"found the SHA-256 {found}, expected {request.sha256}")
            _check_file(path, settings)
            if found != request.sha256:
                raise InvalidMessage(
                    f"the archive's SHA-256 is {found}; the message says {request.sha256}", code="sha256_mismatch"
                )
        yield path


@contextlib.contextmanager
def _local(request: ArchiveRequest, store: Store, settings: Settings, folder: Path) -> Iterator[Path]:
    copy = folder / "archive.zip"
    if request.uri is None:
        try:
            copy.write_bytes(request.body or b"")
        except OSError as error:
            raise Retryable(f"cannot write {copy}: {error.strerror}") from error
        yield copy
    elif request.uri.startswith(STORE_SCHEME):
        try:
            with store.local(request.uri.removeprefix(STORE_SCHEME)) as path:
                yield path
        except NotFound as error:
            raise InvalidMessage(f"uri: {error}", code="uri_not_found") from None
    elif request.uri.startswith("file://"):
        with open_allowed(request.uri, settings.allowed_roots) as source:
            _check(source, settings)  # before the copy: what is no archive must not fill the disk first
            _copy(source, copy)
        yield copy
    elif request.uri.startswith("s3://"):
        _download(request.uri, copy, settings)
        yield copy
    else:
        raise InvalidMessage(
            f"uri is {short_repr(request.uri)}; expected store:KEY, file:///PATH or s3://BUCKET/KEY",
            code="uri_not_allowed",
        )


def _check_file(path: Path, settings: Settings) -> None:
    with path.open("rb") as file:
        _check(file, settings)


def _check(file: BinaryIO, settings: Settings) -> None:
    _check_size(os.fstat(file.fileno()).st_size, settings.max_archive_bytes)
    check_archive(file, ArchiveLimits.from_settings(settings))


def open_allowed(uri: str, allowed_roots: tuple[Path, ...]) -> BinaryIO:
    """Opens the file of a `file://` URI where it lies, links resolved, inside an allowed root.

    What is checked is what is opened: after the links are resolved none is followed any more, so that a file or folder
    that is swapped for a link in the meantime leads nowhere.
    """
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path)).resolve()
    except (OSError, RuntimeError, ValueError):
        raise InvalidMessage(
            f"uri {short_repr(uri)} is not a path; expected file:///PATH", code="uri_not_allowed"
        ) from None
    if parts.netloc not in {"", "localhost"}:
        raise InvalidMessage(f"uri names the host {parts.netloc!r}; expected file:///PATH", code="uri_not_allowed")
    roots = [root.resolve() for root in allowed_roots]
    root = next((root for root in roots if path.is_relative_to(root)), None)
    if root is None:
        # Whether the file exists is none of the sender's business.
        allowed = os.pathsep.join(map(str, roots)) or "there are none"
        raise InvalidMessage(
            f"{short_repr(uri)} lies outside the allowed roots, GENDERLINE_ALLOWED_ROOTS: {allowed}",
            code="uri_not_allowed",
        )
    try:
        return open_below(root, path.relative_to(root))
    except OSError:
        raise InvalidMessage(f"there is no file that can be read at {short_repr(uri)}", code="uri_not_found") from None


def open_below(root: Path, path: Path) -> BinaryIO:
    """Opens a plain file below a folder for reading, without following a link on the way from there.

    Args:
        root: the folder; it may be reached by links.
        path: relative to it, without `..`.

    Raises:
        OSError: there is no such file, or a link, or another kind of file in its place.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        # A pipe would be waited for; opened without waiting, it is found out below.
        file = os.open(path.name or ".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is not a plain file")
    return os.fdopen(file, "rb")


def _copy(source: BinaryIO, path: Path) -> None:
    try:
        source.seek(0)
        with path.open("wb") as target:
            while piece := source.read(_PIECE):
                target.write(piece)
    except OSError as error:
        raise Retryable(f"cannot write {path}: {error.strerror}") from error


def _download(uri: str, path: Path, settings: Settings) -> None:
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if bucket not in settings.allowed_buckets:
        allowed = ", ".join(settings.allowed_buckets) or "there are none"
        raise InvalidMessage(
            f"{short_repr(uri)} lies outside the allowed buckets, GENDERLINE_ALLOWED_BUCKETS: {allowed}",
            code="uri_not_allowed",
        )
    try:
        from shared.store.s3 import S3Object  # noqa: PLC0415 - needs the extra `s3`
    except ImportError:
        raise InvalidMessage(
            f"{short_repr(uri)} needs S3 support, which is not installed here (extra `s3`)", code="uri_not_allowed"
        ) from None
    try:
        found = S3Object(uri)
        # Before the download: what is too large must not fill the disk first.
        _check_size(found.size(), settings.max_archive_bytes)
        found.download(path)
    except NotFound as error:
        raise InvalidMessage(f"uri: {error}", code="uri_not_found") from None


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidMessage(
            f"the archive has {size} bytes; at most {limit} are taken (GENDERLINE_MAX_ARCHIVE_BYTES)",
            code="archive_too_large",
        )

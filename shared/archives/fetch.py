"""Where an archive comes from (the message, the store, an allowed folder, S3): always a local file in the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.errors import InvalidMessage, NotFound, Retryable, short_repr
from shared.messages import ArchiveRequest
from shared.runtime.settings import Settings
from shared.store.base import STORE_SCHEME, Store, sha256_of


@contextlib.contextmanager
def fetch_archive(request: ArchiveRequest, store: Store, settings: Settings, folder: Path) -> Iterator[Path]:
    """Gives the request's archive as a local file, checked against the size limit and, if it names one, its `sha256`.

    Args:
        request: by value or by reference.
        store: for `store:` URIs.
        settings: the allowed roots and the limit.
        folder: for temporary copies.

    Yields:
        The file, only to be read.

    Raises:
        InvalidMessage: code `uri_not_allowed`, `uri_not_found`, `sha256_mismatch` or `archive_too_large`.
        Retryable: the store or the bucket is away.
    """
    with _local(request, store, settings, folder) as path:
        _check_size(path.stat().st_size, settings.max_archive_bytes)
        if request.sha256 and request.sha256 != (found := sha256_of(path)):
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
        yield _allowed_file(request.uri, settings)
    elif request.uri.startswith("s3://"):
        _download(request.uri, copy, settings.max_archive_bytes)
        yield copy
    else:
        raise InvalidMessage(
            f"uri is {short_repr(request.uri)}; expected store:KEY, file:///PATH or s3://BUCKET/KEY",
            code="uri_not_allowed",
        )


def _allowed_file(uri: str, settings: Settings) -> Path:
    """Returns the path of a `file://` URI where it lies, links resolved, inside an allowed root."""
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path)).resolve()
    except (OSError, RuntimeError, ValueError):
        raise InvalidMessage(
            f"uri {short_repr(uri)} is not a path; expected file:///PATH", code="uri_not_allowed"
        ) from None
    if parts.netloc not in {"", "localhost"}:
        raise InvalidMessage(f"uri names the host {parts.netloc!r}; expected file:///PATH", code="uri_not_allowed")
    roots = [root.resolve() for root in settings.allowed_roots]
    if not any(path.is_relative_to(root) for root in roots):
        # Whether the file exists is none of the sender's business.
        allowed = os.pathsep.join(map(str, roots)) or "there are none"
        raise InvalidMessage(
            f"{short_repr(uri)} lies outside the allowed roots, GENDERLINE_ALLOWED_ROOTS: {allowed}",
            code="uri_not_allowed",
        )
    if not os.access(path, os.R_OK) or not path.is_file():
        raise InvalidMessage(f"there is no file that can be read at {short_repr(uri)}", code="uri_not_found")
    return path


def _download(uri: str, path: Path, limit: int) -> None:
    try:
        from shared.store.s3 import S3Object  # noqa: PLC0415 - needs the extra `s3`
    except ImportError:
        raise InvalidMessage(
            f"{short_repr(uri)} needs S3 support, which is not installed here (extra `s3`)", code="uri_not_allowed"
        ) from None
    try:
        found = S3Object(uri)
        # Before the download: what is too large must not fill the disk first.
        _check_size(found.size(), limit)
        found.download(path)
    except NotFound as error:
        raise InvalidMessage(f"uri: {error}", code="uri_not_found") from None


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidMessage(
            f"the archive has {size} bytes; at most {limit} are taken (GENDERLINE_MAX_ARCHIVE_BYTES)",
            code="archive_too_large",
        )

"""Where an archive comes from (the message, the store, an allowed folder, S3): always a local file in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

from shared.errors import InvalidMessage, NotFound, Retryable
from shared.messages import ArchiveRequest
from shared.settings import Settings
from shared.store import STORE_SCHEME, Store, sha256_of


@contextlib.contextmanager
def fetched(request: ArchiveRequest, store: Store, settings: Settings, folder: Path) -> Iterator[tuple[Path, str]]:
    """Gives the request's archive as a local file, checked against its size limit and `sha256`.

    Args:
        request: by value or by reference.
        store: for `store:` URIs.
        settings: the allowed roots and the limit.
        folder: for temporary copies.

    Yields:
        (the file, only to be read; its SHA-256).

    Raises:
        InvalidMessage: code `uri_not_allowed`, `uri_not_found`, `sha256_mismatch` or `archive_too_large`.
        Retryable: the store or the bucket is away.
    """
    with _local(request, store, settings, folder) as path:
        size = path.stat().st_size
        if size > settings.max_archive_bytes:
            raise InvalidMessage(
                f"the archive has {size} bytes; at most {settings.max_archive_bytes} are taken "
                "(GENDERLINE_MAX_ARCHIVE_BYTES)",
                code="archive_too_large",
            )
        sha256 = sha256_of(path)
        if request.sha256 and request.sha256 != sha256:
            raise InvalidMessage(
                f"the archive's SHA-256 is {sha256}; the message says {request.sha256}", code="sha256_mismatch"
            )
        yield path, sha256


@contextlib.contextmanager
def _local(request: ArchiveRequest, store: Store, settings: Settings, folder: Path) -> Iterator[Path]:
    if request.uri is None:
        path = folder / "archive.zip"
        path.write_bytes(request.body or b"")
        yield path
    elif request.uri.startswith(STORE_SCHEME):
        try:
            with store.local(request.uri.removeprefix(STORE_SCHEME)) as path:
                yield path
        except NotFound as error:
            raise InvalidMessage(f"uri: {error}", code="uri_not_found") from None
    elif request.uri.startswith("file://"):
        yield _allowed_file(request.uri, settings)
    elif request.uri.startswith("s3://"):
        path = folder / "archive.zip"
        _download(request.uri, path)
        yield path
    else:
        raise InvalidMessage(
            f"uri is {request.uri!r}; expected store:KEY, file:///PATH or s3://BUCKET/KEY", code="uri_not_allowed"
        )


def _allowed_file(uri: str, settings: Settings) -> Path:
    """Returns the path of a `file://` URI where it lies, links resolved, inside an allowed root."""
    parts = urlsplit(uri)
    if parts.netloc not in {"", "localhost"}:
        raise InvalidMessage(f"uri names the host {parts.netloc!r}; expected file:///PATH", code="uri_not_allowed")
    try:
        path = Path(unquote(parts.path)).resolve()
    except (OSError, ValueError):
        raise InvalidMessage(f"uri {uri!r} is not a path", code="uri_not_allowed") from None
    roots = [root.resolve() for root in settings.allowed_roots]
    if not any(path.is_relative_to(root) for root in roots):
        # Whether the file exists is none of the sender's business.
        raise InvalidMessage(f"{uri} lies outside the allowed roots (GENDERLINE_ALLOWED_ROOTS)", code="uri_not_allowed")
    if not path.is_file():
        raise InvalidMessage(f"there is no file at {uri}", code="uri_not_found")
    return path


def _download(uri: str, path: Path) -> None:
    try:
        fsspec.core.url_to_fs(uri)[0].get_file(uri, str(path))
    except FileNotFoundError:
        raise InvalidMessage(f"there is no object at {uri}", code="uri_not_found") from None
    except ImportError:
        raise InvalidMessage(
            f"{uri} needs S3 support, which is not installed here (extra `s3`)", code="uri_not_allowed"
        ) from None
    except OSError as error:
        raise Retryable(f"cannot read {uri}: {error}") from error

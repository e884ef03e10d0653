"""The store: plain files under keys, in a folder or in an S3 bucket."""

from __future__ import annotations

from shared.store.base import Store
from shared.store.files import FileStore


def open_store(url: str, *, make: bool = True) -> Store:
    """Opens the store that `url` names.

    Args:
        url: `file:PATH` (relative to the working folder, or absolute) or `s3://BUCKET/PREFIX`.
        make: makes the folder where there is none.

    Raises:
        Retryable: it cannot be reached.
        ValueError: the scheme is unknown, no folder or bucket is named, or S3 support is not installed.
    """
    if url.startswith("file:") and (path := url.removeprefix("file:").removeprefix("//")):
        return FileStore(path, make=make)
    if url.startswith("s3://"):
        try:
            from shared.store.s3 import S3Store  # noqa: PLC0415 - only where S3 is used
        except ImportError:
            raise ValueError(f"the store {url} needs S3 support, which is not installed (extra `s3`)") from None
        return S3Store(url)
    raise ValueError(f"unknown store URL {url!r}; expected file:PATH or s3://BUCKET/PREFIX")

"""The store in an S3 bucket, and single S3 objects that messages name. Needs the extra `s3`.

Credentials, region and endpoint come from where every S3 program looks for them: `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL`, `~/.aws` or the machine's role.

S3 shows an object whole or not at all by itself. What has to be atomic beyond that rests on conditional writes:
`If-None-Match: *` creates, `If-Match: ETAG` replaces what was read. AWS has them. A server or proxy that ignores them
would let two processes own one lease: a store there is refused when it is opened.

A write whose answer is lost is sent again, and then its own condition refuses it. So what such a write makes names its
writer, in the object's metadata.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.asyn import sync

from shared.errors import InvalidMessage, NotFound, Retryable, short_repr
from shared.store.base import Fence, Store, checked_key

_CHANGED: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
"""What S3 answers to a conditional write that came too late, or at the same time as another."""
_OBJECT: Final = re.compile("s3://[A-Za-z0-9._-]{3,255}/[^/].{0,1023}")
_WRITERS: Final = "writers"
"""Metadata of an object: an id of each of the last calls that wrote it, newest first."""
_WRITERS_KEPT: Final = 16
"""So many others may write before a call whose answer was lost looks; S3 takes 2 KB of metadata."""
_FILES_KEPT: Final = 4
_DELETED_AT_ONCE: Final = 1000
_CONNECTION: Final = {"connect_timeout": 5, "read_timeout": 60, "retries": {"mode": "standard", "max_attempts": 3}}


class S3Store(Store):
    """The store in a bucket, for many machines.

    Args:
        url: `s3://BUCKET` or `s3://BUCKET/PREFIX`.

    Raises:
        Retryable: the bucket cannot be reached, or does not exist.
        ValueError: the server does not honour conditional writes.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._fs = _filesystem()
        self._files = _FileCache()
        self._staging: Path | None = None
        self._staging_lock = threading.Lock()
        try:
            self._call("head_bucket", f"s3://{self._bucket}")
        except NotFound:
            raise Retryable(f"the bucket {self._bucket!r} does not exist, or not for these credentials") from None
        self._try_conditional_writes()

    def put(self, key: str, data: bytes) -> None:  # noqa: D102
        self._call("put_object", key, Key=self._key(key), Body=data)

    def create(self, key: str, data: bytes) -> bool:  # noqa: D102
        writer = uuid.uuid4().hex
        if self._put_if(key, data, Metadata=_written_by(writer), IfNoneMatch="*"):
            return True
        try:
            return writer in _writers(self._head(key))
        except NotFound:
            return False

    def put_file(self, key: str, path: Path) -> None:  # noqa: D102
        with path.open("rb"):  # a file that cannot be read is not the bucket's fault
            pass
        with _s3_errors(key):
            self._fs.put_file(str(path), f"{self._bucket}/{self._key(key)}")
        path.unlink()

    def put_fenced(self, key: str, content: bytes | Path, fence: Fence) -> None:  # noqa: D102
        data = content if isinstance(content, bytes) else content.read_bytes()
        while True:
            # First what is there, then the lease, then the writing where it still is what was there: whatever a new
            # owner has written meanwhile stays.
            try:
                condition = {"IfMatch": str(self._head(key)["ETag"])}
            except NotFound:
                condition = {"IfNoneMatch": "*"}
            fence.require()
            if self._put_if(key, data, **condition):
                break
        if isinstance(content, Path):
            content.unlink()

    def discard_staged(self, fence: Fence) -> None:  # noqa: ARG002, D102 - nothing is staged here: see `put_fenced`
        return

    def get(self, key: str) -> bytes:  # noqa: D102
        return self._read(key)[0]

    def exists(self, key: str) -> bool:  # noqa: D102
        try:
            self._head(key)
        except NotFound:
            return False
        return True

    def size(self, key: str) -> int:  # noqa: D102
        return int(self._head(key)["ContentLength"])

    def children(self, prefix: str) -> list[str]:  # noqa: D102
        folder = f"{self._key(prefix)}/" if prefix else self._prefix
        names: set[str] = set()
        for page in self._pages(prefix, Prefix=folder, Delimiter="/"):
            names.update(item["Key"].removeprefix(folder) for item in page.get("Contents", []))
            names.update(item["Prefix"].removeprefix(folder).rstrip("/") for item in page.get("CommonPrefixes", []))
        return sorted(name for name in names if name and not name.startswith("."))

    def folders_with(self, prefix: str, name: str) -> list[str]:  # noqa: D102
        # All keys below, a thousand a request: far fewer requests than asking for each folder.
        folder = f"{self._key(prefix)}/"
        keys = (
            PurePosixPath(item["Key"].removeprefix(folder))
            for page in self._pages(prefix, Prefix=folder)
            for item in page.get("Contents", [])
        )
        return sorted(key.parts[0] for key in keys if len(key.parts) == 2 and key.name == name)

    def delete(self, key: str) -> None:  # noqa: D102
        below = [
            item["Key"] for page in self._pages(key, Prefix=f"{self._key(key)}/") for item in page.get("Contents", [])
        ]
        doomed = [{"Key": name} for name in [self._key(key), *below]]
        for start in range(0, len(doomed), _DELETED_AT_ONCE):
            part = {"Objects": doomed[start : start + _DELETED_AT_ONCE], "Quiet": True}
            if errors := self._call("delete_objects", key, Delete=part).get("Errors"):
                raise Retryable(f"the store failed on {key}: {errors[0].get('Message', errors[0]['Code'])}")

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:  # noqa: D102
        writer = uuid.uuid4().hex
        before: bytes | None
        while True:
            try:
                before, found = self._read(key)
            except NotFound:
                before, writers, condition = None, [], {"IfNoneMatch": "*"}
            else:
                writers, condition = _writers(found), {"IfMatch": str(found["ETag"])}
            if writer in writers:
                return
            after = change(before)
            if after is None or self._put_if(key, after, Metadata=_written_by(writer, *writers), **condition):
                return

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:  # noqa: D102
        etag = str(self._head(key)["ETag"])

        def download(path: Path) -> None:
            with _s3_errors(key):
                self._fs.get_file(f"{self._bucket}/{self._key(key)}", str(path))

        with self._files.file(key, etag, download) as path:
            yield path

    def staging_folder(self) -> Path:  # noqa: D102
        with self._staging_lock:
            if self._staging is None:
                self._staging = Path(tempfile.mkdtemp(prefix="genderline-staging-"))
                weakref.finalize(self, shutil.rmtree, self._staging, ignore_errors=True)
        return self._staging

    def ping(self) -> bool:  # noqa: D102
        try:
            self._call("head_bucket", f"s3://{self._bucket}")
        except (NotFound, Retryable):
            return False
        return True

    def _try_conditional_writes(self) -> None:
        """Tries writes whose conditions do not hold. Raises `ValueError` where one of them is done all the same."""
        key = f"probes/{uuid.uuid4().hex}"
        self.put(key, b"probe")
        try:
            ignored = [
                header
                for header, written in (
                    ("If-None-Match", self.create(key, b"created")),
                    ("If-Match", self._put_if(key, b"replaced", IfMatch=f'"{"0" * 32}"')),
                )
                if written
            ]
        finally:
            self.delete(key)
        if ignored:
            raise ValueError(
                f"the S3 server behind {self._url} ignores the header {' and '.join(ignored)}, so two processes could "
                "own one lease. Use a server that honours conditional writes, and let no proxy remove these headers"
            )

    def _key(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _call(self, method: str, what: str, **arguments: Any) -> dict[str, Any]:
        with _s3_errors(what):
            return cast(dict[str, Any], self._fs.call_s3(method, Bucket=self._bucket, **arguments))

    def _head(self, key: str) -> dict[str, Any]:
        return self._call("head_object", key, Key=self._key(key))

    def _read(self, key: str) -> tuple[bytes, dict[str, Any]]:
        """Returns an object's bytes, and what S3 says of just these bytes, such as their ETag."""
        name = self._key(key)

        async def read() -> tuple[bytes, dict[str, Any]]:
            found = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=name)
            async with found["Body"] as body:
                return await body.read(), found

        with _s3_errors(key):
            return cast(tuple[bytes, dict[str, Any]], sync(self._fs.loop, read))

    def _put_if(self, key: str, data: bytes, **condition: Any) -> bool:
        """Writes the object where the condition holds. Returns whether it did.

        False may also mean that a first try did and its answer was lost: callers look at what is there now.
        """
        with _s3_errors(key):
            try:
                self._fs.call_s3("put_object", Bucket=self._bucket, Key=self._key(key), Body=data, **condition)
            except FileNotFoundError:
                return False  # it was deleted between the reading and the writing
            except OSError as error:
                if _code(error) in _CHANGED:
                    return False
                raise
        return True

    def _pages(self, what: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        page = self._call("list_objects_v2", what, **arguments)
        yield page
        while page.get("IsTruncated"):
            page = self._call("list_objects_v2", what, ContinuationToken=page["NextContinuationToken"], **arguments)
            yield page


class S3Object:
    """One object that a message names.

    Args:
        uri: `s3://BUCKET/KEY`.

    Raises:
        InvalidMessage: code `uri_not_allowed`: it names no object.
    """

    def __init__(self, uri: str) -> None:
        if not _OBJECT.fullmatch(uri):
            raise InvalidMessage(f"uri is {short_repr(uri)}; expected s3://BUCKET/KEY", code="uri_not_allowed")
        self._uri = uri
        self._fs = _filesystem()

    def size(self) -> int:
        """Returns its size in bytes, or raises `NotFound`."""
        with _s3_errors(self._uri):
            found = self._fs.info(self._uri, refresh=True)
        if found["type"] != "file":
            raise NotFound(f"there is no object {self._uri!r}")
        return int(found["size"])

    def download(self, path: Path) -> None:
        """Copies it to a local file.

        Raises:
            NotFound: it is not there.
            Retryable: the bucket cannot be reached.
        """
        with _s3_errors(self._uri):
            self._fs.get_file(self._uri, str(path))


@dataclass
class _Cached:
    path: Path
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _FileCache:
    """Keeps the last few downloads, so that the shards of a job do not fetch its archive each time."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="genderline-s3-"))
        self._entries: OrderedDict[str, _Cached] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def file(self, key: str, etag: str, download: Callable[[Path], None]) -> Iterator[Path]:
        """Gives the local file of this version of an object; it stays at least as long as the context lasts."""
        name = f"{hashlib.sha256(f'{key} {etag}'.encode()).hexdigest()[:16]}-{PurePosixPath(key).name}"
        with self._lock:
            entry = self._entries.setdefault(name, _Cached(self._folder / name))
            self._entries.move_to_end(name)
            entry.users += 1
        try:
            with entry.lock:
                if not entry.path.exists():
                    part = entry.path.with_name(f".{name}")
                    try:
                        download(part)
                        part.replace(entry.path)
                    finally:
                        part.unlink(missing_ok=True)
            yield entry.path
        finally:
            with self._lock:
                entry.users -= 1
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        unused = [name for name, entry in self._entries.items() if not entry.users]
        for name in unused[: max(0, len(self._entries) - _FILES_KEPT)]:
            self._entries.pop(name).path.unlink(missing_ok=True)


def _filesystem() -> s3fs.S3FileSystem:
    """Returns the way to S3; listings are never cached, since other machines write too."""
    return s3fs.S3FileSystem(use_listings_cache=False, config_kwargs=dict(_CONNECTION))


def _written_by(*writers: str) -> dict[str, str]:
    """Returns an object's metadata: who wrote it, and who before."""
    return {_WRITERS: ",".join(writers[:_WRITERS_KEPT])}


def _writers(found: dict[str, Any]) -> list[str]:
    """Returns who wrote an object, newest first, from S3's answer."""
    # Some servers answer with header names in capitals.
    metadata = {name.lower(): value for name, value in found.get("Metadata", {}).items()}
    return [writer for writer in metadata.get(_WRITERS, "").split(",") if writer]


def _code(error: OSError) -> str | None:
    """Returns S3's own error code, where the error came from there."""
    cause = error.__cause__
    return str(cause.response["Error"]["Code"]) if isinstance(cause, ClientError) else None


@contextlib.contextmanager
def _s3_errors(what: str) -> Iterator[None]:
    """Turns the errors of S3, its libraries and the network into ours."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"there is no object {what!r}") from None
    except (OSError, ValueError, BotoCoreError, ClientError, aiohttp.ClientError) as error:
        raise Retryable(f"S3 failed on {what}: {error}") from error

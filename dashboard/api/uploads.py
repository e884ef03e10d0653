"""Takes archives and images from requests: archives go to disk as they come, images are bounded."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final, cast

from flask import Request, request
from werkzeug.datastructures import FileStorage

from dashboard.context import dashboard
from dashboard.incoming import RECEIVED_BODY
from shared.archives.archive import ArchiveLimits, archive_stem, check_archive
from shared.errors import InvalidImage, InvalidMessage, NotFound, Retryable, short_repr
from shared.messages import ARCHIVES, IMAGES, find_content_type
from shared.store.base import Store
from shared.store.staging import StagedFile

_PIECE: Final = 2**20
_PACKS_BYTES: Final = 256 * 2**20
"""The most that images of one request may weigh together: they are held in memory."""
_NAMES_TOLD: Final = 3


@dataclass(frozen=True, slots=True)
class UploadedArchive:
    """An archive in the store's staging folder, for as long as the request lasts.

    Attributes:
        path: where it lies; it may be moved away.
        name: what its sender calls it.
        sha256: its hash, where it was hashed as it came in.
    """

    path: Path
    name: str
    sha256: str | None


class DashboardRequest(Request):
    """A request that writes an archive in a form to the store's staging folder, not to one for temporary files."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        """Returns where werkzeug writes a file of a form: its documented way to choose."""
        if self.endpoint in {"api.submit_dataset", "api.submit_job"}:
            folder = dashboard().store.staging_folder()
            return cast(IO[bytes], tempfile.NamedTemporaryFile(prefix="form-", dir=folder))
        return super()._get_file_stream(total_content_length, content_type, filename, content_length)


@contextlib.contextmanager
def receive_archive(limits: ArchiveLimits) -> Iterator[UploadedArchive]:
    """Gives the request's archive: an upload that it names, a raw body of one of `ARCHIVES`, or the field `file`.

    Its name is the field or query argument `name`, else the uploaded file's.

    Raises:
        GenderlineError: code `too_large`.
        InvalidDataset: what came is no archive, as from `check_archive`.
        InvalidMessage: nothing came, or several files, or its content type is another one.
        NotFound: there is no such upload.
        Conflict: the upload is not complete.
        Retryable: the disk is full.
    """
    request.max_content_length = limits.max_bytes
    parts = dashboard()
    with contextlib.ExitStack() as stack:
        if (upload_id := request.args.get("upload")) is not None:
            path, sha256 = stack.enter_context(parts.uploads.finished(upload_id))
            archive = UploadedArchive(path, request.args.get("name", "archive"), sha256)
        elif request.mimetype == "multipart/form-data":
            file = _only_file()
            # Another name of the same file, which may be moved away: werkzeug removes its own.
            path = Path(file.stream.name).with_name(f"given-{uuid.uuid4().hex}")
            stack.callback(path.unlink, missing_ok=True)
            file.stream.flush()
            path.hardlink_to(file.stream.name)
            archive = UploadedArchive(path, request.form.get("name") or archive_stem(file.filename or ""), None)
        elif (kind := find_content_type(request.mimetype, b"")) in ARCHIVES or kind == "application/octet-stream":
            archive = _take_body(stack, parts.store, request.args.get("name", "archive"))
        else:
            raise InvalidMessage(
                f"content type is {request.mimetype!r}; expected {', '.join(ARCHIVES)} or multipart/form-data",
                code="unsupported_content_type",
            )
        with archive.path.open("rb") as content:
            check_archive(content, limits)
        yield replace(archive, name=archive.name[:200] or "archive")


def is_upload_used() -> bool:
    """Returns whether the request names an upload that is not here any more: it may have become a run or a job."""
    upload_id = request.args.get("upload")
    if upload_id is None:
        return False
    try:
        dashboard().uploads.find(upload_id)
    except NotFound:
        return True
    return False


def _take_body(stack: contextlib.ExitStack, store: Store, name: str) -> UploadedArchive:
    """Returns the body as a file: where the server has put a large one already, else a copy."""
    received = request.environ.get(RECEIVED_BODY)
    if isinstance(received, StagedFile):
        received.close()
        return UploadedArchive(received.path, name, received.sha256)
    try:
        copy = StagedFile(store.staging_folder())
        stack.callback(copy.discard)
        while piece := request.stream.read(_PIECE):
            copy.write(piece)
    except OSError as error:
        raise Retryable(f"the upload cannot be stored: {error.strerror or error}") from error
    copy.close()
    return UploadedArchive(copy.path, name, copy.sha256)


def receive_images(max_image_bytes: int) -> tuple[list[str | None], list[bytes]]:
    """Returns (names, encoded images) of the request: one from an `image/*` body, or the multipart fields `file`.

    A single raw image has the name None.

    Raises:
        GenderlineError: code `too_large`.
        InvalidImage: code `image_too_large`, where a raw body is over the limit.
        InvalidMessage: there are none, or the content type is another one.
    """
    request.max_content_length = _PACKS_BYTES
    kind = find_content_type(request.mimetype, b"")
    if kind.startswith("image/") or kind == "application/octet-stream":
        if (request.content_length or 0) > max_image_bytes:
            raise InvalidImage(
                f"found an image of {request.content_length:,} bytes, expected at most {max_image_bytes:,}",
                code="image_too_large",
            )
        return [None], [request.get_data(cache=False)]
    if request.mimetype == "multipart/form-data":
        files = _files()
        return [file.filename or "" for file in files], [file.read() for file in files]
    raise InvalidMessage(
        f"content type is {request.mimetype!r}; expected one of {', '.join(IMAGES)} or multipart/form-data",
        code="unsupported_content_type",
    )


def _files() -> list[FileStorage]:
    files = request.files.getlist("file")
    if not files or not any(file.filename for file in files):
        # A part may lack a name, and has the name None then.
        fields = ", ".join(sorted(short_repr(name) for name in request.files)) or "none"
        raise InvalidMessage(f"files in the fields: {fields}; expected some in the field 'file'")
    return files


def _only_file() -> FileStorage:
    named = [file for file in _files() if file.filename]
    if len(named) > 1:
        names = ", ".join(short_repr(file.filename) for file in named[:_NAMES_TOLD])
        more = ", …" if len(named) > _NAMES_TOLD else ""
        raise InvalidMessage(
            f"found {len(named)} files in the field 'file' ({names}{more}); expected one archive, so send each in a "
            "request of its own"
        )
    return named[0]


def parse_number(text: str | None, name: str, low: float, high: float) -> float | None:
    """Returns a request's number, None where there is none.

    Raises:
        InvalidMessage: it is no number, or out of range.
    """
    if text in {None, ""}:
        return None
    with contextlib.suppress(ValueError):
        if low <= (value := float(str(text))) <= high:
            return value
    raise InvalidMessage(f"{name} is {text!r}; expected a number from {low:,.10g} to {high:,.10g}")


def parse_integer(text: str | None, name: str, low: int, high: int) -> int | None:
    """Returns a request's whole number, None where there is none; see `parse_number`."""
    number = parse_number(text, name, low, high)
    if number is not None and not number.is_integer():
        raise InvalidMessage(f"{name} is {text!r}; expected a whole number")
    return None if number is None else int(number)

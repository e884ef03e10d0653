"""Takes archives and images from requests: archives go to disk as they come, images are bounded."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flask import request
from werkzeug.datastructures import FileStorage

from shared.archives.archive import ArchiveLimits, archive_stem, check_archive
from shared.errors import InvalidImage, InvalidMessage, short_repr
from shared.messages import ARCHIVES, IMAGES, find_content_type

_PIECE: Final = 2**20
_PACKS_BYTES: Final = 256 * 2**20
"""The most that images of one request may weigh together: they are held in memory."""


@dataclass(frozen=True, slots=True)
class UploadedArchive:
    """An archive on this machine's disk, for as long as the request lasts."""

    path: Path
    name: str


@contextlib.contextmanager
def receive_archive(limits: ArchiveLimits) -> Iterator[UploadedArchive]:
    """Gives the request's archive: a raw body of one of `ARCHIVES`, or the multipart field `file`.

    Its name is the field or query argument `name`, else the uploaded file's.

    Raises:
        GenderlineError: code `too_large`.
        InvalidDataset: what came is no archive, as from `check_archive`.
        InvalidMessage: nothing came, or its content type is another one.
    """
    request.max_content_length = limits.max_bytes
    with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
        path = Path(folder) / "archive.zip"
        if request.mimetype == "multipart/form-data":
            file = _files()[0]
            file.save(path)
            name = request.form.get("name") or archive_stem(file.filename or "archive")
        elif (kind := find_content_type(request.mimetype, b"")) in ARCHIVES or kind == "application/octet-stream":
            with path.open("wb") as target:
                while piece := request.stream.read(_PIECE):
                    target.write(piece)
            name = request.args.get("name", "archive")
        else:
            raise InvalidMessage(
                f"content type is {request.mimetype!r}; expected {', '.join(ARCHIVES)} or multipart/form-data",
                code="unsupported_content_type",
            )
        with path.open("rb") as archive:
            check_archive(archive, limits)
        yield UploadedArchive(path, name[:200] or "archive")


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

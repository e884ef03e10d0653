"""Images as they stand in an uploaded archive."""

from __future__ import annotations

from typing import Final

from flask import Response

from dashboard.context import dashboard
from shared.archives.archive import Archive, ArchiveLimits
from shared.errors import NotFound
from shared.faces.file_type import describe

_TYPES: Final = {
    "a JPEG image": "image/jpeg",
    "a PNG image": "image/png",
    "a WebP image": "image/webp",
    "a BMP image": "image/bmp",
    "an AVIF image": "image/avif",
    "a HEIC image": "image/heic",
}


def read_original(archive_key: str, name: str) -> bytes:
    """Returns an entry of an archive in the store, under the archive's limits.

    Raises:
        NotFound: there is no such entry.
        InvalidImage: it breaks a limit or is damaged.
    """
    parts = dashboard()
    with (
        parts.store.local(archive_key) as path,
        Archive(path, ArchiveLimits.from_settings(parts.settings)) as archive,
    ):
        for entry in archive.entries:
            if entry.name == name:
                return archive.read(entry)
    raise NotFound(f"the archive holds no entry {name[:80]!r}")


def send_original(archive_key: str, name: str) -> Response:
    """Sends an entry as an image; whatever else it is, a browser must not take it for a page of ours."""
    data = read_original(archive_key, name)
    kind = _TYPES.get(describe(data[:512]))
    if kind is None:
        raise NotFound(f"the entry {name[:80]!r} is no image")
    return Response(data, mimetype=kind)

"""Images as they stand in an uploaded archive."""

from __future__ import annotations

from typing import Final

from flask import Response

from dashboard.context import dashboard
from shared.archives.archive import ArchiveLimits
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


def send_original(archive_key: str, name: str) -> Response:
    """Sends an entry as an image; whatever else it is, a browser must not take it for a page of ours.

    Raises:
        NotFound: there is no such entry, or it is no image.
        InvalidImage: it breaks a limit or is damaged.
    """
    parts = dashboard()
    archive = parts.store_cache.archive(archive_key, ArchiveLimits.from_settings(parts.settings))
    entry = next((entry for entry in archive.entries if entry.name == name), None)
    if entry is None:
        raise NotFound(f"the archive holds no entry {name[:80]!r}")
    data = archive.read(entry)
    kind = _TYPES.get(describe(data[:512]))
    if kind is None:
        raise NotFound(f"the entry {name[:80]!r} is no image")
    return Response(data, mimetype=kind)

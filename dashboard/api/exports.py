"""Zips to download: a dataset's tables, a run, a model with every variant, and the faces of a filtered view."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO

from flask import Response, send_file

from dashboard.api.faces import requested_faces
from dashboard.context import dashboard
from shared.records.exports import ExportKind, write_export


def send_export(kind: ExportKind, which: str) -> Response:
    """Sends what a dataset, run or model consists of."""
    short = which[:12] if kind == "dataset" else which
    name = f"gender-{short}.zip" if kind == "model" else f"{short}.zip"
    return _send(name, lambda file: write_export(dashboard().store, kind, which, file))


def send_face_images(sha256: str) -> Response:
    """Sends the faces that fit the request's filter, as the network sees them, with a table of all about them."""
    return _send(f"{sha256[:12]}-faces.zip", requested_faces(sha256).write_zip)


def _send(name: str, write: Callable[[IO[bytes]], None]) -> Response:
    file = tempfile.TemporaryFile(prefix="genderline-")  # noqa: SIM115 - the answer closes it when it is sent
    try:
        write(file)
        file.seek(0)
        return send_file(file, mimetype="application/zip", as_attachment=True, download_name=name)
    except BaseException:
        file.close()
        raise

"""Zips to download: a dataset's tables, a run, a model with every variant, and the faces of a filtered view."""

from __future__ import annotations

import tempfile
import zipfile
from typing import IO

from flask import Response, send_file

from dashboard.api.faces import faces_csv, requested_faces
from dashboard.context import dashboard
from dashboard.face_grid import encode_png
from shared.faces.labels import GENDERS
from shared.records.exports import ExportKind, write_export


def send_export(kind: ExportKind, which: str) -> Response:
    """Sends what a dataset, run or model consists of."""
    file = _temporary_file()
    write_export(dashboard().store, kind, which, file)
    short = which[:12] if kind == "dataset" else which
    return _send(file, f"{'gender' if kind == 'model' else kind}-{short}.zip".replace("run-run-", "run-"))


def send_face_images(sha256: str) -> Response:
    """Sends the faces that fit the request's filter, as the network sees them, with a table of all about them."""
    asked = requested_faces(sha256)
    file = _temporary_file()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index in asked.select():
            gender = GENDERS[asked.data.gender[index]]
            archive.writestr(f"{gender}/{index:06d}.png", encode_png(asked.data.faces[index]))
        archive.writestr("faces.csv", faces_csv(asked), zipfile.ZIP_DEFLATED)
    return _send(file, f"{sha256[:12]}-faces.zip")


def _temporary_file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="genderline-")


def _send(file: IO[bytes], name: str) -> Response:
    file.seek(0)
    return send_file(file, mimetype="application/zip", as_attachment=True, download_name=name)

"""Uploads in parts: the core of tus 1.0, https://tus.io/protocols/resumable-upload."""

from __future__ import annotations

from flask import Response, jsonify, request, url_for

from dashboard.api.blueprint import blueprint
from dashboard.context import dashboard
from dashboard.incoming import Upload
from shared.errors import InvalidMessage, short_repr


@blueprint.post("/uploads")
def create_upload() -> tuple[Response, int]:
    """Begins an upload."""
    size = _read_length("Upload-Length")
    found = dashboard().uploads.create(size)
    answer = _describe_upload(found, jsonify(found))
    answer.headers["Location"] = url_for("api.get_upload", upload_id=found.upload_id)
    return answer, 201


@blueprint.get("/uploads/<upload_id>")
def get_upload(upload_id: str) -> Response:
    """Tells how far an upload is."""
    found = dashboard().uploads.find(upload_id)
    return _describe_upload(found, jsonify(found))


@blueprint.patch("/uploads/<upload_id>")
def append_upload(upload_id: str) -> tuple[Response, int]:
    """Adds bytes to an upload."""
    if request.mimetype not in {"application/offset+octet-stream", "application/octet-stream"}:
        raise InvalidMessage(
            f"content type is {request.mimetype!r}; expected application/offset+octet-stream",
            code="unsupported_content_type",
        )
    parts = dashboard()
    request.max_content_length = parts.settings.max_archive_bytes
    offset = _read_length("Upload-Offset")
    found = parts.uploads.append(upload_id, offset, request.stream, request.content_length)
    return _describe_upload(found, Response()), 204


@blueprint.delete("/uploads/<upload_id>")
def delete_upload(upload_id: str) -> tuple[Response, int]:
    """Gives an upload up."""
    dashboard().uploads.delete(upload_id)
    return Response(), 204


def _read_length(header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InvalidMessage(f"header {header} is {short_repr(text)}; expected a number of bytes")
    return int(text)


def _describe_upload(found: Upload, answer: Response) -> Response:
    answer.headers["Tus-Resumable"] = "1.0.0"
    answer.headers["Upload-Offset"] = str(found.offset)
    answer.headers["Upload-Length"] = str(found.size)
    return answer

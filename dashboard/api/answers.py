"""Answers that several calls give."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify, send_file, url_for

from dashboard.context import dashboard
from shared.errors import NotFound
from shared.records.record import DamagedRecord


def dump_json(value: object) -> str:
    """Returns a value as the JSON text of an answer."""
    return jsonify(value).get_data(as_text=True).strip()


def describe_damaged(found: list[DamagedRecord]) -> list[dict[str, Any]]:
    """Returns records that cannot be read, as answers name them."""
    return [{"file": damage.key, "error": damage.as_dict()} for damage in found]


def accept_run(run_id: str, ahead: int) -> tuple[Response, int]:
    """Answers that a run was accepted, and where it can be looked at."""
    return accepted({"run_id": run_id, "ahead": ahead}, url_for("api.get_run", run_id=run_id))


def accepted(body: dict[str, Any], location: str) -> tuple[Response, int]:
    """Answers 202, with the URL of the accepted run or job."""
    answer = jsonify(body)
    answer.headers["Location"] = location
    return answer, 202


def send_stored_file(key: str, mimetype: str, name: str) -> Response:
    """Answers with a file of the store."""
    store = dashboard().store
    if not store.exists(key):
        raise NotFound(f"{key} does not exist in the store")
    with store.local(key) as path:
        # Opened while the context lasts: an open file outlives a temporary copy.
        return send_file(path.open("rb"), mimetype=mimetype, as_attachment=True, download_name=name)

"""Failed messages, which lie in the dead-letter queue: why each could not be processed, and what to do with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack
from flask import Blueprint, flash, redirect, render_template, url_for
from pydantic_core import from_json
from werkzeug.wrappers import Response

from dashboard.api.routes.dead import read_dead_ids
from dashboard.context import dashboard
from shared.broker.base import DeadLetter
from shared.errors import CODES, InvalidMessage
from shared.faces.file_type import describe
from shared.messages import MSGPACK

_SHOWN: Final = 200
_PREVIEW: Final = 600

blueprint = Blueprint("dead", __name__)


@blueprint.get("/dead")
def list_dead() -> str:
    """Shows the oldest dead letters."""
    parts = dashboard()
    letters = parts.broker.dead_letters(_SHOWN)
    total = parts.broker.depths()[parts.broker.topology.dead].ready
    return render_template(
        "dead.html", letters=[_view(letter) for letter in letters], total=max(total, len(letters)), shown=len(letters)
    )


@blueprint.post("/dead/retry")
def retry() -> Response:
    """Sends dead letters back to their queues."""
    return _act_on_selected(dashboard().client.retry_dead, "re-queued")


@blueprint.post("/dead/drop")
def drop() -> Response:
    """Deletes dead letters."""
    return _act_on_selected(dashboard().broker.drop_dead, "deleted")


def _act_on_selected(act: Callable[[Sequence[str] | None], int], words: str) -> Response:
    """Does something to the dead letters that the form names, and leads back to the list."""
    try:
        chosen = read_dead_ids()
    except InvalidMessage:  # without scripts the buttons can be pressed with nothing selected
        flash("No message was selected. Tick some, then press again.")
    else:
        flash(f"{act(chosen):,} {words}.")
    return redirect(url_for("dead.list_dead"), 303)


def _view(letter: DeadLetter) -> dict[str, Any]:
    meaning = "It was tried too often without success." if letter.reason == "delivery_limit" else ""
    version = letter.message.headers.get("model_version")
    return {
        "id": letter.dead_id,
        "reason": letter.reason,
        "meaning": CODES.get(letter.reason, meaning),
        "origin": dashboard().broker.topology.short(letter.origin),
        "attempts": letter.delivery_count + 1,
        "message": letter.message,
        "model_version": None if version is None else str(version).encode(errors="replace").decode(),
        "size": len(letter.message.body),
        "preview": _preview(letter),
    }


def _preview(letter: DeadLetter) -> str:
    """Returns the beginning of a body as text that can do no harm."""
    body = letter.message.body
    if letter.message.content_type.startswith(MSGPACK):
        return _describe_pack(body)
    kind = describe(body[:512])
    if kind not in {"a text file", "an HTML page", "an XML or SVG file"}:
        return f"{kind[:1].upper()}{kind[1:]}."
    text = body[: 4 * _PREVIEW].decode(errors="replace")
    if letter.message.content_type.startswith("application/json") and len(body) <= 4 * _PREVIEW:
        try:
            # Unlike `json.loads`, it refuses what no page can show, and deep nesting, as a `ValueError`.
            text = json.dumps(from_json(body), indent=2, ensure_ascii=False)
        except ValueError:
            return text[:_PREVIEW]  # broken JSON is shown as it came
    return text if len(text) <= _PREVIEW else text[:_PREVIEW] + "…"


def _describe_pack(body: bytes) -> str:
    """Returns what a body of MessagePack is: its beginning says how many images come, so none of them is read."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(body[:_PREVIEW])
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        for _ in range(unpacker.read_map_header()):
            if unpacker.unpack() == "images":
                images = unpacker.read_array_header()
                return "A batch of one image." if images == 1 else f"A batch of {images:,} images."
            unpacker.skip()
    return "MessagePack, but not a batch of images."

"""Dead letters: why each could not be processed, and what to do with it."""

from __future__ import annotations

import json
from typing import Any, Final

from flask import Blueprint, flash, redirect, render_template
from werkzeug.wrappers import Response

from dashboard.api import chosen_dead
from dashboard.context import dashboard
from shared.broker.base import DeadLetter
from shared.errors import CODES
from shared.sniff import looks_like

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
    count = dashboard().broker.retry_dead(chosen_dead())
    flash(f"{count:,} sent back to where they came from.")
    return redirect("/dead", 303)


@blueprint.post("/dead/drop")
def drop() -> Response:
    """Deletes dead letters."""
    count = dashboard().broker.drop_dead(chosen_dead())
    flash(f"{count:,} dropped for good.")
    return redirect("/dead", 303)


def _view(letter: DeadLetter) -> dict[str, Any]:
    meaning = "It was delivered too often without ever being done." if letter.reason == "delivery_limit" else ""
    return {
        "id": letter.dead_id,
        "reason": letter.reason,
        "meaning": CODES.get(letter.reason, meaning),
        "origin": dashboard().broker.topology.short(letter.origin),
        "delivery_count": letter.delivery_count,
        "message": letter.message,
        "size": len(letter.message.body),
        "preview": _preview(letter),
    }


def _preview(letter: DeadLetter) -> str:
    """Returns the beginning of a body as text that can do no harm."""
    body = letter.message.body
    kind = looks_like(body[:512])
    if kind not in {"a text file", "an HTML page", "an XML or SVG file"}:
        return f"{kind[:1].upper()}{kind[1:]}."
    text = body[: 4 * _PREVIEW].decode(errors="replace")
    if letter.message.content_type.startswith("application/json") and len(body) <= 4 * _PREVIEW:
        try:
            text = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
        except ValueError:
            return text[:_PREVIEW]  # broken JSON is shown as it came
    return text if len(text) <= _PREVIEW else text[:_PREVIEW] + "…"

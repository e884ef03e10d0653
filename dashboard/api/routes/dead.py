"""Calls about failed messages."""

from __future__ import annotations

from flask import Response, jsonify

from dashboard.api.blueprint import blueprint
from dashboard.api.fields import PAGE, read_texts, says_yes
from dashboard.context import dashboard
from shared.errors import InvalidMessage


@blueprint.get("/dead")
def list_dead() -> Response:
    """Lists the oldest failed messages, without their bodies."""
    letters = dashboard().broker.dead_letters(PAGE)
    return jsonify({"dead_letters": [letter.summary() for letter in letters]})


@blueprint.post("/dead/retry")
def retry_dead() -> Response:
    """Re-queues failed messages: those named `dead_id`, or all."""
    return jsonify({"count": dashboard().client.retry_dead(read_dead_ids())})


@blueprint.post("/dead/drop")
def drop_dead() -> Response:
    """Deletes failed messages: those named `dead_id`, or all."""
    return jsonify({"count": dashboard().broker.drop_dead(read_dead_ids())})


def read_dead_ids() -> list[str] | None:
    """Returns the failed messages that the request names; None for all, which it must say.

    Raises:
        InvalidMessage: it names none and does not say `all=true`, or does both.
    """
    chosen = read_texts("dead_id")
    if bool(chosen) == says_yes("all"):
        found = "both dead_id and" if chosen else "neither dead_id nor"
        raise InvalidMessage(f"found {found} all=true; expected one of them")
    return chosen or None

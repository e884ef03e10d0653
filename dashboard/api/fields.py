"""What calls read from their requests."""

from __future__ import annotations

import json
from typing import Any, Final

from flask import request

from dashboard.api.answers import dump_json
from dashboard.api.uploads import parse_integer
from shared.errors import InvalidMessage, short_repr

PAGE: Final = 1000


def read_field(name: str) -> str | None:
    """Returns a value from the query, the form or a JSON body."""
    found = request.args.get(name)
    if found is None and request.mimetype in {"multipart/form-data", "application/x-www-form-urlencoded"}:
        found = request.form.get(name)
    if found is None and (value := read_json_object().get(name)) is not None:
        found = value if isinstance(value, str) else dump_json(value)
    return found


def read_texts(name: str) -> list[str]:
    """Returns the values of a field that may be given several times, and in a JSON body as one value or a list."""
    body = read_json_object().get(name)
    listed = body if isinstance(body, list) else [] if body is None else [body]
    return [*request.values.getlist(name), *map(str, listed)]


def says_yes(name: str) -> bool:
    """Returns whether a field of the query or form says yes."""
    return (read_field(name) or "").lower() in {"true", "1", "yes"}


def read_json_object() -> dict[str, Any]:
    """Returns the JSON object of the body; an empty one where there is no body."""
    if not request.is_json or not request.content_length:  # many clients always say that they send JSON
        return {}
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"the body is no JSON ({error}); expected a JSON object") from None
    if not isinstance(body, dict):
        raise InvalidMessage(f"the body is {short_repr(body)}; expected a JSON object")
    return body


def read_idempotency_key() -> str | None:
    """Returns the client's `Idempotency-Key`: the same one twice makes one run or job."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 200 and key.isprintable()):
        raise InvalidMessage(f"header Idempotency-Key has {len(key)} characters; expected 1 to 200 printable ones")
    return key


def read_page() -> tuple[int, int]:
    """Returns the request's limit and offset."""
    limit = parse_integer(request.args.get("limit"), "limit", 1, PAGE) or PAGE
    return limit, parse_integer(request.args.get("offset"), "offset", 0, 10**9) or 0

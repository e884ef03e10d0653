"""Checks the access token of an HTTP request."""

from __future__ import annotations

import hmac


def authorised(header: str | None, token: str | None) -> bool:
    """Returns whether an `Authorization: Bearer` header carries the token; always, where none is set."""
    if token is None:
        return True
    scheme, _, given = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())

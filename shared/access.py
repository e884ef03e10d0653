"""Who may do what: the access tokens of an installation, each with a name and a role."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

Role = Literal["full", "read"]
"""`full` may do everything; `read` may see the pages, the records and the metrics, and change nothing."""

ADMIN: Final = "admin"
"""The name of `GENDERLINE_TOKEN`."""

_LEAST_LENGTH: Final = 8
# It travels in an HTTP header, which holds no more and loses spaces at the ends.
_FIT_FOR_A_HEADER: Final = re.compile("[!-~][ -~]*[!-~]")


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token that opens the dashboard.

    Attributes:
        name: whom the history of promotions names.
        role: what its holder may do.
        secret: the token itself.
    """

    name: str
    role: Role
    secret: str = field(repr=False)

    @property
    def may_change(self) -> bool:
        """Whether its holder may change anything."""
        return self.role == "full"


def check_secret(secret: str) -> str:
    """Returns a token that an HTTP header can carry.

    Raises:
        ValueError: it is too short or holds other characters. The text does not repeat it.
    """
    if len(secret) < _LEAST_LENGTH:
        raise ValueError(f"expected at least {_LEAST_LENGTH} characters")
    if not _FIT_FOR_A_HEADER.fullmatch(secret):
        raise ValueError("expected ASCII characters, with no space at either end")
    return secret


def parse_tokens(text: str) -> tuple[AccessToken, ...]:
    """Parses `NAME:ROLE:TOKEN` entries, separated by commas.

    Raises:
        ValueError: an entry has another form, or a name comes twice. The text repeats no token.
    """
    tokens: list[AccessToken] = []
    for number, entry in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
        name, _, rest = entry.partition(":")
        role, _, secret = rest.partition(":")
        if not re.fullmatch("[A-Za-z0-9_.@-]{1,40}", name) or role not in get_args(Role):
            raise ValueError(f"entry {number}: expected NAME:full:TOKEN or NAME:read:TOKEN, NAME of letters and digits")
        if name in {token.name for token in tokens} | {ADMIN}:
            raise ValueError(f"entry {number}: expected a name that is not taken (found {name!r} again)")
        try:
            tokens.append(AccessToken(name, cast("Role", role), check_secret(secret)))
        except ValueError as error:
            raise ValueError(f"entry {number}: {error}") from None
    return tuple(tokens)


def find_token(header: str | None, tokens: Iterable[AccessToken]) -> AccessToken | None:
    """Returns the token that an `Authorization: Bearer` header carries, or None."""
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    secret, found = given.strip().encode(), None
    for token in tokens:  # all of them, so that the time says nothing of which came close
        if hmac.compare_digest(secret, token.secret.encode()):
            found = token
    return found

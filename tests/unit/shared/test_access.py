"""Access tokens: which header carries one, and how several are written in a setting."""

from __future__ import annotations

import pytest

from shared.access import AccessToken, find_token, parse_tokens

ALICE = AccessToken("alice", "full", "open sesame")
SCRAPER = AccessToken("scraper", "read", "only looking")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("", None),
        ("open sesame", None),
        ("Basic open sesame", None),
        ("Bearer ", None),
        ("Bearer open sesames", None),
        ("Bearer open s\xe9same", None),
        ("Bearer open sesame", ALICE),
        ("bearer  open sesame ", ALICE),
        ("Bearer only looking", SCRAPER),
    ],
)
def test_only_a_whole_token_as_bearer_is_found(header: str | None, found: AccessToken | None) -> None:
    assert find_token(header, [ALICE, SCRAPER]) == found


def test_tokens_are_parsed_with_their_names_and_roles() -> None:
    assert parse_tokens("alice:full:open sesame, scraper:read:only looking,") == (ALICE, SCRAPER)
    assert parse_tokens("a:full:with:colon:in:it")[0].secret == "with:colon:in:it"
    assert (ALICE.may_change, SCRAPER.may_change) == (True, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hunter22", "entry 1: expected NAME:full:TOKEN or NAME:read:TOKEN"),
        ("a:full:hunter22,b:write:hunter22", "entry 2: expected NAME:full:TOKEN or NAME:read:TOKEN"),
        ("a b:full:hunter22", "entry 1: expected NAME:full:TOKEN"),
        ("a:full:hunter2", "entry 1: expected at least 8 characters"),
        ("a:full:hunter2\u00fc", "entry 1: expected ASCII characters"),
        ("a:full:hunter22,a:read:hunter23", "entry 2: expected a name that is not taken (found 'a' again)"),
        ("admin:read:hunter22", "entry 1: expected a name that is not taken (found 'admin' again)"),
    ],
)
def test_a_wrong_entry_is_named_by_its_number_and_its_token_is_not_shown(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is checked below
        parse_tokens(text)
    assert str(error.value).startswith(said)
    assert "hunter2" not in str(error.value)


def test_no_token_is_in_any_printed_form() -> None:
    assert "sesame" not in f"{ALICE!r} {ALICE}"

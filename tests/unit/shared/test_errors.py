from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared import errors
from shared.errors import CODES, GenderlineError, InvalidMessage, short_repr

SHARED = Path(errors.__file__).parents[1]
BRANCHES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, GenderlineError)]


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch.__name__)
def test_every_branch_has_a_code_of_the_closed_list(branch: type[GenderlineError]) -> None:
    assert branch("x").as_dict() == {"code": branch.default_code, "message": "x"}
    assert branch.default_code in CODES


def test_an_error_may_carry_another_code_of_the_list_but_no_other() -> None:
    assert InvalidMessage("x", code="sha256_mismatch").code == "sha256_mismatch"
    with pytest.raises(ValueError, match="unknown error code 'oops'"):
        InvalidMessage("x", code="oops")


def test_every_code_that_is_written_anywhere_is_on_the_list() -> None:
    used = {
        code
        for package in ("shared", "trainer", "inference", "dashboard")
        for path in (SHARED / package).rglob("*.py")
        for code in re.findall(r'\bcode="(\w+)"', path.read_text())
    }
    assert used >= {"uri_not_allowed", "internal"}
    assert used <= set(CODES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("abc", "'abc'"),
        (b"\x00", "b'\\x00'"),
        (7, "7"),
        (None, "None"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object of 1"),
        ("line\nbreak\x1b[31m", "'line\\nbreak\\x1b[31m'"),
    ],
)
def test_what_was_found_is_shown_on_one_line(value: object, text: str) -> None:
    assert short_repr(value) == text


@pytest.mark.parametrize("value", ["x" * 10_000_000, b"\xff" * 10_000_000, 10**1000])
def test_what_was_found_is_cut_short(value: object) -> None:
    assert len(short_repr(value)) == 80
    assert short_repr(value).endswith("…")

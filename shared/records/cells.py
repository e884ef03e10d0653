"""Names from outside as cells of a CSV: inert where a spreadsheet opens the file, and the same name again for programs.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, also after the file was saved and opened
again. Such a name gets an apostrophe in front, and so does a name with an apostrophe, so that the way back is clear.
Control characters are shown by their pictures, such as `␛`: they would reach a terminal otherwise. Those without a
picture are shown by their number, such as `␦9b␦`. So is what turns the direction of writing, and a semicolon before a
formula: spreadsheets of many countries take it for the end of a cell.
"""

from __future__ import annotations

import re
from typing import Final

_FORMULA_STARTS: Final = frozenset(
    "=+-@'\t\r\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
    "\N{SMALL EQUALS SIGN}\N{SMALL PLUS SIGN}\N{SMALL HYPHEN-MINUS}\N{SMALL COMMERCIAL AT}"
)
_NUMBER_MARK: Final = "\N{SYMBOL FOR SUBSTITUTE FORM TWO}"
_PICTURES: Final = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "\u2421"}
_CHARACTERS: Final = {picture: character for character, picture in _PICTURES.items()}
_SPECIAL: Final = re.compile(
    rf"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u2400-\u2421{_NUMBER_MARK}]"
    rf"|;(?=[\s'\"]*[{re.escape(''.join(sorted(_FORMULA_STARTS)))}])"
)
_SHOWN: Final = re.compile(rf"[\u2400-\u2421]|{_NUMBER_MARK}([0-9a-f]{{1,4}}){_NUMBER_MARK}")


def to_cell(text: str) -> str:
    """Returns text as it is written into a cell."""
    text = _SPECIAL.sub(_show, text)
    return f"'{text}" if text[:1] in _FORMULA_STARTS else text


def from_cell(cell: str) -> str:
    """Returns the text that a cell was made of."""
    if cell.startswith("'") and cell[1:2] in _FORMULA_STARTS:
        cell = cell[1:]
    return _SHOWN.sub(_read, cell) if max(cell, default="") >= "\u2400" else cell


def _show(found: re.Match[str]) -> str:
    return _PICTURES.get(found[0]) or f"{_NUMBER_MARK}{ord(found[0]):x}{_NUMBER_MARK}"


def _read(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else _CHARACTERS[found[0]]

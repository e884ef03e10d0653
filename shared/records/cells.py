"""Names from outside as cells of a CSV: inert where a spreadsheet opens the file, and the same name again for programs.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, also after the file was saved and opened
again. Such a name gets an apostrophe in front, and so does a name with an apostrophe, so that the way back is clear.
Control characters are shown by their pictures, such as `␛`: they would reach a terminal otherwise.
"""

from __future__ import annotations

from typing import Final

_FORMULA_STARTS: Final = frozenset(
    "=+-@'\t\r\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}"
)
_PICTURES: Final = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
_CONTROLS: Final = {picture: code for code, picture in _PICTURES.items()}


def to_cell(text: str) -> str:
    """Returns text as it is written into a cell."""
    if not text.isprintable():
        text = text.translate(_PICTURES)
    return f"'{text}" if text[:1] in _FORMULA_STARTS else text


def from_cell(cell: str) -> str:
    """Returns the text that a cell was made of."""
    if cell.startswith("'") and cell[1:2] in _FORMULA_STARTS:
        cell = cell[1:]
    return cell.translate(_CONTROLS) if max(cell, default="") >= "\u2400" else cell

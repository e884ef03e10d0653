"""The text of a table: its header and its rows, whichever program wrote it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

_MOST_LINES: Final = 100
"""Lines that a quoted cell may go on for, such as a caption's."""


def decode_text(data: bytes) -> str:
    """Returns a table's text: UTF-16 with a mark, UTF-8, or else code page 1252."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def read_rows(text: str, name: str) -> tuple[list[str], Iterator[list[str]]]:
    """Returns a table's header and its rows: JSON lines, or text with commas, semicolons, tabs, bars or blanks."""
    lines = io.StringIO(text, newline=None)
    if name.lower().endswith(".jsonl"):
        return _json_rows(lines)
    first = next((line for line in lines if line.strip()), "")
    # CelebA's: how many rows follow. Excel's: `sep=;`.
    if first.strip().isdigit() or first.lower().startswith("sep="):
        first = next(lines, "")
    separator = max("\t,;|", key=first.count)
    if separator in first:
        header = [name.strip() for name in next(_delimited_rows(iter([first]), separator), [])]
        while header and not header[-1]:  # a separator at the end, which the rows may lack
            header.pop()
        return header, _delimited_rows(lines, separator)
    header = first.split()
    rows = (line.split() for line in lines)
    second = next(rows, [])
    if len(second) == len(header) + 1:  # as in CelebA's: the names of the files have no name
        header = ["file", *header]
    return header, chain([second], rows)


def _delimited_rows(lines: Iterator[str], separator: str) -> Iterator[list[str]]:
    """Yields rows. A quote that is not closed soon is a character like any other, and costs its own row alone."""
    ahead: deque[str] = deque()

    def next_line() -> str:
        return ahead.popleft() if ahead else next(lines, "")

    while line := next_line():
        if '"' not in line:
            yield line.rstrip("\n").split(separator)
            continue
        record = [line]
        is_open = line.count('"') % 2 == 1
        while is_open and len(record) < _MOST_LINES and (more := next_line()):
            record.append(more)
            is_open = more.count('"') % 2 == 0
        if len(record) > 1 and not is_open:
            try:
                yield from list(csv.reader(record, delimiter=separator, strict=True))
                continue
            except csv.Error:  # the quotes of two rows that have nothing to do with each other
                is_open = True
        ahead.extendleft(reversed(record[1:]))
        if is_open:
            yield line.rstrip("\n").split(separator)
        else:
            with contextlib.suppress(csv.Error):  # a cell beyond the reader's limit
                yield from csv.reader(record, delimiter=separator)


def _json_rows(lines: Iterator[str]) -> tuple[list[str], Iterator[list[str]]]:
    def objects() -> Iterator[Mapping[str, object]]:
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value

    found = objects()
    first = next(found, {})
    header = [str(key) for key in first]
    return header, ([str(row.get(key, "")) for key in header] for row in chain([first], found))

"""The text of a table: its header and its rows, whichever program wrote it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import chain


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
        cells = next(_lenient(csv.reader([first], delimiter=separator)), [])
        header = [name.strip() for name in cells]
        while header and not header[-1]:  # a separator at the end, which the rows may lack
            header.pop()
        return header, _lenient(csv.reader(lines, delimiter=separator))
    header = first.split()
    rows = (line.split() for line in lines)
    second = next(rows, [])
    if len(second) == len(header) + 1:  # as in CelebA's: the names of the files have no name
        header = ["file", *header]
    return header, chain([second], rows)


def _lenient(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yields rows until one cannot be read."""
    while True:
        try:
            yield next(rows)
        except (StopIteration, csv.Error):
            return


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

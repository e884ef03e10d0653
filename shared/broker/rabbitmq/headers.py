"""Header tables that pika cannot decode: all that can be read of them is.

One value is enough for pika to give up a message, and with it the connection: a date after the year 9999 (a timestamp
in milliseconds), a number that is none, a type it does not know. Every value says how long it is, so the one that is
at fault can be cut out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pika import spec
from pika.data import decode_value

_PROPERTIES: Final = 12
"""Where a content header's properties begin: after class, weight and the body's size."""
_SIZES: Final = {
    **dict.fromkeys(b"V", 0),
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"Uus", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"D", 5),
    **dict.fromkeys(b"LldT", 8),
}
"""Bytes that a value takes after its type."""
_WITH_A_LENGTH: Final = b"SxAF"
"""Types whose value begins with its length."""
_LENGTH: Final = struct.Struct(">I")


def salvage_headers(content: bytes) -> bytes:
    """Returns a content header frame's payload without those headers that pika cannot decode.

    What follows a value of an unknown type, whose length nobody knows, goes with it.

    Raises:
        IndexError, struct.error: it ends too early; it is no content header at all.
    """
    (flags,) = struct.unpack_from(">H", content, _PROPERTIES)
    table = _PROPERTIES + 2
    for flag in (spec.BasicProperties.FLAG_CONTENT_TYPE, spec.BasicProperties.FLAG_CONTENT_ENCODING):
        if flags & flag:
            table += 1 + content[table]
    if not flags & spec.BasicProperties.FLAG_HEADERS:
        return content
    (size,) = _LENGTH.unpack_from(content, table)
    start = table + _LENGTH.size
    kept = b"".join(_readable(content[start : start + size]))
    return content[:table] + _LENGTH.pack(len(kept)) + kept + content[start + size :]


def _readable(table: bytes) -> Iterator[bytes]:
    """Yields the entries, name and value, that pika can decode."""
    start = 0
    while start < len(table):
        value = start + 1 + table[start]
        kind = table[value : value + 1]
        end = value + 1
        if kind and kind in _WITH_A_LENGTH and end + _LENGTH.size <= len(table):
            end += _LENGTH.size + _LENGTH.unpack_from(table, end)[0]
        elif kind and kind[0] in _SIZES:
            end += _SIZES[kind[0]]
        else:
            return
        if end > len(table):
            return
        entry = table[start:end]
        try:
            _, read = decode_value(entry, value - start)
        except Exception:  # whatever it is, this header cannot be read
            read = None
        if read == len(entry):
            yield entry
        start = end

"""Where a reply can be sent: RabbitMQ closes the connection over an address that only looks like one of its own.

A client that asked for direct replies has an address that the broker made: the name of an Erlang process in base64, a
dot, and a key. The broker reads it without care, so what is none must not reach it.
"""

from __future__ import annotations

import base64
import functools
import struct
from typing import Final

_DIRECT: Final = "amq.rabbitmq.reply-to."
_EXTERNAL_TERM: Final = 131
_LENGTHS_OF_NAMES: Final = {ord("d"): ">H", ord("v"): ">H", ord("s"): ">B", ord("w"): ">B"}
"""How long a node's name is, by the kind of atom that it is."""
_AFTER_THE_NAME: Final = {ord("g"): 9, ord("X"): 12}
"""Bytes that a process's name takes after its node's, by its kind."""


def is_address(queue: str) -> bool:
    """Returns whether a message for the queue does no harm to the broker; there need be no such queue."""
    return not queue.startswith(_DIRECT) or _names_a_process(queue)


@functools.lru_cache(maxsize=1024)
def _names_a_process(queue: str) -> bool:
    encoded, _, key = queue.removeprefix(_DIRECT).partition(".")
    try:
        term = base64.b64decode(encoded, validate=True)
        version, kind, atom = struct.unpack_from("BBB", term)
        length = struct.Struct(_LENGTHS_OF_NAMES[atom])
        (name,) = length.unpack_from(term, 3)
        return bool(key) and version == _EXTERNAL_TERM and len(term) == 3 + length.size + name + _AFTER_THE_NAME[kind]
    except (KeyError, ValueError, struct.error):
        return False

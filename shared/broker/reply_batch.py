"""Several replies as one message: what a worker answers together travels together, to readers that can part it.

A message costs the broker and both of its clients far more than the hundred bytes of a reply do. Only our own inboxes
are sent bundles: their names say that they part them, so nobody who calls `ReplyQueue.receive` ever sees one.

A bundle's body is the length of what follows in 4 bytes, big-endian; a JSON list of each message's
`[content type, message id, correlation id, headers, bytes of its body]`; and the bodies, one after the other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from shared.broker.base import Message, Outgoing

BUNDLE: Final = "application/vnd.genderline.bundle"
"""The content type of a bundle."""

_LENGTH: Final = struct.Struct(">I")


def bundled(outgoing: Sequence[Outgoing], inboxes: str) -> Iterator[Outgoing]:
    """Yields the same messages, those for one reply queue as one; each queue gets its own in their order.

    Args:
        outgoing: of one batch, which bounds a bundle.
        inboxes: what the names of inboxes begin with.
    """
    replies: dict[str, list[Message]] = {}
    for item in outgoing:
        if item.queue.startswith(inboxes):
            replies.setdefault(item.queue, []).append(item.message)
        else:
            yield item
    for queue, messages in replies.items():
        yield Outgoing(queue, messages[0] if len(messages) == 1 else _bundle(messages))


def parted(message: Message) -> list[Message]:
    """Returns the messages of a bundle; any other message as it is.

    Raises:
        ValueError: it claims to be a bundle and is none.
    """
    if message.content_type != BUNDLE:
        return [message]
    body = message.body
    messages = []
    try:
        (length,) = _LENGTH.unpack_from(body)
        start = _LENGTH.size + length
        for content_type, message_id, correlation_id, headers, size in json.loads(body[_LENGTH.size : start]):
            messages.append(
                Message(body[start : start + size], content_type, message_id, correlation_id, None, headers)
            )
            start += size
    except (struct.error, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"found a bundle of replies that cannot be parted ({error})") from None
    if start != len(body):
        raise ValueError(f"found a bundle of replies of {len(body):,} bytes, expected {start:,}")
    return messages


def _bundle(messages: Sequence[Message]) -> Message:
    about = json.dumps(
        [
            (message.content_type, message.message_id, message.correlation_id, message.headers, len(message.body))
            for message in messages
        ]
    ).encode()
    return Message(b"".join([_LENGTH.pack(len(about)), about, *(message.body for message in messages)]), BUNDLE)

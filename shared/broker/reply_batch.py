"""Several replies as one message: replies that a worker publishes together travel together.

A message costs the broker and both of its clients far more than the hundred bytes of a reply do. Only our own clients'
reply queues are sent batches: their names begin with `Topology.batch_reply_queue_prefix`, and `ReplyQueue.receive`
returns the single replies.

A batch's body is the length of what follows in 4 bytes, big-endian; a JSON list of each message's
`[content type, message id, correlation id, headers, bytes of its body]`; and the bodies, one after the other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from shared.broker.base import Message, Outgoing

REPLY_BATCH: Final = "application/vnd.genderline.reply-batch"
"""The content type of a reply batch."""

_LENGTH: Final = struct.Struct(">I")


def pack(outgoing: Sequence[Outgoing], batch_prefix: str) -> Iterator[Outgoing]:
    """Yields the same messages, those for one reply queue as one message; each queue keeps its order.

    Args:
        outgoing: of one settled batch, which bounds a reply batch.
        batch_prefix: how the names of our own clients' reply queues begin.
    """
    replies: dict[str, list[Message]] = {}
    for item in outgoing:
        if item.queue.startswith(batch_prefix):
            replies.setdefault(item.queue, []).append(item.message)
        else:
            yield item
    for queue, messages in replies.items():
        yield Outgoing(queue, messages[0] if len(messages) == 1 else _pack_one(messages))


def unpack(message: Message) -> list[Message]:
    """Returns the messages of a reply batch; any other message as it is.

    Raises:
        ValueError: it claims to be a reply batch and is none.
    """
    if message.content_type != REPLY_BATCH:
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
        raise ValueError(f"found a reply batch that cannot be unpacked ({error})") from None
    if start != len(body):
        raise ValueError(f"found a reply batch of {len(body):,} bytes, expected {start:,}")
    return messages


def _pack_one(messages: Sequence[Message]) -> Message:
    about = json.dumps(
        [
            (message.content_type, message.message_id, message.correlation_id, message.headers, len(message.body))
            for message in messages
        ]
    ).encode()
    return Message(b"".join([_LENGTH.pack(len(about)), about, *(message.body for message in messages)]), REPLY_BATCH)

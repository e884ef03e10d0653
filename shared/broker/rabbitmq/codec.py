"""How a message travels in AMQP 0-9-1: its properties and headers, both ways.

AMQP headers are typed, and a foreign client may use any type; a `Message` has text, numbers and booleans only. pika has
two gaps of its own to bridge: it cannot send a floating-point header at all, so ours travel as text and are named in
one more header; and it cuts those that others send to whole numbers.
"""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pika import BasicProperties
from pika.delivery_mode import DeliveryMode

from shared.broker.base import DEAD_ID, DELIVERY_COUNT, ENQUEUED_AT, ORIGIN, REASON, DeadLetter, HeaderValue, Message

DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"
FLOATS: Final = "x-float-headers"
"""Names our headers that are numbers with a fraction."""
EARLIER_DELIVERIES: Final = "x-earlier-deliveries"
"""The delivery count that a deferred message had, and who says so: its copy starts from zero at the broker."""
COUNTED: Final = "x-delivery-count"
"""Set by quorum queues from the second delivery on."""

_SHORT_BYTES: Final = 255
_WHOLE: Final = 2**63
_ROOM_BYTES: Final = 1024
"""What a frame keeps free for its own ends and for headers of ours: why a message is dead, how often it came."""
_PERSISTENT: Final = DeliveryMode.Persistent.value
_NOT_THE_SENDERS: Final = frozenset(
    {
        FLOATS,
        EARLIER_DELIVERIES,
        COUNTED,
        "x-acquired-count",
        "x-death",
        *(f"x-{which}-death-{what}" for which in ("first", "last") for what in ("reason", "queue", "exchange")),
    }
)


def properties_of(message: Message, *, earlier_deliveries: str | None = None) -> BasicProperties:
    """Returns the AMQP properties of a persistent message.

    Args:
        message: the message.
        earlier_deliveries: from `DeliveryCounter.sign`, of a copy.
    """
    headers: dict[str, Any] = dict(message.headers)
    floats = [name for name, value in headers.items() if isinstance(value, float)]
    if floats:
        headers.update({name: repr(headers[name]) for name in floats})
        headers[FLOATS] = floats
    if earlier_deliveries:
        headers[EARLIER_DELIVERIES] = earlier_deliveries
    return BasicProperties(
        content_type=message.content_type,
        headers=headers or None,
        delivery_mode=_PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
    )


def message_of(properties: BasicProperties, body: bytes) -> Message:
    """Returns the message that arrived; never fails, whatever a foreign client sent.

    Headers that have no plain form (tables, arrays, undecodable bytes) are left out. A message without an id gets one
    that follows from all that its sender said, so that it is the same each time the message is delivered.
    """
    raw: Mapping[Any, Any] = properties.headers or {}
    headers: dict[str, HeaderValue] = {}
    for key, value in raw.items():
        name = _text(key)
        if name not in _NOT_THE_SENDERS and (plain := _plain(value)) is not None:
            headers[name] = plain
    floats = raw.get(FLOATS)
    for name in floats if isinstance(floats, list) else ():
        if isinstance(name, str) and isinstance(text := headers.get(name), str):
            headers[name] = _number(text)
    message_id = _text(properties.message_id) if properties.message_id else derived_id(properties, headers, body)
    if properties.timestamp:
        headers.setdefault(ENQUEUED_AT, float(properties.timestamp))  # foreign clients say by this when they sent it
    return Message(
        body=body,
        content_type=_text(properties.content_type) if properties.content_type else DEFAULT_CONTENT_TYPE,
        message_id=message_id,
        correlation_id=_text(properties.correlation_id) if properties.correlation_id else None,
        reply_to=_text(properties.reply_to) if properties.reply_to else None,
        headers=headers,
    )


def shrink_headers(message: Message, frame_bytes: int) -> Message:
    """Returns the message where it can be sent with a few more headers of ours, else without the largest of its own.

    Args:
        message: one that arrived.
        frame_bytes: the largest frame that the broker takes; all headers are in one.
    """
    room = frame_bytes - _ROOM_BYTES
    if _size(message) <= room:
        return message
    bare = _size(replace(message, headers={}))
    sizes = {name: _size(replace(message, headers={name: value})) - bare for name, value in message.headers.items()}
    headers: dict[str, HeaderValue] = {}
    room -= bare
    for name in sorted(sizes, key=sizes.__getitem__):
        room -= sizes[name]
        if room < 0:
            break
        headers[name] = message.headers[name]
    return replace(message, headers=headers)


def _size(message: Message) -> int:
    """Returns how many bytes its properties take."""
    return sum(map(len, properties_of(message).encode()))


class DeliveryCounter:
    """Tells how often a message had been delivered before: by the broker's count, and by that of a deferred copy.

    Both are headers, which any client can write. The broker's is believed where it says that it delivers again, and a
    copy's where it is signed.

    Args:
        secret: known to all services that consume a queue.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, message_id: str, count: int) -> str | None:
        """Returns the header of a copy; None where there is nothing to tell."""
        return f"{count} {self._signature(message_id, count)}" if count else None

    def count(self, message: Message, properties: BasicProperties, *, redelivered: bool) -> int:
        """Returns the delivery count."""
        raw: Mapping[Any, Any] = properties.headers or {}
        counted, signed = raw.get(COUNTED), raw.get(EARLIER_DELIVERIES)
        total = max(0, counted) if redelivered and isinstance(counted, int) else 0
        if isinstance(signed, str):
            earlier, _, signature = signed.partition(" ")
            if earlier.isdecimal() and hmac.compare_digest(
                signature.encode(), self._signature(message.message_id, int(earlier)).encode()
            ):
                total += int(earlier)
        return int(total)

    def _signature(self, message_id: str, count: int) -> str:
        return hmac.digest(self._secret, f"{message_id} {count}".encode(), "sha256").hex()[:32]


def dead_letter_of(properties: BasicProperties, body: bytes, *, last_resort: int) -> DeadLetter:
    """Returns the dead letter: one that we buried, or one that the broker itself gave up on.

    The broker's own carry no id, so theirs is a hash of the message; nor do they say how often they were delivered,
    but where it was too often, that was one time more than `last_resort`, the queue's limit.
    """
    message = message_of(properties, body)
    headers = message.headers
    if DEAD_ID in headers:
        return DeadLetter(
            dead_id=str(headers[DEAD_ID]),
            reason=str(headers.get(REASON, "unknown")),
            origin=str(headers.get(ORIGIN, "unknown")),
            delivery_count=_count(headers.get(DELIVERY_COUNT)),
            message=message,
        )
    raw: Mapping[Any, Any] = properties.headers or {}
    deaths = raw.get("x-death")
    last: Mapping[Any, Any] = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    reason = str(raw.get("x-first-death-reason") or last.get("reason") or "unknown")
    return DeadLetter(
        dead_id=hashlib.sha256(message.message_id.encode() + b"\0" + body).hexdigest()[:32],
        reason=reason,
        origin=str(raw.get("x-first-death-queue") or last.get("queue") or "unknown"),
        delivery_count=last_resort + 1 if reason == "delivery_limit" else 0,
        message=message,
    )


def _plain(value: Any) -> HeaderValue | None:
    """Returns a header's value as text, a number or a boolean; None where it has no such form."""
    if isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        # pika's `long` prints as `5L`. What is longer than AMQP's longest was a number with an exponent, and is again.
        return int(value) if -_WHOLE <= value < _WHOLE else float(value)
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, dt.datetime):
        return int(value.timestamp())
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return None


def _number(text: str) -> HeaderValue:
    try:
        return float(text)
    except ValueError:
        return text


def _count(value: HeaderValue | None) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _text(value: Any) -> str:
    """Returns a short string of AMQP, which pika leaves as bytes where it is not UTF-8; short enough to send again."""
    if not isinstance(value, bytes):
        return str(value)
    return value.decode(errors="replace").encode()[:_SHORT_BYTES].decode(errors="ignore")


def derived_id(properties: BasicProperties, headers: Mapping[str, HeaderValue], body: bytes) -> str:
    """Returns an id for a message without one: the same for each of its deliveries."""
    sent = (
        properties.content_type,
        properties.correlation_id,
        properties.reply_to,
        properties.timestamp,
        sorted((name, repr(value)) for name, value in headers.items()),
    )
    return hashlib.sha256(repr(sent).encode(errors="replace") + b"\0" + body).hexdigest()[:32]

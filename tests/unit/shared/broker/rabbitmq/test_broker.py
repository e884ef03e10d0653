"""What RabbitMQ's parts decide without a broker: what of a foreign message can be read, and where a reply can go."""

from __future__ import annotations

import base64
import struct

import pytest
from pika import BasicProperties
from pika.frame import Header

from shared.broker.base import ENQUEUED_AT, Delivery, HeaderValue, Message
from shared.broker.rabbitmq.addresses import is_address
from shared.broker.rabbitmq.codec import message_of, properties_of, shrink_headers
from shared.broker.rabbitmq.headers import salvage_headers

FRAME_BYTES = 4096


def content(table: bytes, **properties: str) -> bytes:
    """Returns a content header's payload with these encoded headers; pika writes all that surrounds them."""
    whole: bytes = Header(1, 0, BasicProperties(headers={}, **properties)).marshal()[7:-1]
    assert whole.count(bytes(4) + b"\x01m") == 1
    return whole.replace(bytes(4) + b"\x01m", struct.pack(">I", len(table)) + table + b"\x01m")


def headers_of(payload: bytes) -> dict[str, object]:
    properties = BasicProperties()
    properties.decode(payload[12:])
    assert properties.message_id == "m"
    headers: dict[str, object] = properties.headers
    return headers


def test_a_foreign_clients_timestamp_says_when_a_message_was_sent() -> None:
    sent = message_of(BasicProperties(timestamp=1_700_000_000), b"")
    assert Delivery("queue", sent, 0, None).waited_s(now=1_700_000_007.5) == 7.5
    assert sent.message_id == message_of(BasicProperties(timestamp=1_700_000_000), b"").message_id
    exact = message_of(BasicProperties(timestamp=1_700_000_000, headers={ENQUEUED_AT: 1_700_000_001}), b"")
    assert exact.headers[ENQUEUED_AT] == 1_700_000_001


GOOD = b"\x04goodI\0\0\0\x07"


@pytest.mark.parametrize(
    ("bad", "after"),
    [
        (b"\x03badT" + struct.pack(">Q", 10**13), True),
        (b"\x03badd" + struct.pack(">d", float("nan")), True),
        (b"\x03badf" + struct.pack(">f", float("inf")), True),
        (b"\x03badA\0\0\0\x09T" + struct.pack(">Q", 10**13), True),
        (b"\x03badF\0\0\0\x06\x01aS\0\0\0", True),  # ends within
        (
            b"\x03badA"
            + struct.pack(">I", 5 * 5000)
            + b"".join(b"A" + struct.pack(">I", 5 * n) for n in range(4999, -1, -1)),
            True,
        ),
        (b"\x03bad?12", False),
        (b"\x03badS\xff\xff\xff\xff", False),
        (b"\xffbad", False),
        (b"\x03bad", False),
    ],
)
def test_a_header_that_cannot_be_read_is_cut_out_and_the_others_stay(bad: bytes, *, after: bool) -> None:
    for around in ({}, {"content_type": "image/png", "content_encoding": "identity"}):
        read = headers_of(salvage_headers(content(GOOD + bad + b"\x05later" + GOOD[5:], message_id="m", **around)))
        assert read == {"good": 7, "later": 7} if after else {"good": 7}


def direct(term: bytes, key: str = ".key") -> str:
    return f"amq.rabbitmq.reply-to.{base64.b64encode(term).decode()}{key}"


PROCESS = b"\x83X" + b"w\x0crabbit@there" + struct.pack(">III", 1, 2, 3)


@pytest.mark.parametrize(
    "queue",
    [
        "theirs",
        "",
        "amq.rabbitmq.reply-to",
        direct(PROCESS),
        direct(b"\x83g" + b"d\0\x0crabbit@there" + struct.pack(">IIB", 1, 2, 3)),
        direct(b"\x83X" + b"v\0\x0crabbit@there" + struct.pack(">III", 1, 2, 3)),
    ],
)
def test_a_queue_and_the_name_of_a_process_are_addresses(queue: str) -> None:
    assert is_address(queue)


@pytest.mark.parametrize(
    "queue",
    [
        "amq.rabbitmq.reply-to.",
        "amq.rabbitmq.reply-to.!!garbage!!.x",
        direct(PROCESS, ""),
        direct(PROCESS, "."),
        direct(PROCESS[:-1]),
        direct(PROCESS + b"\0"),
        direct(b"\x83a\x01"),
        direct(b""),
        direct(PROCESS).replace("=", "") + "é",
    ],
)
def test_what_the_broker_would_stumble_over_is_none(queue: str) -> None:
    assert not is_address(queue)


def test_of_headers_that_are_too_many_the_largest_are_left_out() -> None:
    headers: dict[str, HeaderValue] = {"large": "x" * 2000, "larger": "x" * 3000, "fraction": 0.5, "small": 1}
    message = Message(b"", "text/plain", headers=headers)
    assert shrink_headers(message, FRAME_BYTES).headers == {"small": 1, "fraction": 0.5, "large": "x" * 2000}
    assert len(b"".join(properties_of(shrink_headers(message, FRAME_BYTES)).encode())) < FRAME_BYTES - 1000


def test_a_message_whose_headers_have_room_stays_as_it_is() -> None:
    message = Message(b"", "text/plain", headers={"params": "x" * 2500})
    assert shrink_headers(message, FRAME_BYTES) is message

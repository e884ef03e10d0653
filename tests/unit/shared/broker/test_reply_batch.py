from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.broker.base import Message, Outgoing
from shared.broker.reply_batch import REPLY_BATCH, pack, unpack

BATCH_PREFIX = "genderline.inbox.batches."
ONE, OTHER = f"{BATCH_PREFIX}1", f"{BATCH_PREFIX}2"

MESSAGES = st.builds(
    Message,
    body=st.binary(max_size=200),
    content_type=st.text(max_size=20).filter(lambda text: text != REPLY_BATCH),
    correlation_id=st.none() | st.text(max_size=20),
    headers=st.dictionaries(
        st.text(max_size=10),
        st.text(max_size=10) | st.booleans() | st.integers() | st.floats(allow_nan=False),
        max_size=3,
    ),
)


def as_batch(about: object, bodies: bytes) -> Message:
    told = json.dumps(about).encode()
    return Message(struct.pack(">I", len(told)) + told + bodies, REPLY_BATCH)


@given(st.lists(MESSAGES, max_size=5))
def test_what_was_batchd_comes_out_as_it_was(messages: list[Message]) -> None:
    sent = list(pack([Outgoing(ONE, message) for message in messages], BATCH_PREFIX))
    assert len(sent) == min(1, len(messages))
    assert [message for item in sent for message in unpack(item.message)] == messages


def test_only_replies_to_one_inbox_travel_together_and_a_reply_alone_stays_what_it_is() -> None:
    work, foreign = (Outgoing(queue, Message(b"", "text/plain")) for queue in ("genderline.shards", "amq.gen-1"))
    alone = Outgoing(OTHER, Message(b"alone", "text/plain"))
    several = [Outgoing(ONE, Message(str(number).encode(), "text/plain")) for number in range(3)]
    sent = list(pack([several[0], work, alone, several[1], foreign, foreign, several[2]], BATCH_PREFIX))
    assert sent[:3] == [work, foreign, foreign]
    assert alone in sent
    (batch,) = (item for item in sent if item.queue == ONE)
    assert batch.message.content_type == REPLY_BATCH
    assert unpack(batch.message) == [item.message for item in several]
    assert len(sent) == 5


@pytest.mark.parametrize(
    "claimed",
    [
        Message(b"", REPLY_BATCH),
        Message(struct.pack(">I", 100) + b"[]", REPLY_BATCH),
        Message(struct.pack(">I", 3) + b"{no", REPLY_BATCH),
        Message(struct.pack(">I", 2) + b"\xff\xff", REPLY_BATCH),
        as_batch(5, b""),
        as_batch([["text/plain", "id", None, {}]], b""),
        as_batch([["text/plain", "id", None, {}, "two"]], b"ab"),
        as_batch([["text/plain", "id", None, {}, 3]], b"ab"),
        as_batch([["text/plain", "id", None, {}, 1]], b"ab"),
        Message(struct.pack(">I", 200_000) + b"[" * 200_000, REPLY_BATCH),
    ],
)
def test_what_is_no_reply_batch_is_told(claimed: Message) -> None:
    with pytest.raises(ValueError, match="found a reply batch"):
        unpack(claimed)

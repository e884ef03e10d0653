from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.broker.base import Message, Outgoing
from shared.broker.reply_batch import BUNDLE, bundled, parted

INBOXES = "genderline.inbox.bundles."
ONE, OTHER = f"{INBOXES}1", f"{INBOXES}2"

MESSAGES = st.builds(
    Message,
    body=st.binary(max_size=200),
    content_type=st.text(max_size=20).filter(lambda text: text != BUNDLE),
    correlation_id=st.none() | st.text(max_size=20),
    headers=st.dictionaries(
        st.text(max_size=10),
        st.text(max_size=10) | st.booleans() | st.integers() | st.floats(allow_nan=False),
        max_size=3,
    ),
)


def as_bundle(about: object, bodies: bytes) -> Message:
    told = json.dumps(about).encode()
    return Message(struct.pack(">I", len(told)) + told + bodies, BUNDLE)


@given(st.lists(MESSAGES, max_size=5))
def test_what_was_bundled_comes_out_as_it_was(messages: list[Message]) -> None:
    sent = list(bundled([Outgoing(ONE, message) for message in messages], INBOXES))
    assert len(sent) == min(1, len(messages))
    assert [message for item in sent for message in parted(item.message)] == messages


def test_only_replies_to_one_inbox_travel_together_and_a_reply_alone_stays_what_it_is() -> None:
    work, foreign = (Outgoing(queue, Message(b"", "text/plain")) for queue in ("genderline.shards", "amq.gen-1"))
    alone = Outgoing(OTHER, Message(b"alone", "text/plain"))
    several = [Outgoing(ONE, Message(str(number).encode(), "text/plain")) for number in range(3)]
    sent = list(bundled([several[0], work, alone, several[1], foreign, foreign, several[2]], INBOXES))
    assert sent[:3] == [work, foreign, foreign]
    assert alone in sent
    (bundle,) = (item for item in sent if item.queue == ONE)
    assert bundle.message.content_type == BUNDLE
    assert parted(bundle.message) == [item.message for item in several]
    assert len(sent) == 5


@pytest.mark.parametrize(
    "claimed",
    [
        Message(b"", BUNDLE),
        Message(struct.pack(">I", 100) + b"[]", BUNDLE),
        Message(struct.pack(">I", 3) + b"{no", BUNDLE),
        Message(struct.pack(">I", 2) + b"\xff\xff", BUNDLE),
        as_bundle(5, b""),
        as_bundle([["text/plain", "id", None, {}]], b""),
        as_bundle([["text/plain", "id", None, {}, "two"]], b"ab"),
        as_bundle([["text/plain", "id", None, {}, 3]], b"ab"),
        as_bundle([["text/plain", "id", None, {}, 1]], b"ab"),
        Message(struct.pack(">I", 200_000) + b"[" * 200_000, BUNDLE),
    ],
)
def test_what_is_no_bundle_is_told(claimed: Message) -> None:
    with pytest.raises(ValueError, match="found a bundle of replies"):
        parted(claimed)

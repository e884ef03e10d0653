"""Events and replies. On both brokers."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace

import pytest

from shared.broker.base import ENQUEUED_AT, Broker, Event, Message, Outgoing, ReplyQueue, Subscription
from tests.contract.broker.test_messages import take
from tests.contract.conftest import Place


def events(subscription: Subscription, count: int) -> list[Event]:
    found: list[Event] = []
    deadline = time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        found += subscription.receive(1)
    return found


def replies(reply_queue: ReplyQueue, count: int) -> list[bytes]:
    found: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        found += [message.body for message in reply_queue.receive(1)]
    return found


def unstamped(message: Message) -> Message:
    """Returns the message without what a broker may add."""
    return replace(message, headers={name: value for name, value in message.headers.items() if name != ENQUEUED_AT})


def test_an_event_reaches_every_subscriber_in_every_process(place: Place) -> None:
    telling, listening = place.open(), place.open()
    with listening.subscribe() as one, listening.subscribe() as other, telling.subscribe() as own:
        payload = {"text": "ü", "number": 1.5, "list": [1, None, True], "nested": {"a": "b"}}
        telling.emit("run.epoch", payload)
        for subscription in (one, other, own):
            assert events(subscription, 1) == [Event("run.epoch", payload)]


def test_events_come_in_order(place: Place) -> None:
    telling = place.open()
    with place.open().subscribe() as subscription:
        for number in range(200):
            telling.emit("run.progress", {"number": number})
        assert [event.payload["number"] for event in events(subscription, 200)] == list(range(200))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("#",), ["run.epoch", "run.a.b", "job.progress", "model"]),
        (("run.*",), ["run.epoch"]),
        (("run.#",), ["run.epoch", "run.a.b"]),
        (("*.progress", "model"), ["job.progress", "model"]),
        (("run.epoch", "run.*", "run.#"), ["run.epoch", "run.a.b"]),
    ],
)
def test_a_subscriber_gets_each_event_that_matches_one_of_its_patterns_once(
    broker: Broker, patterns: tuple[str, ...], expected: list[str]
) -> None:
    with broker.subscribe(patterns) as subscription, broker.subscribe() as everything:
        for number in range(2):  # an event of the second round comes after all of the first
            for topic in ("run.epoch", "run.a.b", "job.progress", "model"):
                broker.emit(topic, {"round": number})
        assert len(events(everything, 8)) == 8
        told = [(event.payload["round"], event.topic) for event in events(subscription, 2 * len(expected))]
        assert told == [(number, topic) for number in range(2) for topic in expected]


def test_a_subscriber_does_not_get_what_happened_before(broker: Broker) -> None:
    broker.emit("run.epoch", {"number": 0})
    if broker.depths():  # a round trip behind the event, on the same connection
        with broker.subscribe() as subscription:
            broker.emit("run.epoch", {"number": 1})
            assert [event.payload["number"] for event in events(subscription, 1)] == [1]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b'{"text": "%s"}' % (b"x" * 65_525), "its body has 65537 bytes, expected at most 65536"),
        (b"[" * 50_000, "expected a JSON object (recursion limit"),
        (b'{"a": ' * 10_000, "expected a JSON object (recursion limit"),
        (b'{"a": %s}' % (b"9" * 5_000), "expected a JSON object (number out of range"),
        (b'{"a": NaN}', "expected a JSON object (expected value"),
        (b"{not json", "expected a JSON object (key must be a string"),
        (b"\xff\x00", "expected a JSON object (expected value"),
        (b"[1]", "expected a JSON object (found a list of 1)"),
    ],
    ids=["too large", "brackets", "objects", "long number", "NaN", "cut short", "bytes", "a list"],
)
def test_what_is_no_event_is_passed_over_with_one_log_line_and_the_next_is_received(
    place: Place, caplog: pytest.LogCaptureFixture, body: bytes, fault: str
) -> None:
    broker = place.open()
    largest = b'{"text": "%s"}' % (b"x" * 65_524)
    with broker.subscribe() as subscription:
        for sent in (body, largest):
            place.emit_body("run.epoch", sent)
        assert events(subscription, 1) == [Event("run.epoch", json.loads(largest))]
    assert broker.reconnects == 0
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"passed over an event of topic 'run.epoch': {fault}")
    assert len(line) < 200


def test_a_heartbeat_may_be_smaller_only(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    largest = b'{"text": "%s"}' % (b"x" * 8_180)
    with place.open().subscribe() as subscription:
        for sent in (largest.replace(b"x", b"xx", 1), largest):
            place.emit_body("worker.heartbeat", sent)
        assert events(subscription, 1) == [Event("worker.heartbeat", json.loads(largest))]
    assert "its body has 8193 bytes, expected at most 8192" in caplog.text


def test_an_event_without_subscribers_is_no_trouble(broker: Broker) -> None:
    broker.emit("run.epoch", {})
    assert broker.ping()


def test_a_payload_that_is_not_json_is_a_mistake_that_is_told(broker: Broker) -> None:
    with pytest.raises(TypeError):
        broker.emit("run.epoch", {"bad": object()})


def test_a_subscription_gives_up_after_its_timeout_and_wakes_when_closed(broker: Broker) -> None:
    subscription = broker.subscribe()
    assert subscription.receive(0.05) == []
    results: list[list[Event]] = []
    waiting = threading.Thread(target=lambda: results.append(subscription.receive(60)))
    waiting.start()
    subscription.close()
    waiting.join(10)
    assert results == [[]]
    subscription.close()
    assert subscription.receive(0.05) == []


def test_a_request_gets_its_reply_with_its_correlation_id(place: Place) -> None:
    client, server = place.open(), place.open()
    queue = place.topology.predictions
    with client.reply_queue() as reply_queue, server.consume([queue], 10) as consumer:
        assert reply_queue.name.startswith(f"{place.topology.prefix}.inbox.")
        for number in range(3):
            request = Message(b"", "image/jpeg", f"m-{number}", "c-0" if number == 0 else None, reply_queue.name)
            client.publish(queue, request)
        for asked in take(consumer, 3):
            consumer.settle(
                [asked], asked.message.reply(json.dumps({"to": asked.message.message_id}).encode(), "application/json")
            )
        found: list[Message] = []
        while len(found) < 3:
            found += reply_queue.receive(10)
    assert [(one.correlation_id, json.loads(one.body)["to"]) for one in found] == [
        ("c-0", "m-0"),
        ("m-1", "m-1"),
        ("m-2", "m-2"),
    ]
    assert {one.content_type for one in found} == {"application/json"}


def test_replies_settled_together_arrive_as_they_were_sent(place: Place) -> None:
    client, server = place.open(), place.open()
    with (
        client.reply_queue() as one,
        client.reply_queue() as other,
        server.consume([place.topology.predictions], 10) as consumer,
    ):
        client.publish(place.topology.predictions, Message(b"", "image/jpeg"))
        asked = take(consumer, 1)
        to_one = [
            Message(b"", "text/plain", correlation_id="c"),
            Message(bytes(range(256)) * 1000, "image/jpeg", headers={"text": "ü", "number": 1.5, "yes": True}),
            Message(b"last", "application/json"),
        ]
        to_other = [Message(b"other", "text/plain")]
        outgoing = [(one, to_one[0]), (other, to_other[0]), (one, to_one[1]), (one, to_one[2])]
        consumer.settle(asked, [Outgoing(reply_queue.name, message) for reply_queue, message in outgoing])
        found: list[Message] = []
        while len(found) < 3:
            found += one.receive(10)
        assert [unstamped(message) for message in found] == to_one
        assert [unstamped(message) for message in other.receive(10)] == to_other
        for reply_queue in (one, other):
            server.publish(reply_queue.name, Message(b"marker", "text/plain"))
            assert replies(reply_queue, 1) == [b"marker"]


def test_a_reply_queue_returns_each_of_many_replies_once(place: Place) -> None:
    with place.open().reply_queue() as reply_queue:
        sent = [str(number).encode() for number in range(2500)]
        place.open().publish_many([Outgoing(reply_queue.name, Message(body, "text/plain")) for body in sent])
        place.open().publish(reply_queue.name, Message(b"marker", "text/plain"))
        assert replies(reply_queue, 2501) == [*sent, b"marker"]


def test_a_reply_queue_gives_up_after_its_timeout_and_wakes_when_closed(broker: Broker) -> None:
    reply_queue = broker.reply_queue()
    assert reply_queue.receive(0.05) == []
    results: list[list[Message]] = []
    waiting = threading.Thread(target=lambda: results.append(reply_queue.receive(60)))
    waiting.start()
    reply_queue.close()
    waiting.join(10)
    assert results == [[]]
    reply_queue.close()
    assert reply_queue.receive(0.05) == []


def test_two_reply_queues_do_not_read_each_others_replies(broker: Broker) -> None:
    with broker.reply_queue() as one, broker.reply_queue() as other:
        broker.publish(one.name, Message(b"one", "text/plain"))
        broker.publish(other.name, Message(b"other", "text/plain"))
        assert (replies(one, 1), replies(other, 1)) == ([b"one"], [b"other"])

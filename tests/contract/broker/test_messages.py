"""What goes in comes out: whole, in order, within limits. On both brokers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import pytest

from shared.broker.base import (
    ENQUEUED_AT,
    Broker,
    BrokerClosed,
    BrokerError,
    BrokerFull,
    Consumer,
    Delivery,
    Depth,
    HeaderValue,
    Message,
    Outgoing,
)
from tests.contract.conftest import Place

Eventually = Callable[[Callable[[], bool]], None]


def numbered(count: int, start: int = 0) -> list[Message]:
    return [Message(str(number).encode(), "text/plain") for number in range(start, start + count)]


def to(queue: str, messages: list[Message]) -> list[Outgoing]:
    return [Outgoing(queue, message) for message in messages]


def take(consumer: Consumer, count: int, timeout_s: float = 10.0) -> list[Delivery]:
    """Takes exactly `count` messages, however many calls that needs."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + timeout_s
    while len(taken) < count and (remaining := deadline - time.monotonic()) > 0:
        taken += consumer.receive(count - len(taken), remaining)
    assert len(taken) == count, f"took {len(taken)} messages, expected {count}"
    return taken


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


def assert_nothing_else(broker: Broker, consumer: Consumer, queue: str) -> None:
    """Fails where the consumer gets anything before a message that is published now: messages come in order."""
    broker.publish(queue, Message(b"marker", "text/plain"))
    assert bodies(take(consumer, 1)) == [b"marker"]


def fill(broker: Broker, queue: str) -> int:
    """Publishes until the queue refuses; returns how many messages it accepted."""
    for accepted in range(20):
        try:
            broker.publish(queue, Message(b"", "text/plain"))
        except BrokerFull:
            return accepted
    raise AssertionError(f"{queue} took 20 messages and refused none")


def test_a_message_arrives_with_everything_its_sender_set(broker: Broker) -> None:
    sent = Message(
        body=b"\x00\xff\n" + "ü".encode(),
        content_type="image/jpeg",
        message_id="id-1",
        correlation_id="correlation-1",
        reply_to="some.queue",
        headers={"text": "ä ö", "empty": "", "whole": 7, "large": 2**40, "fraction": 1.25, "yes": True, "no": False},
    )
    broker.publish(broker.topology.predictions, sent)

    with broker.consume([broker.topology.predictions], 1) as consumer:
        (delivery,) = take(consumer, 1)

    got = delivery.message
    assert delivery.queue == broker.topology.predictions
    assert delivery.delivery_count == 0
    assert (got.body, got.content_type, got.message_id) == (sent.body, sent.content_type, sent.message_id)
    assert (got.correlation_id, got.reply_to) == (sent.correlation_id, sent.reply_to)
    headers = dict(got.headers)
    assert abs(float(headers.pop(ENQUEUED_AT)) - time.time()) < 30
    assert headers == dict(sent.headers)
    assert {name: type(value) for name, value in headers.items()} == {n: type(v) for n, v in sent.headers.items()}


def test_a_message_without_the_optional_properties_arrives_without_them(broker: Broker) -> None:
    broker.publish(broker.topology.predictions, Message(b"", "text/plain"))

    with broker.consume([broker.topology.predictions], 1) as consumer:
        (delivery,) = take(consumer, 1)

    assert delivery.message.body == b""
    assert delivery.message.correlation_id is None
    assert delivery.message.reply_to is None


def test_a_message_knows_how_long_it_waited(broker: Broker) -> None:
    broker.publish(broker.topology.predictions, Message(b"", "text/plain"))
    with broker.consume([broker.topology.predictions], 1) as consumer:
        waited_s = take(consumer, 1)[0].waited_s()
    assert waited_s is not None
    assert 0 <= waited_s < 10


@pytest.mark.parametrize(
    "sent", [-math.inf, math.inf, math.nan, 0, -1e300, 1e300, 1_760_000_000_000, True, "yesterday"]
)
def test_how_long_a_message_waited_is_unknown_where_its_sender_said_what_cannot_be(sent: HeaderValue) -> None:
    message = Message(b"", "text/plain", headers={ENQUEUED_AT: sent})
    assert Delivery("queue", message, 0, None).waited_s() is None


def test_where_clocks_differ_a_little_a_message_did_not_wait() -> None:
    message = Message(b"", "text/plain", headers={ENQUEUED_AT: 1000.5})
    assert Delivery("queue", message, 0, None).waited_s(now=1000.0) == 0.0


def test_a_body_of_20_mb_passes(broker: Broker) -> None:
    body = bytes(range(256)) * (20 * 4096)
    broker.publish(broker.topology.datasets, Message(body, "application/zip"))
    with broker.consume([broker.topology.datasets], 1) as consumer:
        (delivery,) = take(consumer, 1)
        assert delivery.message.body == body


def test_messages_come_in_the_order_in_which_they_were_accepted(broker: Broker) -> None:
    queue = broker.topology.predictions
    broker.publish_many(to(queue, numbered(150)))
    broker.publish_many(to(queue, numbered(150, start=150)))
    with broker.consume([queue], 1000) as consumer:
        assert bodies(take(consumer, 300)) == [str(number).encode() for number in range(300)]


def test_publish_many_returns_when_all_5000_messages_are_there_for_others(place: Place) -> None:
    publishing, looking = place.open(), place.open()
    queue = place.topology.jobs
    publishing.publish_many(to(queue, numbered(5000)))
    assert looking.depths()[queue].ready == 5000


def test_publishing_nothing_is_fine(broker: Broker) -> None:
    broker.publish_many([])
    assert {depth.ready for depth in broker.depths().values()} == {0}


def test_take_does_not_wait_for_more_once_there_is_one(broker: Broker) -> None:
    with broker.consume([broker.topology.predictions], 10) as consumer:
        broker.publish(broker.topology.predictions, Message(b"only", "text/plain"))
        began = time.monotonic()
        assert bodies(consumer.receive(10, timeout_s=30)) == [b"only"]
        assert time.monotonic() - began < 5


def test_take_wakes_when_a_message_comes(place: Place) -> None:
    publishing = place.open()
    with place.open().consume([place.topology.predictions], 10) as consumer:
        later = threading.Timer(0.2, publishing.publish, (place.topology.predictions, Message(b"late", "text/plain")))
        later.start()
        assert bodies(consumer.receive(1, timeout_s=30)) == [b"late"]
        later.join()


def test_take_gives_up_after_its_timeout(broker: Broker) -> None:
    with broker.consume([broker.topology.predictions], 10) as consumer:
        began = time.monotonic()
        assert consumer.receive(1, timeout_s=0.2) == []
        assert 0.2 <= time.monotonic() - began < 5


def test_the_more_urgent_queue_comes_first(broker: Broker, place: Place, eventually: Eventually) -> None:
    topology = broker.topology
    broker.publish_many(to(topology.shards, numbered(3)) + to(topology.predictions, numbered(3)))
    with broker.consume([topology.predictions, topology.shards], 10) as consumer:
        if place.is_rabbitmq:  # delivers on its own time: wait until both queues' messages are on their way, then here
            eventually(lambda: {depth.ready for depth in broker.depths().values()} == {0})
            assert broker.ping()
        queues = [delivery.queue for delivery in take(consumer, 6)]
    assert queues == [topology.predictions] * 3 + [topology.shards] * 3


def test_one_take_returns_messages_of_one_queue_only(broker: Broker) -> None:
    topology = broker.topology
    broker.publish_many(to(topology.shards, numbered(3)) + to(topology.predictions, numbered(3)))
    with broker.consume([topology.predictions, topology.shards], 10) as consumer:
        taken = 0
        while taken < 6:
            some = consumer.receive(10, timeout_s=10)
            assert len({delivery.queue for delivery in some}) == 1
            taken += len(some)


def test_a_consumer_holds_no_more_than_its_prefetch(place: Place) -> None:
    queue = place.topology.predictions
    first, second = place.open(), place.open()
    first.publish_many(to(queue, numbered(8)))
    with first.consume([queue], prefetch=3) as greedy:
        held = take(greedy, 3)
        with second.consume([queue], prefetch=5) as other:
            assert bodies(take(other, 5)) == [b"3", b"4", b"5", b"6", b"7"]
        greedy.settle(held[:1])
        assert len(take(greedy, 1)) == 1


def test_a_consumer_without_prefetch_leaves_to_others_what_it_was_not_asked_for(place: Place) -> None:
    with place.open() as ours, place.open() as theirs:
        datasets, continuations = ours.topology.datasets, ours.topology.continuations
        ours.publish_many([Outgoing(datasets, Message(bytes([i]), "x")) for i in range(3)])
        busy = ours.consume([continuations, datasets], 0)
        (first,) = busy.receive(1, 10)
        idle = theirs.consume([datasets], 0)
        others = [idle.receive(1, 10)[0] for _ in range(2)]
        assert [d.message.body for d in (first, *others)] == [b"\x00", b"\x01", b"\x02"]
        busy.settle([first])
        busy.flush()
        ours.publish(continuations, Message(b"urgent", "x"))
        theirs.publish(datasets, Message(b"late", "x"))
        assert [busy.receive(1, 10)[0].message.body for _ in range(2)] == [b"urgent", b"late"]
        assert_nothing_else(ours, busy, datasets)


def test_two_consumers_never_hold_the_same_message(place: Place) -> None:
    queue = place.topology.predictions
    place.open().publish_many(to(queue, numbered(20)))
    with place.open().consume([queue], 10) as one, place.open().consume([queue], 10) as other:
        assert sorted(bodies(take(one, 10) + take(other, 10))) == sorted(m.body for m in numbered(20))


def test_consuming_an_unknown_queue_is_a_mistake_that_is_named(broker: Broker) -> None:
    with pytest.raises(ValueError, match="unknown queues"):
        broker.consume(["nonsense"], 1)


def test_closing_a_consumer_gives_back_what_it_held(place: Place) -> None:
    queue = place.topology.predictions
    broker = place.open()
    broker.publish_many(to(queue, numbered(4)))
    consumer = broker.consume([queue], 10)
    settled, *_ = take(consumer, 3)
    consumer.settle([settled])
    consumer.close()
    with place.open().consume([queue], 10) as other:
        again = take(other, 3)
        assert bodies(again) == [b"1", b"2", b"3"]
        if not place.is_rabbitmq:  # quorum queues count every return
            assert {delivery.delivery_count for delivery in again} == {0}
    consumer.close()


def test_closing_a_broker_gives_back_what_its_consumers_held(place: Place) -> None:
    queue = place.topology.predictions
    broker = place.open()
    broker.publish(queue, Message(b"held", "text/plain"))
    take(broker.consume([queue], 10), 1)
    broker.close()
    with place.open().consume([queue], 10) as other:
        assert bodies(take(other, 1)) == [b"held"]


@pytest.mark.parametrize("what", ["consumer", "broker"])
def test_closing_wakes_a_take_that_waits(broker: Broker, what: str) -> None:
    consumer = broker.consume([broker.topology.predictions], 10)
    results: list[list[Delivery]] = []
    waiting = threading.Thread(target=lambda: results.append(consumer.receive(1)))
    waiting.start()
    (consumer if what == "consumer" else broker).close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert results == [[]]


def test_a_closed_broker_says_so_and_leaves_no_thread(place: Place) -> None:
    before = set(threading.enumerate())
    broker = place.open()
    broker.consume([place.topology.predictions], 1)
    broker.subscribe()
    broker.reply_queue()
    assert set(threading.enumerate()) > before
    broker.close()
    broker.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(BrokerClosed):
        broker.publish(place.topology.predictions, Message(b"", "text/plain"))
    with pytest.raises(BrokerClosed):
        broker.depths()
    assert not broker.ping()


def test_a_full_queue_refuses_and_takes_again_once_there_is_room(place: Place) -> None:
    broker = place.open(queue_limit=5)
    queue = place.topology.jobs
    accepted = fill(broker, queue)
    with pytest.raises(BrokerFull, match=f"{queue}.*limit is 5"):
        broker.publish(queue, Message(b"", "text/plain"))
    assert 5 <= accepted <= 8  # quorum queues let in what was under way when the limit was reached
    assert broker.depths()[queue].ready == accepted

    with broker.consume([queue], 10) as consumer:
        consumer.settle(take(consumer, accepted))
        consumer.flush()
    broker.publish(queue, Message(b"", "text/plain"))


def test_a_full_queue_leaves_the_others_open(place: Place) -> None:
    broker = place.open(queue_limit=1)
    fill(broker, place.topology.jobs)
    broker.publish(place.topology.predictions, Message(b"", "text/plain"))


def test_publishing_to_a_queue_that_does_not_exist_is_an_error(broker: Broker) -> None:
    with pytest.raises(BrokerError, match=r"nonsense.* does not exist"):
        broker.publish("nonsense", Message(b"", "text/plain"))
    assert broker.ping()


def test_depths_counts_what_waits_in_every_queue(broker: Broker, eventually: Eventually) -> None:
    topology = broker.topology
    broker.publish_many(to(topology.jobs, numbered(3)) + to(topology.predictions, numbered(2)))
    assert set(broker.depths()) == set(topology.queues)
    assert {queue: depth.ready for queue, depth in broker.depths().items() if depth.ready} == {
        topology.jobs: 3,
        topology.predictions: 2,
    }
    with broker.consume([topology.jobs], 2) as consumer:
        take(consumer, 2)
        eventually(lambda: broker.depths()[topology.jobs] in {Depth(1, 2), Depth(1, None)})


def test_a_broker_that_is_there_answers_a_ping(broker: Broker) -> None:
    assert broker.ping()
    assert broker.reconnects == 0

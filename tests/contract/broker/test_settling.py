"""What becomes of a delivery: settled, retried, deferred or buried. On both brokers."""

from __future__ import annotations

import time

import pytest

from shared.broker.base import (
    DEAD_ID,
    DELIVERY_COUNT,
    ENQUEUED_AT,
    ORIGIN,
    REASON,
    RETRIED_AT,
    Broker,
    BrokerFull,
    Consumer,
    Delivery,
    Message,
    Outgoing,
)
from tests.contract.broker.test_messages import assert_nothing_else, bodies, fill, numbered, take, to
from tests.contract.conftest import Place


def assert_empty(place: Place, queue: str) -> None:
    """Fails where the queue holds anything, be it ready or held by a consumer that is closed by now."""
    broker = place.brokers[0]
    with broker.consume([queue], 10) as consumer:
        assert_nothing_else(broker, consumer, queue)


def test_settled_work_is_gone_and_its_results_are_there(place: Place) -> None:
    topology = place.topology
    broker = place.open()
    broker.publish_many(to(topology.jobs, numbered(30)))
    with broker.consume([topology.jobs], 10) as consumer:
        for _ in range(30):
            taken = take(consumer, 1)
            consumer.settle(taken, to(topology.shards, [Message(b"result of " + bodies(taken)[0], "text/plain")]))
        consumer.flush()
        assert broker.depths()[topology.shards].ready == 30
    assert_empty(place, topology.jobs)
    with broker.consume([topology.shards], 30) as results:
        assert bodies(take(results, 30)) == [f"result of {number}".encode() for number in range(30)]


def test_work_settled_out_of_order_is_acknowledged_one_by_one(place: Place) -> None:
    queue = place.topology.jobs
    broker = place.open()
    broker.publish_many(to(queue, numbered(6)))
    with broker.consume([queue], 10) as consumer:
        held = take(consumer, 6)
        consumer.settle([held[4], held[1]])
        consumer.settle([held[2]])
        consumer.flush()
    with place.open().consume([queue], 10) as other:
        assert sorted(bodies(take(other, 3))) == [b"0", b"3", b"5"]
        assert_nothing_else(broker, other, queue)


def test_work_stays_unsettled_where_its_results_are_refused(place: Place) -> None:
    topology = place.topology
    broker = place.open(queue_limit=2)
    broker.publish(topology.predictions, Message(b"work", "text/plain"))
    fill(broker, topology.shards)
    consumer = broker.consume([topology.predictions], 1)
    held = take(consumer, 1)
    with pytest.raises(BrokerFull, match=topology.shards):
        settle_and_flush(consumer, held, [Outgoing(topology.shards, Message(b"result", "text/plain"))])
    consumer.flush()  # the refusal was told once
    assert broker.depths()[topology.predictions].ready == 0  # it is held as before

    with broker.consume([topology.shards], 10) as shards:
        shards.settle(take(shards, 2))
        shards.flush()
    settle_and_flush(consumer, held, [Outgoing(topology.shards, Message(b"result", "text/plain"))])
    consumer.close()
    assert_empty(place, topology.predictions)


def settle_and_flush(consumer: Consumer, held: list[Delivery], outgoing: list[Outgoing]) -> None:
    consumer.settle(held, outgoing)
    consumer.flush()


def test_results_may_be_published_without_settling_anything(broker: Broker) -> None:
    with broker.consume([broker.topology.jobs], 1) as consumer:
        consumer.settle([], to(broker.topology.shards, numbered(3)))
        consumer.flush()
    assert broker.depths()[broker.topology.shards].ready == 3


@pytest.mark.parametrize(
    "name", ["{prefix}.inbox.gone", "somebody.elses.reply.queue", "amq.gen-JzTY20BRgKO-HjmUJj0wLg"]
)
def test_a_reply_to_a_queue_that_is_gone_is_dropped_and_the_work_settled(place: Place, name: str) -> None:
    queue = place.topology.predictions
    broker = place.open()
    gone = name.format(prefix=place.topology.prefix)
    broker.publish(queue, Message(b"", "text/plain", reply_to=gone))
    with broker.consume([queue], 1) as consumer:
        (asked,) = take(consumer, 1)
        consumer.settle([asked], asked.message.reply(b"answer", "text/plain"))
        consumer.flush()
    assert_empty(place, queue)


def test_publishing_to_a_reply_queue_that_is_gone_is_dropped_quietly(broker: Broker) -> None:
    reply_queue = broker.reply_queue()
    reply_queue.close()
    broker.publish(reply_queue.name, Message(b"answer", "text/plain"))


def test_settling_twice_does_no_harm(place: Place) -> None:
    queue = place.topology.jobs
    broker = place.open()
    broker.publish_many(to(queue, numbered(2)))
    with broker.consume([queue], 10) as consumer:
        first, _second = take(consumer, 2)
        consumer.settle([first])
        consumer.flush()
        consumer.settle([first])
        consumer.requeue(first)
        consumer.defer(first, 0)
    with place.open().consume([queue], 10) as other:
        assert bodies(take(other, 1)) == [b"1"]
        assert_nothing_else(broker, other, queue)


def test_a_retried_delivery_comes_again_with_its_count_raised(broker: Broker) -> None:
    queue = broker.topology.jobs
    broker.publish(queue, Message(b"again", "text/plain", message_id="m"))
    with broker.consume([queue], 1) as consumer:
        for count in range(4):
            (delivery,) = take(consumer, 1)
            assert (delivery.message.message_id, delivery.delivery_count) == ("m", count)
            consumer.requeue(delivery)


def test_a_retried_delivery_comes_no_earlier_than_its_delay(broker: Broker) -> None:
    queue = broker.topology.jobs
    broker.publish(queue, Message(b"again", "text/plain"))
    with broker.consume([queue], 1) as consumer:
        (delivery,) = take(consumer, 1)
        began = time.monotonic()
        consumer.requeue(delivery, delay_s=0.4)
        (again,) = take(consumer, 1)
        assert 0.39 <= time.monotonic() - began < 5
        assert again.delivery_count == 1


def test_a_deferd_delivery_comes_after_its_delay_with_its_count_as_it_was(broker: Broker) -> None:
    queue = broker.topology.jobs
    sent = Message(b"later", "text/plain", "m", "c", "r", {"fraction": 0.5, "text": "t"})
    broker.publish(queue, sent)
    with broker.consume([queue], 1) as consumer:
        (delivery,) = take(consumer, 1)
        consumer.requeue(delivery)
        for _ in range(2):
            (delivery,) = take(consumer, 1)
            assert delivery.delivery_count == 1
            began = time.monotonic()
            consumer.defer(delivery, delay_s=0.3)
        (again,) = take(consumer, 1)
        assert 0.29 <= time.monotonic() - began < 5
        assert again.delivery_count == 1
        assert again.message == delivery.message
        consumer.settle([again])
        consumer.flush()
        assert_nothing_else(broker, consumer, queue)


def bury_one(broker: Broker, message: Message, outgoing: tuple[Outgoing, ...] = ()) -> None:
    queue = broker.topology.jobs
    broker.publish(queue, message)
    with broker.consume([queue], 1) as consumer:
        consumer.requeue(take(consumer, 1)[0])
        consumer.dead_letter(take(consumer, 1)[0], "invalid_message", outgoing)
        consumer.flush()


SENT = Message(b"\x00bad", "application/zip", "m-1", "c-1", "r-1", {"name": "faces", "fraction": 0.5})


def test_a_buried_message_is_a_dead_letter_with_its_story(place: Place) -> None:
    broker = place.open()
    bury_one(broker, SENT)

    (dead,) = broker.dead_letters()

    assert (dead.reason, dead.origin, dead.delivery_count) == ("invalid_message", place.topology.jobs, 1)
    assert (dead.message.body, dead.message.content_type) == (SENT.body, SENT.content_type)
    assert (dead.message.message_id, dead.message.correlation_id, dead.message.reply_to) == ("m-1", "c-1", "r-1")
    assert dead.message.headers[REASON] == "invalid_message"
    assert dead.message.headers[ORIGIN] == place.topology.jobs
    assert dead.message.headers[DELIVERY_COUNT] == 1
    assert (dead.message.headers["name"], dead.message.headers["fraction"]) == ("faces", 0.5)
    assert_empty(place, place.topology.jobs)


def test_a_burial_can_send_an_error_reply_beside_it(broker: Broker) -> None:
    with broker.reply_queue() as reply_queue:
        bury_one(broker, SENT, (Outgoing(reply_queue.name, Message(b"why", "text/plain")),))
        assert [message.body for message in reply_queue.receive(10)] == [b"why"]


def test_looking_at_dead_letters_leaves_them_there_oldest_first(broker: Broker) -> None:
    for number in range(4):
        bury_one(broker, Message(str(number).encode(), "text/plain"))
    for _ in range(3):
        assert [dead.message.body for dead in broker.dead_letters()] == [b"0", b"1", b"2", b"3"]
    assert [dead.message.body for dead in broker.dead_letters(limit=2)] == [b"0", b"1"]
    assert broker.depths()[broker.topology.dead].ready == 4


def test_a_dead_letter_sent_back_starts_afresh_and_says_so(broker: Broker) -> None:
    bury_one(broker, SENT)
    before = time.time()
    (dead,) = broker.dead_letters()
    (sent,) = broker.retry_dead([dead.dead_id])
    assert (sent.queue, sent.message_id) == (dead.origin, dead.message.message_id)
    assert broker.dead_letters() == []
    with broker.consume([broker.topology.jobs], 1) as consumer:
        (again,) = take(consumer, 1)
    headers = {name: value for name, value in again.message.headers.items() if name != ENQUEUED_AT}
    assert again.delivery_count == 0
    assert before <= float(headers[RETRIED_AT]) <= time.time()
    assert headers.pop(RETRIED_AT) == sent.retried_at
    assert headers == dict(SENT.headers)
    assert (again.message.body, again.message.message_id, again.message.reply_to) == (SENT.body, "m-1", "r-1")


def test_only_the_dead_letters_named_are_sent_back_or_dropped(broker: Broker) -> None:
    for number in range(4):
        bury_one(broker, Message(str(number).encode(), "text/plain"))
    ids = [dead.dead_id for dead in broker.dead_letters()]
    assert len(set(ids)) == 4

    assert len(broker.retry_dead([ids[1], "nonsense"])) == 1
    assert broker.drop_dead([ids[2]]) == 1

    assert [dead.message.body for dead in broker.dead_letters()] == [b"0", b"3"]
    with broker.consume([broker.topology.jobs], 10) as consumer:
        assert bodies(take(consumer, 1)) == [b"1"]
        assert_nothing_else(broker, consumer, broker.topology.jobs)


def test_the_dead_letters_of_a_message_are_sent_back_by_its_id(broker: Broker) -> None:
    for number in range(4):
        bury_one(broker, Message(str(number).encode(), "text/plain", message_id=f"m-{number % 3}"))

    assert len(broker.retry_messages(lambda message_id: message_id == "m-0")) == 2
    assert len(broker.retry_messages(lambda message_id: message_id == "m-0")) == 0

    assert [dead.message.body for dead in broker.dead_letters()] == [b"1", b"2"]
    with broker.consume([broker.topology.jobs], 10) as consumer:
        assert sorted(bodies(take(consumer, 2))) == [b"0", b"3"]


@pytest.mark.parametrize("how", ["retry_dead", "drop_dead"])
def test_all_dead_letters_can_be_sent_back_or_dropped(broker: Broker, how: str) -> None:
    queue = broker.topology.jobs
    broker.publish_many(to(queue, numbered(250)))
    with broker.consume([queue], 250) as consumer:
        for delivery in take(consumer, 250):
            consumer.dead_letter(delivery, "internal")
        consumer.flush()
    assert broker.depths()[broker.topology.dead].ready == 250

    done = broker.drop_dead() if how == "drop_dead" else len(broker.retry_dead())
    assert done == 250

    assert broker.depths()[broker.topology.dead].ready == 0
    assert broker.depths()[queue].ready == (250 if how == "retry_dead" else 0)
    assert broker.drop_dead() == 0
    assert broker.retry_dead() == []


def test_a_dead_letter_of_unknown_origin_is_not_sent_back_but_can_be_dropped(broker: Broker) -> None:
    broker.publish(broker.topology.dead, Message(b"stray", "text/plain", headers={DEAD_ID: "stray"}))
    (dead,) = broker.dead_letters()
    assert (dead.dead_id, dead.reason, dead.origin) == ("stray", "unknown", "unknown")
    assert len(broker.retry_dead()) == 0
    assert broker.drop_dead(["stray"]) == 1
    assert broker.dead_letters() == []


def test_a_reply_to_that_names_a_work_queue_is_left_out(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise whoever may ask for a prediction could have a worker publish work."""
    queues = broker.topology
    for reply_to in (queues.shards, queues.dead, "somebody.elses"):
        broker.publish(queues.predictions, Message(b"", "image/png", "asked", reply_to=reply_to))
    with broker.consume([queues.predictions], 3) as consumer:
        asked = [consumer.receive(1, 10)[0].message.reply_to for _ in range(3)]
    assert asked == [None, None, "somebody.elses"]
    assert f"names our own queue {queues.shards} as reply_to" in caplog.text


def test_what_a_consumer_holds_is_bounded_in_bytes_too(broker: Broker) -> None:
    queue = broker.topology.predictions
    large = [bytes([number]) * 1_000_000 for number in range(20)]
    small = [bytes([number]) for number in range(100)]
    broker.publish_many([Outgoing(queue, Message(body, "text/plain")) for body in large])
    with broker.consume([queue], 30, prefetch_bytes=3_000_000) as consumer:
        found: list[bytes] = []
        while len(found) < len(large):
            held = consumer.receive(30, 10)
            held += consumer.receive(30, 0.1)  # and no more, for as long as these are not settled
            assert 1 <= len(held) <= 4
            found += [delivery.message.body for delivery in held]
            consumer.settle(held)
            consumer.flush()
        assert found == large
        broker.publish_many([Outgoing(queue, Message(body, "text/plain")) for body in small])
        found, most = [], 0
        while len(found) < len(small):
            held = []
            while more := consumer.receive(30, 0.3):
                held += more
            assert 1 <= len(held) <= 30
            most = max(most, len(held))
            found += [delivery.message.body for delivery in held]
            consumer.settle(held)
        assert found == small
        assert most == 30

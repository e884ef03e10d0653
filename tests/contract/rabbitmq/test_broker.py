"""What only RabbitMQ can do, or do wrong: foreign clients, its refusals, its time-outs."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from shared.broker import open_broker
from shared.broker.base import Broker, BrokerError, Event, Message, Outgoing, requeued_copy
from shared.broker.rabbitmq import broker as rabbitmq
from shared.broker.rabbitmq import dead_letters, definitions
from shared.broker.rabbitmq.codec import message_of
from shared.broker.reply_batch import REPLY_BATCH, pack, unpack
from shared.client import Client
from shared.messages import parse_prediction, prediction, prediction_reply
from shared.store.files import FileStore
from shared.topology import Topology
from tests.contract.broker.test_events import events, replies
from tests.contract.broker.test_messages import bodies, numbered, take, to
from tests.contract.conftest import Place
from tests.support.brokers.rabbitmq_node import MAX_MESSAGE_BYTES, free_port
from tests.support.brokers.tcp_proxy import TcpProxy
from tests.support.services import eventually

pytestmark = pytest.mark.rabbitmq

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def place(rabbitmq_place: Place) -> Place:
    return rabbitmq_place


@pytest.fixture
def foreign(place: Place) -> Iterator[BlockingChannel]:
    """A client that knows nothing of this code."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(place.url))) as connection:
        yield connection.channel()


def test_the_bare_message_of_a_foreign_client_arrives(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    foreign.basic_publish("", place.topology.predictions, b"bare")
    with broker.consume([place.topology.predictions], 1) as consumer:
        (delivery,) = take(consumer, 1)
    got = delivery.message
    assert (got.body, got.content_type, got.headers) == (b"bare", "application/octet-stream", {})
    assert (got.correlation_id, got.reply_to, delivery.delivery_count) == (None, None, 0)
    assert delivery.waited_s() is None


def test_a_message_without_an_id_has_the_same_one_at_each_delivery_and_others_have_others(
    place: Place, foreign: BlockingChannel
) -> None:
    broker = place.open()
    queue = place.topology.predictions
    foreign.basic_publish("", queue, b"bare")
    foreign.basic_publish("", queue, b"bare", pika.BasicProperties(headers={"params": "{}"}))
    with broker.consume([queue], 2) as consumer:
        first = take(consumer, 2)
        for delivery in first:
            consumer.requeue(delivery)
        again = take(consumer, 2)
    assert {d.delivery_count for d in again} == {1}
    assert {d.message.message_id for d in again} == {d.message.message_id for d in first}
    assert len({d.message.message_id for d in first}) == 2


def test_the_headers_of_a_foreign_client_become_plain_or_are_left_out(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    headers = {
        "bytes": b"text",
        "not_text": b"\xff",
        "nothing": None,
        "table": {"a": 1},
        "array": [1, 2],
        "time": dt.datetime.fromtimestamp(1_700_000_000, dt.UTC),
        "decimal": decimal.Decimal("1.5"),
        "whole": 2**40,
        "x-float-headers": ["text", "missing", ["text"], {"a": 1}, 5],
        "text": "not a number",
    }
    foreign.basic_publish("", place.topology.predictions, b"", pika.BasicProperties(headers=headers))
    with broker.consume([place.topology.predictions], 1) as consumer:
        (delivery,) = take(consumer, 1)
    assert delivery.message.headers == {
        "bytes": "text",
        "time": 1_700_000_000,
        "decimal": 1.5,
        "whole": 2**40,
        "text": "not a number",
    }
    assert type(delivery.message.headers["whole"]) is int


class Encoded(pika.BasicProperties):  # type: ignore[misc]
    """Properties with headers that pika itself would not write."""

    def __init__(self, headers: bytes, **others: Any) -> None:
        super().__init__(headers={"replaced": "below"}, **others)
        self._encoded = headers

    def encode(self) -> list[bytes]:
        whole = b"".join(super().encode())
        ours = b"".join(pika.BasicProperties(headers=self.headers).encode())[2:]
        return [whole.replace(ours, struct.pack(">I", len(self._encoded)) + self._encoded)]


MILLISECONDS = b"\x04whenT" + struct.pack(">Q", 1_760_000_000_000)
HUGE = b"\x04huged" + struct.pack(">d", 1e300)
KEPT = b"\x04keptS" + struct.pack(">I", 3) + b"yes"
NESTED = b"\x06nestedF" + struct.pack(">I", len(MILLISECONDS)) + MILLISECONDS


def test_a_header_that_cannot_be_decoded_is_left_out_alone_and_costs_no_connection(
    place: Place, foreign: BlockingChannel
) -> None:
    broker = place.open()
    queue = place.topology.predictions
    foreign.basic_publish("", queue, b"before")
    about = {"content_type": "image/png", "content_encoding": "identity", "reply_to": "them", "message_id": "m"}
    foreign.basic_publish("", queue, b"odd", Encoded(MILLISECONDS + KEPT + NESTED, **about))
    foreign.basic_publish("", queue, b"after")
    with broker.consume([queue], 3) as consumer:
        deliveries = take(consumer, 3)
        odd = deliveries[1].message
        consumer.dead_letter(deliveries[1], "internal")
        consumer.flush()
    assert bodies(deliveries) == [b"before", b"odd", b"after"]
    assert (odd.content_type, odd.reply_to, odd.message_id, odd.headers) == ("image/png", "them", "m", {"kept": "yes"})
    assert [dead.message.body for dead in broker.dead_letters()] == [b"odd"]
    assert broker.reconnects == 0


NOT_TEXT = b"\xff" * 100


@pytest.mark.parametrize(
    "about",
    [
        {"reply_to": NOT_TEXT},
        {"reply_to": "theirs", "correlation_id": NOT_TEXT},
        {"reply_to": "theirs", "message_id": NOT_TEXT},
        {"reply_to": "amq.rabbitmq.reply-to.!!garbage!!.x"},
        {"reply_to": "amq.rabbitmq.reply-to.g2dkABByZXBseUAx.abc=="},
        {"reply_to": "amq.rabbitmq.reply-to.g2QAA2FiYw==.x"},  # a term that is no process
        {"reply_to": "full"},
    ],
)
def test_a_reply_that_cannot_be_sent_is_dropped_and_the_work_settled_with_its_neighbours(
    place: Place, foreign: BlockingChannel, about: dict[str, Any]
) -> None:
    broker = place.open()
    queue = place.topology.predictions
    full = f"{place.topology.prefix}.full"
    foreign.queue_declare(full, exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    about = {key: full if value == "full" else value for key, value in about.items()}
    with broker.reply_queue() as reply_queue:
        foreign.basic_publish("", queue, b"odd", pika.BasicProperties(**about))
        broker.publish(queue, Message(b"good", "text/plain", reply_to=reply_queue.name))
        with broker.consume([queue], 2) as consumer:
            deliveries = take(consumer, 2)
            answers = [answer for delivery in deliveries for answer in delivery.message.reply(b"answer", "text/plain")]
            assert len(answers) == 2
            consumer.settle(deliveries, answers)
            consumer.flush()
        assert replies(reply_queue, 1) == [b"answer"]
    assert broker.depths()[queue].ready == 0
    assert broker.reconnects == 0


LARGE = pika.BasicProperties(message_id="odd", headers={"large": "x" * (128 * 2**10 - 60), "small": 1})


@pytest.mark.parametrize(
    ("properties", "kept"),
    [
        (Encoded(HUGE + KEPT, message_id="odd"), {"huge": 1e300, "kept": "yes"}),
        (LARGE, {"small": 1}),
        (pika.BasicProperties(message_id="odd", headers={NOT_TEXT: "a", "small": 1}), {"\ufffd" * 85: "a", "small": 1}),
    ],
    ids=["a number that AMQP has no whole number for", "headers that fill a frame", "a name that is no text"],
)
def test_what_can_be_read_can_be_buried_and_requeued_copy(
    place: Place, foreign: BlockingChannel, properties: pika.BasicProperties, kept: dict[str, Any]
) -> None:
    broker = place.open()
    queue = place.topology.predictions
    foreign.basic_publish("", queue, b"odd", properties)
    with broker.consume([queue], 1) as consumer:
        consumer.dead_letter(take(consumer, 1)[0], "invalid_message")
        consumer.flush()
        (dead,) = broker.dead_letters()
        assert (dead.reason, dead.origin, dead.message.message_id) == ("invalid_message", queue, "odd")
        assert len(broker.retry_dead([dead.dead_id])) == 1
        (again,) = take(consumer, 1)
    assert kept.items() <= again.message.headers.items()
    assert "large" not in again.message.headers
    assert broker.reconnects == 0


def test_a_message_that_has_no_room_for_one_header_more_is_deferd_all_the_same(
    place: Place, foreign: BlockingChannel
) -> None:
    broker = place.open()
    queue = place.topology.predictions
    foreign.basic_publish("", queue, b"odd", LARGE)
    with broker.consume([queue], 1) as consumer:
        consumer.requeue(take(consumer, 1)[0])
        consumer.defer(take(consumer, 1)[0], 0.0)
        (again,) = take(consumer, 1)
    assert again.message.headers.keys() == {"large", "small"}
    assert broker.reconnects == 0


def test_dead_letters_that_foreign_clients_made_are_shown_and_dropped(
    place: Place, foreign: BlockingChannel, eventually: Eventually
) -> None:
    broker = place.open()
    for headers in (
        {"x-float-headers": [[1]]},
        {"dead_id": "d", "delivery_count": "inf", "x-float-headers": ["delivery_count"]},
        {"x-death": [1], "x-first-death-reason": b"\xff"},
    ):
        foreign.basic_publish("", place.topology.dead, b"", pika.BasicProperties(headers=headers))
    foreign.basic_publish("", place.topology.dead, b"", Encoded(MILLISECONDS))
    eventually(lambda: broker.depths()[place.topology.dead].ready == 4)
    assert [dead.delivery_count for dead in broker.dead_letters()] == [0, 0, 0, 0]
    assert broker.drop_dead() == 4


def test_a_foreign_client_gets_its_reply_at_its_direct_reply_address(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    answers: list[tuple[bytes, str | None]] = []
    foreign.basic_consume(
        "amq.rabbitmq.reply-to",
        lambda _channel, _method, properties, body: answers.append((body, properties.correlation_id)),
        auto_ack=True,
    )
    asked = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="c")
    foreign.basic_publish("", place.topology.predictions, b"", asked)
    with broker.consume([place.topology.predictions], 1) as consumer:
        (delivery,) = take(consumer, 1)
        consumer.settle([], delivery.message.reply(b"answer", "text/plain"))
        while not answers:
            foreign.connection.process_data_events(0.1)
        foreign.close()
        consumer.settle([delivery], delivery.message.reply(b"too late", "text/plain"))
        consumer.flush()
        broker.publish_many(delivery_reply := delivery.message.reply(b"too late", "text/plain"))
    assert delivery_reply
    assert answers == [(b"answer", "c")]
    assert broker.reconnects == 0


def test_a_message_that_kills_every_consumer_ends_as_a_dead_letter_of_the_broker(place: Place) -> None:
    broker = place.open(delivery_limit=1)
    queue = place.topology.datasets
    broker.publish(queue, Message(b"poison", "application/zip", "m", headers={"name": "faces", "fraction": 0.5}))
    deliveries = 0
    with broker.consume([queue], 1) as consumer:
        while broker.depths()[place.topology.dead].ready == 0:
            for taken in consumer.receive(1, timeout_s=0.05):
                deliveries += 1
                consumer.requeue(taken)

        (dead,) = broker.dead_letters()
        assert (dead.reason, dead.origin, dead.delivery_count) == ("delivery_limit", queue, deliveries)
        assert broker.dead_letters()[0].dead_id == dead.dead_id
        assert (dead.message.body, dead.message.message_id) == (b"poison", "m")
        assert {"name", "fraction"} <= set(requeued_copy(dead.message, 1.5).headers)

        assert len(broker.retry_dead([dead.dead_id])) == 1
        (again,) = take(consumer, 1)
        assert again.delivery_count == 0
        assert again.message.headers["fraction"] == 0.5


@contextlib.contextmanager
def going_through_dead_letters(broker: Broker) -> Iterator[None]:
    """Has a dead letter held by somebody who looks for another one, until the block ends."""
    held, let_go = threading.Event(), threading.Event()

    def wants(_: str) -> bool:
        held.set()
        let_go.wait(30)
        return False

    with ThreadPoolExecutor(1) as pool:
        pool.submit(broker.retry_messages, wants)
        assert held.wait(10)
        try:
            yield
        finally:
            let_go.set()


@pytest.mark.parametrize("how", ["list", "retry", "drop"])
def test_a_dead_letter_is_found_once_others_have_looked_at_it(place: Place, how: str) -> None:
    other, broker = place.open(), place.open()
    broker.publish(place.topology.jobs, Message(b"", "text/plain", "m"))
    with broker.consume([place.topology.jobs], 1) as consumer:
        consumer.dead_letter(take(consumer, 1)[0], "internal")
    (dead,) = other.dead_letters()
    calls: dict[str, Callable[[], object]] = {
        "list": broker.dead_letters,
        "retry": lambda: [sent.message_id for sent in broker.retry_messages(lambda message_id: message_id == "m")],
        "drop": lambda: broker.drop_dead([dead.dead_id]),
    }
    with ThreadPoolExecutor(1) as pool:
        with going_through_dead_letters(other):
            found = pool.submit(calls[how])
            with pytest.raises(TimeoutError):
                found.result(0.5)
        assert found.result(10) == {"list": [dead], "retry": ["m"], "drop": 1}[how]


def test_dead_letters_that_others_hold_for_long_are_not_called_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, broker = place.open(), place.open()
    broker.publish(place.topology.dead, Message(b"", "text/plain", "m"))
    with going_through_dead_letters(other):
        monkeypatch.setattr(dead_letters, "_LOCK_TIMEOUT_S", 0.2)
        with pytest.raises(BrokerError, match="another program has worked on the failed messages"):
            broker.retry_messages(lambda _: True)


def test_who_fails_while_it_goes_through_dead_letters_keeps_nobody_from_them(place: Place) -> None:
    other, broker = place.open(), place.open()
    broker.publish(place.topology.dead, Message(b"", "text/plain", "m"))
    with pytest.raises(ZeroDivisionError):
        other.retry_messages(lambda _: bool(1 / 0))
    eventually(lambda: len(broker.dead_letters()) == 1, 10, "the dead letter is there again")


def first_occurrences(broker: Broker, queue: str) -> list[bytes]:
    """Takes everything; returns the bodies without those that came before, as publishing again makes them."""
    there = broker.depths()[queue].ready
    with broker.consume([queue], there) as consumer:
        found = bodies(take(consumer, there))
    return list(dict.fromkeys(found))


def test_a_message_larger_than_the_broker_takes_is_refused_while_others_pass_in_their_order(place: Place) -> None:
    broker = place.open()
    queue = place.topology.jobs
    passing = threading.Thread(target=broker.publish_many, args=(to(queue, numbered(2000)),))
    passing.start()
    with pytest.raises(BrokerError, match=f"{MAX_MESSAGE_BYTES + 1} bytes.*larger than configured max size"):
        broker.publish(queue, Message(bytes(MAX_MESSAGE_BYTES + 1), "application/zip"))
    passing.join(30)
    assert first_occurrences(broker, queue) == [message.body for message in numbered(2000)]
    assert broker.reconnects == 0


def test_an_image_larger_than_the_broker_takes_costs_its_own_entry(place: Place, tmp_path: Path) -> None:
    broker = place.open()
    images = [b"small", bytes(MAX_MESSAGE_BYTES + 1), b"another", bytes(9 * 2**20)]

    def answer() -> None:
        answered = 0
        with broker.consume([place.topology.predictions], 10) as consumer:
            while answered < 3:
                for delivery in consumer.receive(1, timeout_s=10):
                    ids = parse_prediction(delivery.message).ids
                    answered += len(ids)
                    entries = [prediction(key, 0.75) for key in ids]
                    consumer.settle([delivery], prediction_reply(delivery.message, {"version": 1}, entries))
                    consumer.flush()

    worker = threading.Thread(target=answer)
    worker.start()
    entries, _ = Client(broker, FileStore(tmp_path)).predict(images, timeout_s=30)
    worker.join(30)
    assert [entry.get("gender") for entry in entries] == ["female", None, "female", "female"]
    assert entries[1]["error"]["code"] == "image_too_large"
    assert f"{MAX_MESSAGE_BYTES + 1:,} bytes" in entries[1]["error"]["message"]


def test_what_is_published_behind_a_message_that_makes_the_broker_hang_up_passes_in_its_order(
    place: Place, eventually: Eventually
) -> None:
    broker = place.open()
    queue = place.topology.jobs
    poison = Message(b"", "application/zip", headers={"params": "x" * 200_000})
    passing = threading.Thread(target=broker.publish_many, args=(to(queue, numbered(5000)),))
    passing.start()
    with broker.consume([place.topology.shards], 1) as consumer:
        eventually(lambda: broker.depths()[queue].ready > 0)  # the first are through, thousands are waiting
        consumer.settle([], [Outgoing(queue, poison)])
        broker.publish_many(to(queue, numbered(1000, start=5000)))
        with pytest.raises(BrokerError, match=r"lost|frame_too_large"):
            consumer.flush()
    passing.join(30)
    assert first_occurrences(broker, queue) == [message.body for message in numbered(6000)]
    assert broker.reconnects >= 1


@pytest.mark.parametrize(
    ("poison", "named"),
    [
        (Message(bytes(MAX_MESSAGE_BYTES + 1), "application/zip"), f"{MAX_MESSAGE_BYTES + 1} bytes"),
        (Message(b"1234567", "application/zip", headers={"params": "x" * 200_000}), "7 bytes"),
    ],
    ids=["too large a body", "too large a header"],
)
def test_the_one_message_that_the_broker_cannot_stand_is_found_among_many(
    place: Place, poison: Message, named: str
) -> None:
    broker = place.open()
    batch = [*numbered(20), poison, *numbered(20)]
    with pytest.raises(BrokerError, match=named):
        broker.publish_many(to(place.topology.jobs, batch), timeout_s=20)
    broker.publish(place.topology.jobs, Message(b"", "text/plain"))


@pytest.mark.parametrize("headers", [{"n" * 300: 1}, {"large": 2**70}])
def test_a_message_that_amqp_cannot_express_is_refused(place: Place, headers: dict[str, int]) -> None:
    broker = place.open()
    with pytest.raises(BrokerError, match="cannot be encoded"):
        broker.publish(place.topology.jobs, Message(b"", "text/plain", headers=headers))
    assert broker.ping()
    assert broker.reconnects == 0


def test_a_result_that_the_broker_refuses_leaves_the_work_unsettled(place: Place) -> None:
    broker = place.open()
    topology = place.topology
    broker.publish(topology.jobs, Message(b"work", "text/plain"))
    consumer = broker.consume([topology.jobs], 1)
    huge = Outgoing(topology.shards, Message(bytes(MAX_MESSAGE_BYTES + 1), "text/plain"))
    consumer.settle(take(consumer, 1), [huge])
    with pytest.raises(BrokerError, match="larger than"):
        consumer.flush()
    consumer.close()
    with broker.consume([topology.jobs], 1) as other:
        assert bodies(take(other, 1)) == [b"work"]


def test_a_queue_deleted_under_a_consumer_is_declared_again(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    queue = place.topology.predictions
    with broker.consume([queue], 1) as consumer:
        broker.publish(queue, Message(b"before", "text/plain"))
        consumer.settle(take(consumer, 1))
        consumer.flush()
        foreign.queue_delete(queue)
        deadline = time.monotonic() + 20
        while True:  # until it is there again, publishing says that it does not exist
            try:
                broker.publish(queue, Message(b"after", "text/plain"))
                break
            except BrokerError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert bodies(take(consumer, 1)) == [b"after"]


def test_publishing_to_one_of_our_queues_that_was_deleted_is_an_error(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    foreign.queue_delete(place.topology.jobs)
    with pytest.raises(BrokerError, match=f"{place.topology.jobs}.* does not exist"):
        broker.publish(place.topology.jobs, Message(b"", "text/plain"))
    with pytest.raises(BrokerError, match="NOT_FOUND"):
        broker.depths()


def test_a_reply_queue_that_the_broker_cancels_while_it_closes_costs_no_connection(
    place: Place, foreign: BlockingChannel
) -> None:
    with (
        TcpProxy(place.url) as proxy,
        open_broker(proxy.url, place.topology) as broker,
        broker.reply_queue() as reply_queue,
    ):
        with proxy.answers_held() as holding:
            foreign.queue_delete(reply_queue.name)
            assert holding.wait(10)  # the notice of that, which arrives once the reply queue is closed
            closing = threading.Thread(target=reply_queue.close)
            closing.start()
            reply_queue.receive(10)
        closing.join()
        broker.publish(broker.topology.jobs, Message(b"", "x"))  # waits for a connection, were it to be made anew
        assert broker.reconnects == 0


def test_a_subscription_counts_the_gaps_between_its_connections(place: Place) -> None:
    telling = place.open()
    with (
        TcpProxy(place.url) as proxy,
        open_broker(proxy.url, place.topology) as listening,
        listening.subscribe() as subscription,
    ):
        telling.emit("run.progress", {"number": 0})
        assert [event.payload["number"] for event in events(subscription, 1)] == [0]
        assert subscription.gaps == 0

        proxy.cut()
        telling.emit("run.progress", {"number": 1})  # lost
        deadline = time.monotonic() + 20
        while not subscription.gaps:
            assert time.monotonic() < deadline
            subscription.receive(0.05)
        telling.emit("run.progress", {"number": 2})

        assert [event.payload["number"] for event in events(subscription, 1)] == [2]
        assert subscription.gaps == 1


def test_a_reply_queue_deleted_by_an_operator_comes_back(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    with broker.reply_queue() as reply_queue:
        foreign.queue_delete(reply_queue.name)
        found: list[Message] = []
        deadline = time.monotonic() + 20
        while not found:
            assert time.monotonic() < deadline
            broker.publish(reply_queue.name, Message(b"reply", "text/plain"))
            found = reply_queue.receive(0.2)


def test_replies_travel_together_to_our_reply_queues_only(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    queues = [
        f"{place.topology.batch_reply_queue_prefix}like-one-of-ours",
        f"{place.topology.prefix}.inbox.of-an-older-version",
        "theirs",
    ]
    for queue in queues:
        foreign.queue_declare(queue, auto_delete=True)
    broker.publish(place.topology.predictions, Message(b"", "image/jpeg"))
    with broker.consume([place.topology.predictions], 1) as consumer:
        replies_ = [Message(str(number).encode(), "text/plain") for number in range(3)]
        consumer.settle(take(consumer, 1), [Outgoing(queue, message) for message in replies_ for queue in queues])
        consumer.flush()
    arrived: dict[str, list[Message]] = {}
    for queue in queues:
        while (got := foreign.basic_get(queue, auto_ack=True))[0] is not None:
            _, properties, body = got
            arrived.setdefault(queue, []).append(message_of(properties, body))
        foreign.queue_delete(queue)
    (batch,) = arrived[queues[0]]
    assert unpack(batch) == arrived[queues[1]] == arrived[queues[2]] == replies_


def test_replies_that_come_again_since_their_acknowledgement_was_lost_are_returned_once(
    place: Place, foreign: BlockingChannel
) -> None:
    (batch,) = pack([Outgoing("replies", Message(body, "text/plain")) for body in (b"one", b"two")], "replies")
    with place.open().reply_queue() as reply_queue:
        taken: list[bytes] = []
        for body, properties in (
            (batch.message.body, pika.BasicProperties(content_type=REPLY_BATCH, message_id="same")),
            (batch.message.body, pika.BasicProperties(content_type=REPLY_BATCH, message_id="same")),
            (b"three", pika.BasicProperties(content_type="text/plain", message_id="another")),
        ):
            foreign.basic_publish("", reply_queue.name, body, properties)
            taken += [message.body for message in reply_queue.receive(1)]
        taken += replies(reply_queue, 3 - len(taken))
        assert taken == [b"one", b"two", b"three"]


def test_what_is_no_reply_batch_of_ours_is_ignored(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    with broker.reply_queue() as reply_queue:
        foreign.basic_publish("", reply_queue.name, b"no batch", pika.BasicProperties(content_type=REPLY_BATCH))
        foreign.basic_publish("", reply_queue.name, b"a reply", pika.BasicProperties(content_type="text/plain"))
        assert replies(reply_queue, 1) == [b"a reply"]
        assert broker.reconnects == 0


def test_events_go_on_after_their_exchange_was_deleted(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    with broker.subscribe() as subscription:
        foreign.exchange_delete(place.topology.events)
        found: list[Event] = []
        deadline = time.monotonic() + 20
        while not found:
            assert time.monotonic() < deadline
            broker.emit("run.epoch", {})
            found = subscription.receive(0.2)


@pytest.mark.parametrize(("part", "wrong"), [("guest:guest@", "guest:s3cret@"), ("/%2F", "/nowhere")])
def test_wrong_credentials_are_told_at_once_without_the_password(place: Place, part: str, wrong: str) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerError, match="refused the user or the virtual host") as caught:
        open_broker(place.url.replace(part, wrong))
    assert time.monotonic() - began < 5
    assert f"127.0.0.1:{place.url.split(':')[-1].split('/')[0]}" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_not_there_is_told_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq, "_CONNECT_TIMEOUT_S", 0.5)
    port = free_port()
    before = set(threading.enumerate())
    with pytest.raises(BrokerError, match=rf"127\.0\.0\.1:{port}.*refused") as caught:
        open_broker(f"amqp://guest:s3cret@127.0.0.1:{port}/")
    assert "s3cret" not in str(caught.value)
    assert set(threading.enumerate()) == before


def test_a_server_that_hangs_up_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq, "_CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.recv(8)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(BrokerError, match=r"the server closed the connection$"):
            open_broker(f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/")
        server.shutdown(socket.SHUT_RDWR)


def test_queues_declared_with_other_arguments_are_told_at_once_with_what_to_do(place: Place) -> None:
    place.open(queue_limit=10)
    began = time.monotonic()
    with pytest.raises(BrokerError, match=rf"{place.topology.datasets}.*GENDERLINE_QUEUE_LIMIT"):
        place.open(queue_limit=11)
    assert time.monotonic() - began < 5


def test_a_malformed_url_is_a_mistake_that_is_named() -> None:
    with pytest.raises(ValueError, match="port"):
        open_broker("amqp://localhost:notaport/", Topology())


def test_delivery_counts_that_a_client_made_up_are_ignored(place: Place, foreign: BlockingChannel) -> None:
    broker = place.open()
    queue = place.topology.predictions
    forged: list[dict[str, object]] = [
        {"x-earlier-deliveries": 50},
        {"x-earlier-deliveries": "50"},
        {"x-earlier-deliveries": f"50 {'0' * 32}"},
        {"x-delivery-count": 50},
    ]
    for number, headers in enumerate(forged):
        properties = pika.BasicProperties(message_id=str(number), headers=headers)
        foreign.basic_publish("", queue, b"", properties)
    with broker.consume([queue], 10) as consumer:
        found = [delivery for _ in forged for delivery in consumer.receive(1, 10)]
        assert [delivery.delivery_count for delivery in found] == [0] * len(forged)
        for delivery in found:
            consumer.requeue(delivery)
        found = [delivery for _ in forged for delivery in consumer.receive(1, 10)]
        assert [delivery.delivery_count for delivery in found] == [1] * len(forged)
        consumer.settle(found)
        consumer.flush()


@pytest.mark.parametrize(
    ("limit", "most"), [("DEAD_LETTERS_KEPT", 3), ("DEAD_BYTES_KEPT", 3_500)], ids=["messages", "bytes"]
)
def test_of_too_many_dead_letters_the_newest_stay(
    place: Place, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(definitions, limit, most)
    broker = place.open()
    queue = place.topology.predictions
    with broker.consume([queue], 8) as consumer:
        for number in range(8):
            broker.publish(queue, Message(b"x" * 1000, "text/plain", f"dead-{number}"))
            consumer.dead_letter(take(consumer, 1)[0], "invalid_message")
            consumer.flush()
    eventually(lambda: broker.depths()[place.topology.dead].ready == 3, 20, "the oldest go")
    assert {letter.message.message_id for letter in broker.dead_letters()} == {"dead-5", "dead-6", "dead-7"}

"""RabbitMQ at a standstill, with other limits, killed, and away: what needs a node of its own, on one node."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from shared.broker import open_broker
from shared.broker.base import BrokerError, Delivery, Event, Message, Outgoing
from shared.telemetry.metrics import BrokerCollector
from tests.contract.broker.test_crashes import collect, numbers, start_publisher_and_worker, wait_for_number
from tests.contract.broker.test_events import replies
from tests.contract.broker.test_messages import bodies, take
from tests.contract.conftest import Place
from tests.support.brokers.rabbitmq_node import RabbitNode, rabbitmq_server
from tests.support.services import eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A node that nobody else uses. A test that stops it starts it again."""
    with contextlib.closing(RabbitNode(tmp_path_factory.mktemp("rabbitmq"), rabbitmq_server())) as made:
        made.start()
        yield made


@pytest.fixture
def place(node: RabbitNode) -> Iterator[Place]:
    made = Place(node.url, node)
    yield made
    made.clear()


def test_what_is_held_longer_than_the_broker_allows_is_taken_back_and_comes_again(place: Place) -> None:
    assert place.node is not None
    place.node.evaluate(
        "application:set_env(rabbit, consumer_timeout, 500), application:set_env(rabbit, channel_tick_interval, 300)."
    )
    try:
        broker = place.open()
        queue = place.topology.predictions
        broker.publish(queue, Message(b"slow", "text/plain"))
        reply_queue = broker.reply_queue()
        broker.publish(reply_queue.name, Message(b"read late", "text/plain"))
        with broker.consume([queue], 1) as consumer:
            slow = take(consumer, 1)
            (again,) = take(consumer, 1, timeout_s=20)
            assert (again.message.body, again.delivery_count) == (b"slow", 1)
            consumer.settle(slow)
            with pytest.raises(BrokerError, match="delivered again"):
                consumer.flush()
            consumer.settle([again])
            consumer.flush()
        assert replies(reply_queue, 1) == [b"read late"]
        broker.publish(reply_queue.name, Message(b"more", "text/plain"))
        assert replies(reply_queue, 1) == [b"more"]
        assert broker.reconnects == 0
        assert broker.depths()[queue].ready == 0
    finally:
        place.node.evaluate(
            "application:set_env(rabbit, consumer_timeout, 1800000), "
            "application:set_env(rabbit, channel_tick_interval, 60000)."
        )


@contextlib.contextmanager
def at_a_standstill(node: RabbitNode) -> Iterator[None]:
    """Stops the node without its connections being lost, as an overloaded machine or an alarm would."""
    os.kill(node.pid, signal.SIGSTOP)
    os.waitpid(node.pid, os.WUNTRACED)  # until all of its threads have stopped
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


@pytest.mark.parametrize("how", ["settled", "deferred"])
def test_a_flush_waits_until_the_broker_has_what_was_done(place: Place, how: str) -> None:
    """What a process that is killed has just sent may be lost with it, and then its message comes again."""
    assert place.node is not None
    broker = place.open()
    queue = place.topology.predictions
    broker.publish(queue, Message(b"work", "text/plain"))
    with broker.consume([queue], 1) as consumer:
        (delivery,) = take(consumer, 1)
        with at_a_standstill(place.node):
            if how == "settled":
                consumer.settle([delivery])
            else:
                consumer.defer(delivery, 0)
            with pytest.raises(BrokerError, match="did not confirm"):
                consumer.flush(0.2)
        consumer.flush()


def test_a_broker_that_answers_too_late_is_left_no_channel_open(place: Place) -> None:
    assert place.node is not None
    node, broker = place.node, place.open()

    def channels() -> int:
        return int(node.evaluate("length(rabbit_channel:list_local())."))

    assert broker.ping()
    before = channels()
    with at_a_standstill(node):
        assert [broker.ping(timeout_s=0.05) for _ in range(20)] == [False] * 20
    assert broker.ping(timeout_s=10)
    eventually(lambda: channels() <= before, 15, "the channels of late answers are closed")
    assert broker.reconnects == 0


def test_where_so_many_answers_are_late_that_no_channel_is_free_it_says_so(place: Place) -> None:
    assert place.node is not None
    with open_broker(f"{place.url}?channel_max=10", place.topology) as broker:
        with at_a_standstill(place.node):
            assert [broker.ping(timeout_s=0.05) for _ in range(10)] == [False] * 10
            with pytest.raises(BrokerError, match="no channel is free"):
                broker.depths()
        eventually(broker.ping, 15, "the broker answers again")
        assert broker.reconnects == 0


def test_nothing_that_was_confirmed_is_lost_when_the_broker_dies_in_the_middle(place: Place) -> None:
    assert place.node is not None
    publisher, _worker = start_publisher_and_worker(place)
    place.node.kill()
    place.node.start()
    confirmed = wait_for_number(publisher, 1500)  # both processes live through it
    assert set(collect(place.open(), place.topology.shards, numbers(confirmed))) >= numbers(confirmed)


@dataclass
class Story:
    """What happened to one broker object while its server was away and came back."""

    slowest_emit_s: float
    ping_while_away: bool
    scrape_while_away: list[str]
    scrape_s: float
    publish_while_away: str
    flush_while_away: str
    taken_while_away: list[Delivery]
    published_across: list[BaseException | None]
    reconnects: int
    works_after: bool
    delivered_after: list[tuple[bytes, int]]
    left_after: list[bytes]
    replies_after: list[bytes]
    events_after: list[Event]
    pulled_across: list[bytes]
    looks_per_s: float
    bugs: list[str]


class _Bugs(logging.Handler):
    """Keeps the errors that are logged: what is wrong with the connection itself is a warning."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")


def empty_answers(node: RabbitNode) -> int:
    """Returns how often the node was asked for a message of an empty queue since it started."""
    sums = "[maps:get(messages_get_empty_total, Each, 0) || Each <- maps:values(rabbit_global_counters:overview())]"
    return int(node.evaluate(f"lists:sum({sums})."))


@pytest.fixture(scope="module")
def story(node: RabbitNode) -> Iterator[Story]:
    place = Place(node.url, node)
    bugs = _Bugs()
    logging.getLogger("shared.broker").addHandler(bugs)
    broker = place.open()
    topology = place.topology
    queue = topology.predictions
    consumer = broker.consume([queue], 10)
    reply_queue = broker.reply_queue()
    subscription = broker.subscribe(["run.*"])
    broker.publish(queue, Message(b"held", "text/plain"))
    held = take(consumer, 1)
    broker.publish(reply_queue.name, Message(b"reply before", "text/plain"))
    together = (b"one of two before", b"two of two before")
    consumer.settle([], [Outgoing(reply_queue.name, Message(body, "text/plain")) for body in together])
    consumer.flush()
    # Two queues without prefetch, as a trainer has: somebody waits for work in them all the time. Their connection is
    # another one, as it may be lost once more: to a queue that the server is still recovering.
    idle = place.open().consume([topology.shards, topology.datasets], 0)
    pulled: list[bytes] = []

    def pull() -> None:
        pulled.extend(bodies(take(idle, 1, timeout_s=120)))

    pulling = threading.Thread(target=pull)
    pulling.start()

    node.stop()
    try:
        slowest = 0.0
        for number in range(50):
            began = time.monotonic()
            broker.emit("run.epoch", {"lost": number})
            slowest = max(slowest, time.monotonic() - began)
        ping = broker.ping(timeout_s=0.1)
        began = time.monotonic()
        scraped = [metric.name for metric in BrokerCollector(broker).collect()]
        scrape_s = time.monotonic() - began
        with pytest.raises(BrokerError) as publishing:
            broker.publish(queue, Message(b"never accepted", "text/plain"), timeout_s=0.2)
        consumer.settle(held)
        with pytest.raises(BrokerError) as flushing:
            consumer.flush(5)
        taken = consumer.receive(1, timeout_s=0.1)
        outcome: list[BaseException | None] = []

        def publish_across() -> None:
            try:
                broker.publish(topology.jobs, Message(b"across", "text/plain"), timeout_s=60)
                outcome.append(None)
            except BrokerError as error:
                outcome.append(error)

        across = threading.Thread(target=publish_across)
        across.start()
    finally:
        node.start()
    across.join(60)
    eventually(lambda: empty_answers(node), 60, "the queues are asked again")
    asked = -empty_answers(node)
    began = time.monotonic()
    pulling.join(2)
    asked += empty_answers(node)
    looks_per_s = asked / (time.monotonic() - began)
    broker.publish(topology.datasets, Message(b"pulled", "text/plain"), timeout_s=60)
    pulling.join(60)

    again = take(consumer, 1, timeout_s=30)
    consumer.settle(again)
    consumer.flush()
    with broker.consume([topology.jobs], 10) as jobs:
        left = bodies(take(jobs, 1))
    got = replies(reply_queue, 3)
    broker.publish(reply_queue.name, Message(b"reply after", "text/plain"))
    got += replies(reply_queue, 1)
    told: list[Event] = []
    while not told:  # its queue is made anew a moment after the connection
        broker.emit("run.epoch", {"after": 1})
        told = subscription.receive(0.1)
    yield Story(
        slowest_emit_s=slowest,
        ping_while_away=ping,
        scrape_while_away=scraped,
        scrape_s=scrape_s,
        publish_while_away=str(publishing.value),
        flush_while_away=str(flushing.value),
        taken_while_away=taken,
        published_across=outcome,
        reconnects=broker.reconnects,
        works_after=broker.ping(),
        delivered_after=[(delivery.message.body, delivery.delivery_count) for delivery in again],
        left_after=left,
        replies_after=got,
        events_after=told[:1],
        pulled_across=pulled,
        looks_per_s=looks_per_s,
        bugs=bugs.said,
    )
    logging.getLogger("shared.broker").removeHandler(bugs)
    place.clear()


def test_emitting_neither_blocks_nor_raises_while_the_broker_is_away(story: Story) -> None:
    assert story.slowest_emit_s < 0.5


def test_a_broker_that_is_away_answers_no_ping(story: Story) -> None:
    assert not story.ping_while_away


def test_metrics_of_a_broker_that_is_away_come_long_before_prometheus_gives_up(story: Story) -> None:
    known_without_the_server = {"genderline_broker_reconnects", "genderline_broker_trouble"}
    assert "genderline_broker_reconnects" in story.scrape_while_away
    assert set(story.scrape_while_away) <= known_without_the_server
    assert story.scrape_s < 3


def test_publishing_fails_after_its_timeout_and_says_that_the_broker_is_away(story: Story) -> None:
    assert "did not confirm 1 messages in 0.2 s; not connected" in story.publish_while_away


def test_a_message_whose_publishing_timed_out_is_not_published_later(story: Story) -> None:
    assert (b"never accepted", 0) not in story.delivered_after


def test_flush_says_that_the_connection_was_lost(story: Story) -> None:
    assert "lost" in story.flush_while_away


def test_taking_waits_for_its_timeout_while_the_broker_is_away(story: Story) -> None:
    assert story.taken_while_away == []


def test_publishing_survives_the_outage_within_its_timeout(story: Story) -> None:
    assert story.published_across == [None]
    assert story.left_after == [b"across"]


def test_the_connection_is_made_anew_and_counted(story: Story) -> None:
    assert story.works_after
    assert story.reconnects == 1


def test_work_that_was_not_settled_before_the_outage_is_delivered_again(story: Story) -> None:
    ((body, _count),) = story.delivered_after  # quorum queues do not count deliveries that ended with the broker itself
    assert body == b"held"


def test_a_reply_queue_keeps_its_replies_and_its_name_through_the_outage(story: Story) -> None:
    assert story.replies_after == [
        b"reply before",
        b"one of two before",
        b"two of two before",
        b"reply after",
    ]


def test_a_subscription_goes_on_after_the_outage(story: Story) -> None:
    assert story.events_after == [Event("run.epoch", {"after": 1})]


def test_a_queue_without_prefetch_is_asked_once_at_a_time_after_the_outage_too(story: Story) -> None:
    assert story.bugs == []
    # Five rounds a second through both queues; a few more where a slow `rabbitmqctl` counts late.
    assert 0 < story.looks_per_s < 15
    assert story.pulled_across == [b"pulled"]

"""The broker for real use: RabbitMQ 3.10 or newer, through pika.

Work queues are quorum queues: replicated, counting deliveries, with an explicit limit on them and on the number of
messages. What this process does on its connection is in the neighbouring files: the thread that owns it
(`rabbitmq_link`), how its bytes come and go (`rabbitmq_connection`), confirmed publishing (`rabbitmq_publisher`),
consuming (`rabbitmq_consumer`), inboxes and subscriptions (`rabbitmq_mailbox`), steps that wait for an answer
(`rabbitmq_session`), the form of a message in AMQP (`rabbitmq_wire`), what can be read of one that foreign clients
made badly (`rabbitmq_tables`), and where a reply can be sent (`rabbitmq_addresses`).
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from pika import BasicProperties
from pika.channel import Channel
from pika.delivery_mode import DeliveryMode
from pika.exceptions import ChannelClosedByBroker
from pika.exchange_type import ExchangeType
from pika.spec import Basic

from shared.broker.base import (
    Broker,
    BrokerClosed,
    BrokerError,
    Consumer,
    DeadLetter,
    Depth,
    Outgoing,
    ReplyQueue,
    Subscription,
    requeued_copy,
    stamped,
)
from shared.broker.rabbitmq.codec import dead_letter_of, properties_of
from shared.broker.rabbitmq.connection import Link
from shared.broker.rabbitmq.consumer import RabbitConsumer
from shared.broker.rabbitmq.publisher import Batch, Publisher
from shared.broker.rabbitmq.rpc import Session
from shared.broker.rabbitmq.subscriptions import RabbitReplyQueue, RabbitSubscription
from shared.broker.rabbitmq.transport import Connection
from shared.topology import Topology

_CONNECT_TIMEOUT_S: Final = 10.0
_ADMIN_TIMEOUT_S: Final = 10.0
_LAST_RESORT_MARGIN: Final = 95
"""Deliveries beyond our own limit before the broker itself gives a message up: our code buries what it can, and the
broker would strike those that were only held when others killed their worker, or connections went."""
_UNLIMITED: Final = 1_000_000_000
"""Deliveries of a dead letter: looking at it counts as one, and RabbitMQ 4 has a limit of 20 unless told otherwise."""
_GIVE_BACK_TIMEOUT_S: Final = 2.0
_DEAD_BATCH: Final = 16
"""Dead letters moved in one go. A channel that closes with more than 32 commands to a quorum queue under way loses
some of them (`quorum_commands_soft_limit`), and every acknowledgement of a message got singly is one."""


class RabbitBroker(Broker):
    """RabbitMQ behind the broker interface.

    Args:
        url: `amqp://user:password@host:port/vhost` or `amqps://…`; pika's URL parameters (`?heartbeat=30`) work.
        topology: the queues' names.
        delivery_limit: see `shared.broker.open_broker`.
        queue_limit: messages in one queue before publishing is refused. Quorum queues keep to it loosely: what is
            under way when the limit is reached is still let in.

    Raises:
        BrokerError: no connection in ten seconds; at once where the user, the password or the virtual host is wrong,
            or a queue exists with other arguments.
        ValueError: the URL is malformed.
    """

    prefers_batches = True  # it syncs what it has at the moment, and wakes a thread for each step

    def __init__(
        self, url: str, topology: Topology | None = None, *, delivery_limit: int = 5, queue_limit: int = 1_000_000
    ) -> None:
        self.topology = topology or Topology()
        self._last_resort = delivery_limit + _LAST_RESORT_MARGIN
        self._queue_limit = queue_limit
        self._link = Link(url, self._declare)
        self._publisher = Publisher(self._link, self._limit_of)
        self._announcer = _Announcer(self._link, self.topology.events)
        self._lock = threading.Lock()
        self._dead_lock = threading.Lock()
        self._open: list[Consumer | ReplyQueue | Subscription] = []
        for part in (self._publisher, self._announcer):
            self._link.attach(part)  # the I/O thread has not started yet
        self._link.open(_CONNECT_TIMEOUT_S)

    def _limit_of(self, queue: str) -> int | None:
        return self._queue_limit if queue in self.topology.work_queues else None

    def _declare(self, channel: Channel, declared: Callable[[], None]) -> None:
        """Declares everything on the channel; runs in the I/O thread. The broker answers in order."""
        channel.exchange_declare(self.topology.events, ExchangeType.topic, durable=True)
        for queue in self.topology.work_queues:
            arguments = {
                "x-queue-type": "quorum",
                "x-delivery-limit": self._last_resort,
                "x-max-length": self._queue_limit,
                "x-overflow": "reject-publish",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": self.topology.dead,
                "x-dead-letter-strategy": "at-least-once",
            }
            channel.queue_declare(queue, durable=True, arguments=arguments)
        dead = {"x-queue-type": "quorum", "x-delivery-limit": _UNLIMITED}
        channel.queue_declare(self.topology.dead, durable=True, arguments=dead, callback=lambda _: declared())

    # -- publishing

    def publish_many(self, outgoing: Sequence[Outgoing], timeout_s: float = 30.0) -> None:
        self._check_open()
        result: Future[None] = Future()

        def on_end(error: BrokerError | None) -> None:
            if error is None:
                result.set_result(None)
            else:
                result.set_exception(error)

        batch = Batch(on_end, survives=True)
        for item in outgoing:
            properties = properties_of(stamped(item.message))
            batch.add(item.queue, properties, item.message.body, mandatory=not self._may_be_gone(item.queue))
        self._link.call(functools.partial(self._publisher.submit, batch))
        try:
            result.result(timeout_s)
        except TimeoutError:
            # Ending it keeps what was not sent yet from being sent, perhaps much later.
            self._link.call(functools.partial(batch.end, None))
            raise BrokerError(
                f"RabbitMQ at {self._link.address} did not confirm {len(outgoing)} messages in {timeout_s:g} s"
                f"{self._link.trouble}"
            ) from None

    def _may_be_gone(self, queue: str) -> bool:
        """Returns whether this is somebody's reply queue, who need not wait for the reply."""
        return queue.startswith((self.topology.reply_queue_prefix, "amq."))

    # -- consuming

    def consume(self, queues: Sequence[str], prefetch: int) -> Consumer:
        unknown = [queue for queue in queues if queue not in self.topology.queues]
        if unknown:
            raise ValueError(f"unknown queues {unknown}; expected some of {self.topology.queues}")
        self._check_open()
        consumer = RabbitConsumer(self._link, self._publisher, self.topology, queues, prefetch, self._forget)
        self._keep(consumer)
        self._link.call(functools.partial(self._link.attach, consumer))
        return consumer

    # -- events and replies

    def emit(self, topic: str, payload: Mapping[str, Any]) -> None:
        body = json.dumps(payload).encode()
        self._link.call(functools.partial(self._announcer.announce, topic, body))

    def subscribe(self, patterns: Sequence[str] = ("#",)) -> Subscription:
        self._check_open()
        subscription = RabbitSubscription(self._link, self.topology.events, patterns, self._forget)
        self._keep(subscription)
        subscription.open()
        return subscription

    def reply_queue(self) -> ReplyQueue:
        self._check_open()
        reply_queue = RabbitReplyQueue(self._link, self.topology, self._forget)
        self._keep(reply_queue)
        reply_queue.open()
        return reply_queue

    # -- looking in

    def depths(self, timeout_s: float = _ADMIN_TIMEOUT_S) -> dict[str, Depth]:
        self._check_open()
        with Session(self._link, timeout_s) as session:
            return {queue: Depth(_ready(session, queue)) for queue in self.topology.queues}

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        self._check_open()
        with self._dead_lock, Session(self._link, _ADMIN_TIMEOUT_S) as session:
            there = _ready(session, self.topology.dead)
            reader = _Reader(session, self.topology.dead)
            found = [letter for _, letter in self._each_dead(reader, min(limit, there))]
            _give_back(session, self.topology.dead, there)
            return found

    def retry_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        def back(letters: Sequence[DeadLetter]) -> None:
            self.publish_many([Outgoing(letter.origin, requeued_copy(letter.message)) for letter in letters])

        return self._take_dead(dead_ids, lambda letter: letter.origin in self.topology.work_queues, back)

    def drop_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        return self._take_dead(dead_ids, lambda _: True, lambda _: None)

    def _take_dead(
        self,
        dead_ids: Sequence[str] | None,
        fits: Callable[[DeadLetter], bool],
        handle: Callable[[Sequence[DeadLetter]], None],
    ) -> int:
        """Handles the dead letters that are wanted and fit, some at a time, and acknowledges them; counts them."""
        self._check_open()
        wanted = None if dead_ids is None else set(dead_ids)
        taken = 0
        with self._dead_lock, Session(self._link, _ADMIN_TIMEOUT_S) as session:
            tags: list[int] = []
            letters: list[DeadLetter] = []

            def finish() -> None:
                nonlocal taken
                handle(letters)
                for tag in tags:
                    session.tell(functools.partial(Channel.basic_ack, delivery_tag=tag))
                taken += len(tags)
                tags.clear()
                letters.clear()

            reader = _Reader(session, self.topology.dead)
            there = _ready(session, self.topology.dead)
            for tag, letter in self._each_dead(reader, there):
                if (wanted is None or letter.dead_id in wanted) and fits(letter):
                    tags.append(tag)
                    letters.append(letter)
                if len(tags) == _DEAD_BATCH:
                    finish()
            finish()
            _give_back(session, self.topology.dead, there - taken)
        return taken

    def _each_dead(self, reader: _Reader, limit: int) -> Iterator[tuple[int, DeadLetter]]:
        """Gets dead letters without acknowledging them."""
        for _ in range(limit):
            got = reader.get()
            if got is None:
                return
            tag, properties, body = got
            yield tag, dead_letter_of(properties, body, last_resort=self._last_resort)

    @property
    def reconnects(self) -> int:
        return self._link.reconnects

    def ping(self, timeout_s: float = 2.0) -> bool:
        try:
            with Session(self._link, timeout_s):
                return True
        except BrokerError:
            return False

    def close(self) -> None:
        with self._lock:
            open_ones = list(self._open)
        for one in open_ones:
            one.close()
        self._link.close()

    def _keep(self, one: Consumer | ReplyQueue | Subscription) -> None:
        with self._lock:
            self._open.append(one)

    def _forget(self, one: Consumer | ReplyQueue | Subscription) -> None:
        with self._lock:
            self._open = [other for other in self._open if other is not one]

    def _check_open(self) -> None:
        if self._link.closed:
            raise BrokerClosed("the broker was closed")


class _Announcer:
    """A part of the link that publishes events: unconfirmed, and not at all while there is no connection."""

    def __init__(self, link: Link, exchange: str) -> None:
        self._link = link
        self._exchange = exchange
        self._connected = False
        self._channel: Channel | None = None
        self._early: list[tuple[str, bytes]] = []

    def announce(self, topic: str, body: bytes) -> None:
        """Publishes in the I/O thread; on a new connection, as soon as the channel is there."""
        if self._channel is not None and self._channel.is_open:
            properties = BasicProperties(content_type="application/json", delivery_mode=DeliveryMode.Transient.value)
            self._channel.basic_publish(self._exchange, topic, body, properties)
        elif self._connected:
            self._early.append((topic, body))

    def up(self, connection: Connection) -> None:
        """Opens the channel; see `Part`."""

        def opened(channel: Channel) -> None:
            self._channel = channel
            channel.add_on_close_callback(closed)
            early, self._early = self._early, []
            for topic, body in early:
                self.announce(topic, body)

        def closed(channel: Channel, error: Exception) -> None:
            if isinstance(error, ChannelClosedByBroker) and channel.connection.is_open:
                self._link.restart(f"the channel for events was closed: {error}")

        self._connected = True
        connection.channel(on_open_callback=opened)

    def down(self, error: Exception) -> None:  # noqa: ARG002 - events are lost, whatever the cause
        """Forgets the channel; see `Part`."""
        self._connected = False
        self._channel = None
        self._early.clear()


def _ready(session: Session, queue: str) -> int:
    """Returns how many messages wait in the queue."""

    def ask(channel: Channel, answer: Callable[[int], None]) -> None:
        channel.queue_declare(queue, passive=True, callback=lambda frame: answer(int(frame.method.message_count or 0)))

    return session.step(ask)


def _give_back(session: Session, queue: str, expected: int) -> None:
    """Returns everything unacknowledged to the front of the queue, in its order, and waits until it is there again.

    The broker does not answer a `basic.nack`; whoever looked at the dead letters and now wants to move them must not
    find the queue empty.
    """
    session.tell(lambda channel: channel.basic_nack(0, multiple=True, requeue=True))
    deadline = time.monotonic() + _GIVE_BACK_TIMEOUT_S
    while _ready(session, queue) < expected and time.monotonic() < deadline:
        time.sleep(0.005)


_Got = tuple[int, BasicProperties, bytes]


class _Reader:
    """Takes messages one at a time without acknowledging them."""

    def __init__(self, session: Session, queue: str) -> None:
        self._session = session
        self._queue = queue
        self._answer: Callable[[_Got | None], None] | None = None
        session.tell(lambda channel: channel.add_callback(self._on_empty, [Basic.GetEmpty], one_shot=False))

    def get(self) -> _Got | None:
        """Returns the next message's tag, properties and body; None where there is none."""

        def ask(channel: Channel, answer: Callable[[_Got | None], None]) -> None:
            self._answer = answer
            channel.basic_get(self._queue, self._on_message)

        return self._session.step(ask)

    def _on_message(self, _: Channel, method: Basic.GetOk, properties: BasicProperties, body: bytes) -> None:
        if self._answer is not None:
            self._answer((int(method.delivery_tag or 0), properties, body))

    def _on_empty(self, _: object) -> None:
        if self._answer is not None:
            self._answer(None)

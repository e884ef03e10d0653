"""The broker for real use: RabbitMQ 3.10 or newer, through pika.

Work queues are quorum queues: replicated, counting deliveries, with an explicit limit on them and on the number of
messages. The neighbouring files hold the parts: `connection` owns the I/O thread, `transport` moves bytes, `publisher`
publishes with confirms, `consumer` takes work, `subscriptions` are reply queues and events, `rpc` makes requests that
wait for an answer, `dead_letters` looks into the dead-letter queue, `codec` turns messages into AMQP properties and
back, `headers` salvages headers that pika cannot decode, and `addresses` checks where a reply may be sent.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from pika.channel import Channel

from shared.broker.base import (
    PREFETCH_BYTES,
    Access,
    Broker,
    BrokerClosed,
    BrokerError,
    Consumer,
    DeadLetter,
    Depth,
    Outgoing,
    ReplyQueue,
    SentBack,
    Subscription,
    Trouble,
    Unconfirmed,
    requeued_copy,
    stamped,
)
from shared.broker.rabbitmq.codec import properties_of
from shared.broker.rabbitmq.connection import Connection
from shared.broker.rabbitmq.consumer import RabbitConsumer
from shared.broker.rabbitmq.dead_letters import DeadLetterQueue, count_ready
from shared.broker.rabbitmq.definitions import Definitions
from shared.broker.rabbitmq.publisher import Batch, EventPublisher, Publisher
from shared.broker.rabbitmq.rpc import RpcChannel
from shared.broker.rabbitmq.subscriptions import RabbitReplyQueue, RabbitSubscription
from shared.errors import GenderlineError
from shared.topology import Topology

_CONNECT_TIMEOUT_S: Final = 10.0
_ADMIN_TIMEOUT_S: Final = 10.0


class RabbitBroker(Broker):
    """RabbitMQ behind the broker interface.

    Args:
        url: `amqp://user:password@host:port,host:port/vhost` or `amqps://…`; pika's URL parameters (`?heartbeat=30`)
            work.
        topology: the queues' names.
        delivery_limit: see `shared.broker.open_broker`.
        queue_limit: messages in one queue before publishing is refused. Quorum queues keep to it loosely: what is
            under way when the limit is reached is still let in.
        access: TLS, login and who declares the queues.

    Raises:
        BrokerError: no connection in ten seconds; at once where the user, the password or the virtual host is wrong,
            or a queue exists with other arguments.
        ValueError: the URL is malformed.
    """

    def __init__(
        self,
        url: str,
        topology: Topology | None = None,
        *,
        delivery_limit: int = 20,
        queue_limit: int = 1_000_000,
        access: Access | None = None,
    ) -> None:
        self.topology = topology or Topology()
        self._access = access or Access()
        self._definitions = Definitions(self.topology, delivery_limit=delivery_limit, queue_limit=queue_limit)
        self._queue_limit = queue_limit
        self._connection = Connection(url, self._access, self.topology.requests, self._declare)
        self._publisher = Publisher(self._connection, self._limit_of)
        self._event_publisher = EventPublisher(self._connection, self.topology.events)
        self._lock = threading.Lock()
        self._open: list[Consumer | ReplyQueue | Subscription] = []
        self._dead_letters = DeadLetterQueue(self._connection, self.topology, self._definitions.last_resort)
        for component in (self._publisher, self._event_publisher):
            self._connection.attach(component)  # the I/O thread has not started yet
        self._connection.open(_CONNECT_TIMEOUT_S)

    def _limit_of(self, queue: str) -> int | None:
        return self._queue_limit if queue in self.topology.work_queues else None

    def _declare(self, channel: Channel, declared: Callable[[], None]) -> None:
        self._definitions.declare(channel, declared, passive=self._access.declare == "passive")

    # -- publishing

    def publish_many(self, outgoing: Sequence[Outgoing], timeout_s: float = 30.0) -> None:
        self._check_open()
        result: Future[None] = Future()

        def on_end(error: GenderlineError | None) -> None:
            if error is None:
                result.set_result(None)
            else:
                result.set_exception(error)

        batch = Batch(on_end, survives=True)
        for item in outgoing:
            properties = properties_of(stamped(item.message))
            batch.add(
                item.queue,
                properties,
                item.message.body,
                mandatory=not self._may_be_gone(item.queue),
                exchange=self.topology.requests if item.queue in self.topology.request_queues else "",
            )
        self._connection.call(functools.partial(self._publisher.submit, batch))
        try:
            result.result(timeout_s)
        except TimeoutError:
            # Ending it keeps what was not sent yet from being sent, perhaps much later.
            self._connection.call(functools.partial(batch.end, None))
            raise Unconfirmed(
                f"RabbitMQ at {self._connection.address} did not confirm {len(outgoing)} messages in {timeout_s:g} s"
                f"{self._connection.status_suffix}; they may yet be accepted"
            ) from None

    def _may_be_gone(self, queue: str) -> bool:
        """Returns whether this is somebody's reply queue, who need not wait for the reply."""
        return queue.startswith((self.topology.reply_queue_prefix, "amq."))

    # -- consuming

    def consume(self, queues: Sequence[str], prefetch: int, prefetch_bytes: int = PREFETCH_BYTES) -> Consumer:
        unknown = [queue for queue in queues if queue not in self.topology.queues]
        if unknown:
            raise ValueError(f"unknown queues {unknown}; expected some of {self.topology.queues}")
        self._check_open()
        consumer = RabbitConsumer(
            self._connection,
            self._publisher,
            self.topology,
            queues,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            on_close=self._forget,
        )
        self._keep(consumer)
        self._connection.call(functools.partial(self._connection.attach, consumer))
        return consumer

    # -- events and replies

    def emit(self, topic: str, payload: Mapping[str, Any]) -> None:
        body = json.dumps(payload).encode()
        self._connection.call(functools.partial(self._event_publisher.publish, topic, body))

    def subscribe(self, patterns: Sequence[str] = ("#",)) -> Subscription:
        self._check_open()
        subscription = RabbitSubscription(self._connection, self.topology.events, patterns, self._forget)
        self._keep(subscription)
        subscription.open()
        return subscription

    def reply_queue(self) -> ReplyQueue:
        self._check_open()
        reply_queue = RabbitReplyQueue(self._connection, self.topology, self._forget)
        self._keep(reply_queue)
        reply_queue.open()
        return reply_queue

    # -- looking in

    def depths(self, timeout_s: float = _ADMIN_TIMEOUT_S) -> dict[str, Depth]:
        self._check_open()
        with RpcChannel(self._connection, timeout_s) as rpc:
            return {queue: Depth(count_ready(rpc, queue)) for queue in self.topology.queues}

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        self._check_open()
        return self._dead_letters.list(limit)

    def retry_dead(self, dead_ids: Sequence[str] | None = None) -> list[SentBack]:
        return self._send_back(_named(dead_ids))

    def retry_messages(self, wanted: Callable[[str], bool]) -> list[SentBack]:
        return self._send_back(lambda letter: wanted(letter.message.message_id))

    def _send_back(self, wanted: Callable[[DeadLetter], bool]) -> list[SentBack]:
        sent: list[SentBack] = []

        def publish_again(letters: Sequence[DeadLetter]) -> None:
            now = time.time()
            self.publish_many([Outgoing(letter.origin, requeued_copy(letter.message, now)) for letter in letters])
            sent.extend(SentBack(letter.origin, letter.message.message_id, now) for letter in letters)

        self._check_open()
        self._dead_letters.take(
            lambda letter: wanted(letter) and letter.origin in self.topology.work_queues, publish_again
        )
        return sent

    def drop_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        self._check_open()
        return self._dead_letters.take(_named(dead_ids), lambda _: None)

    @property
    def trouble(self) -> Trouble | None:
        return self._connection.trouble or self._publisher.trouble

    @property
    def reconnects(self) -> int:
        return self._connection.reconnects

    def ping(self, timeout_s: float = 2.0) -> bool:
        try:
            with RpcChannel(self._connection, timeout_s):
                return self.trouble is None
        except BrokerError:
            return False

    def close(self) -> None:
        with self._lock:
            open_ones = list(self._open)
        for one in open_ones:
            one.close()
        self._connection.close()

    def _keep(self, one: Consumer | ReplyQueue | Subscription) -> None:
        with self._lock:
            self._open.append(one)

    def _forget(self, one: Consumer | ReplyQueue | Subscription) -> None:
        with self._lock:
            self._open = [other for other in self._open if other is not one]

    def _check_open(self) -> None:
        if self._connection.closed:
            raise BrokerClosed("the broker was closed")


def _named(dead_ids: Sequence[str] | None) -> Callable[[DeadLetter], bool]:
    """Returns the test of whether a letter's id is among these; None names all."""
    wanted = None if dead_ids is None else frozenset(dead_ids)
    return lambda letter: wanted is None or letter.dead_id in wanted

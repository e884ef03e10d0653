"""Queues that belong to one reader: reply queues, and the queues behind subscriptions to events."""

from __future__ import annotations

import abc
import functools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from pika import BasicProperties
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic

from shared.broker.base import (
    AccessRefused,
    BrokerClosed,
    BrokerError,
    Event,
    Message,
    ReplyQueue,
    Subscription,
    read_event,
)
from shared.broker.rabbitmq.codec import message_of
from shared.broker.rabbitmq.connection import Connection
from shared.broker.rabbitmq.transport import BatchingConnection
from shared.broker.reply_batch import unpack
from shared.topology import Topology

T = TypeVar("T")
log = logging.getLogger(__name__)

_EXPIRES_MS: Final = 600_000
_PREFETCH: Final = 1000
_EVENTS_KEPT: Final = 10_000
"""Events that wait for a slow reader; beyond, the oldest are dropped."""
_OPEN_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0
_REOPEN_PAUSE_S: Final = 0.5


class _PrivateQueue(abc.ABC, Generic[T]):
    """A component with a queue of its own, whose messages wait in memory for `receive`.

    Raises:
        BrokerError: it could not be set up in time.
    """

    def __init__(self, connection: Connection, on_close: Callable[[Any], None]) -> None:
        self._connection = connection
        self._on_close = on_close
        self._channel: Channel | None = None
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._ready = False
        self._refusal: AccessRefused | None = None
        self._closed = False

    def open(self) -> None:
        """Sets it up and waits until it is there."""
        self._connection.call(functools.partial(self._connection.attach, self))
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed or self._refusal, _OPEN_TIMEOUT_S)
            if self._ready:
                return
        was_closed, refusal = self._closed, self._refusal
        self.close()
        if refusal is not None:
            raise refusal
        if was_closed:
            raise BrokerClosed("the broker was closed")
        connection = self._connection
        raise BrokerError(
            f"RabbitMQ at {connection.address} made no queue in {_OPEN_TIMEOUT_S:g} s{connection.status_suffix}"
        )

    def _take(self, timeout_s: float) -> list[T]:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._items and not self._closed and (remaining := deadline - time.monotonic()) > 0:
                self._changed.wait(remaining)
            taken = list(self._items)
            self._items.clear()
        return taken

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if not self._connection.closed:
            gone = threading.Event()
            self._connection.call(functools.partial(self._shut, gone))
            gone.wait(_CLOSE_TIMEOUT_S)
        self._on_close(self)

    # -- in the I/O thread

    def on_connected(self, transport: BatchingConnection) -> None:
        """Opens the channel; see `Component`."""
        transport.channel(on_open_callback=self._on_channel)

    def on_disconnected(self, error: Exception) -> None:
        """Forgets the channel; see `Component`."""
        self._reset()
        with self._changed:
            self._closed = self._closed or isinstance(error, BrokerClosed)
            self._changed.notify_all()

    def _reset(self) -> None:
        self._channel = None

    def _on_channel(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(self._on_cancelled)
        self._declare(channel)

    def _on_cancelled(self, _: object) -> None:
        if not self._closed:  # closing deletes the queue, of which the broker may tell us in between
            self._connection.restart("the queue of a reply queue or subscription was deleted")

    def _on_channel_closed(self, channel: Channel, error: Exception) -> None:
        if not isinstance(error, ChannelClosedByBroker) or not channel.connection.is_open:
            return  # we closed it, or the whole connection goes and `on_disconnected` follows
        if error.reply_code == 403:
            with self._changed:
                self._refusal = self._connection.refused(error, "configure")
                self._changed.notify_all()
            return
        if error.reply_code == 404:
            self._connection.restart(f"the channel of a reply queue or subscription was closed: {error}")
            return
        # Most likely the acknowledgement time-out: replies that nobody took for half an hour.
        log.warning("RabbitMQ closed the channel of a reply queue or subscription: %s", error)
        self._reset()

        def reopen() -> None:
            if channel.connection.is_open and not self._closed:
                self.on_connected(channel.connection)

        self._connection.call_later(_REOPEN_PAUSE_S, reopen)

    def _consume(self, channel: Channel, queue: str, *, auto_ack: bool) -> None:
        def consuming(_: object) -> None:
            with self._changed:
                if self._ready:
                    self._on_set_up_again()
                self._ready = True
                self._changed.notify_all()

        channel.basic_consume(queue, self._on_message, auto_ack=auto_ack, callback=consuming)

    def _arrived(self, item: T) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def _shut(self, gone: threading.Event) -> None:
        self._connection.detach(self)
        channel = self._channel
        if channel is None or not channel.is_open:
            gone.set()
            return
        channel.add_on_close_callback(lambda *_: gone.set())
        self._discard(channel)
        channel.close()

    @abc.abstractmethod
    def _declare(self, channel: Channel) -> None:
        """Declares the queue and consumes it."""

    @abc.abstractmethod
    def _on_message(self, _: Channel, method: Basic.Deliver, __: BasicProperties, body: bytes) -> None:
        """Keeps what arrived."""

    def _discard(self, channel: Channel) -> None:
        """Deletes the queue where that does not happen by itself."""

    def _on_set_up_again(self) -> None:
        """Takes note that what was published since the last connection may be lost."""


class RabbitReplyQueue(_PrivateQueue[tuple[int, str, list[Message]]], ReplyQueue):
    """A durable queue that goes ten minutes after its last reader; see `ReplyQueue` for the contract.

    Replies are acknowledged when they are taken, so the prefetch bounds memory, and those that wait here when the
    connection is lost come again. Only acknowledgements can be lost with it, for at most as many messages as the
    prefetch: the ids of that many tell the duplicates. A message is a reply, or a batch of them.
    """

    def __init__(
        self, connection: Connection, topology: Topology, on_close: Callable[[RabbitReplyQueue], None]
    ) -> None:
        super().__init__(connection, on_close)
        self.name = f"{topology.batch_reply_queue_prefix}{uuid.uuid4().hex}"
        self._taken_ids: deque[str] = deque(maxlen=_PREFETCH)
        self._generation = 0

    def receive(self, timeout_s: float) -> list[Message]:
        with self._changed:
            generation = self._generation
        taken = self._take(timeout_s)
        if not taken:
            return []
        known = set(self._taken_ids)
        fresh = [(message_id, messages) for _, message_id, messages in taken if message_id not in known]
        self._taken_ids.extend(message_id for message_id, _ in fresh)
        self._connection.call(functools.partial(self._acknowledge, generation, taken[-1][0]))
        return [message for _, messages in fresh for message in messages]

    def _reset(self) -> None:
        super()._reset()
        with self._changed:
            self._generation += 1
            self._items.clear()

    def _declare(self, channel: Channel) -> None:
        channel.basic_qos(prefetch_count=_PREFETCH)
        channel.queue_declare(
            self.name,
            durable=True,
            arguments={"x-expires": _EXPIRES_MS},
            callback=lambda _: self._consume(channel, self.name, auto_ack=False),
        )

    def _on_message(self, _: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        message = message_of(properties, body)
        try:
            messages = unpack(message)
        except ValueError as error:
            log.warning("ignored a message in a reply queue: %s", error)
            messages = []
        self._arrived((int(method.delivery_tag or 0), message.message_id, messages))

    def _acknowledge(self, generation: int, tag: int) -> None:
        if generation == self._generation and self._channel is not None and self._channel.is_open:
            self._channel.basic_ack(tag, multiple=True)

    def _discard(self, channel: Channel) -> None:
        channel.queue_delete(self.name)


class RabbitSubscription(_PrivateQueue[Event], Subscription):
    """An exclusive queue bound to the events' exchange, made anew on each connection; see `Subscription`."""

    def __init__(
        self,
        connection: Connection,
        exchange: str,
        patterns: Sequence[str],
        on_close: Callable[[RabbitSubscription], None],
    ) -> None:
        super().__init__(connection, on_close)
        self._exchange = exchange
        self._patterns = tuple(patterns)
        self._items = deque(maxlen=_EVENTS_KEPT)

    def receive(self, timeout_s: float) -> list[Event]:
        return self._take(timeout_s)

    def _declare(self, channel: Channel) -> None:
        def declared(frame: Any) -> None:
            queue: str = frame.method.queue
            # Answered in order, so the last one's answer stands for all.
            for pattern in self._patterns[:-1]:
                channel.queue_bind(queue, self._exchange, pattern)
            consume: Callable[[object], None] = lambda _: self._consume(channel, queue, auto_ack=True)  # noqa: E731
            channel.queue_bind(queue, self._exchange, self._patterns[-1], callback=consume)

        channel.queue_declare("", exclusive=True, auto_delete=True, callback=declared)

    def _on_message(self, _: Channel, method: Basic.Deliver, __: BasicProperties, body: bytes) -> None:
        if event := read_event(str(method.routing_key), body):
            self._arrived(event)

    def _on_set_up_again(self) -> None:
        self.gaps += 1

"""Publishing with confirms: many messages under way at once, each accounted for.

A message that the broker itself cannot stand (too large, for one) makes it close the channel or the whole connection,
without saying which message it was. So whatever was under way at such a moment is sent again one at a time: the one
that is alone when it happens again is the culprit and fails; the others pass.
"""

from __future__ import annotations

import functools
import logging
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pika import BasicProperties
from pika.channel import Channel
from pika.delivery_mode import DeliveryMode
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker
from pika.spec import Basic

from shared.broker.base import BrokerClosed, BrokerError, BrokerFull, MessageTooLarge, Trouble
from shared.broker.rabbitmq.addresses import is_address
from shared.broker.rabbitmq.connection import Connection, ConnectionLost
from shared.broker.rabbitmq.transport import BatchingConnection
from shared.errors import GenderlineError

log = logging.getLogger(__name__)

_WINDOW: Final = 1000
"""Messages under way unconfirmed."""
_WINDOW_BYTES: Final = 16 * 2**20
"""The same in bytes, but always one message."""
_NEARLY_FULL: Final = 0.9
"""Of its limit: quorum queues refuse a little before, and their count comes a little late."""
_ANSWER_TIMEOUT_S: Final = 3.0
_ELECTION_S: Final = 8.0
"""In which a replica becomes the leader of a queue whose leader has died. What is refused meanwhile is sent again."""
_AGAIN_S: Final = 0.5
_TROUBLE_S: Final = 60.0
"""How long a refusal counts as what is so now: where nobody publishes, nothing would tell that it is over."""


class Batch:
    """Messages published together: it ends when all are confirmed, or with the first error.

    Args:
        on_end: called once, in the I/O thread, with the error or None.
        survives: whether messages not yet confirmed are published again on the next connection.
    """

    __slots__ = ("ended", "on_end", "publications", "survives", "unconfirmed")

    def __init__(self, on_end: Callable[[GenderlineError | None], None], *, survives: bool) -> None:
        self.on_end = on_end
        self.survives = survives
        self.publications: list[Publication] = []
        self.unconfirmed = 0
        self.ended = False

    def add(
        self,
        queue: str,
        properties: BasicProperties,
        body: bytes,
        *,
        mandatory: bool,
        droppable: bool = False,
        exchange: str = "",
    ) -> None:
        """Adds a message.

        Args:
            queue: where to.
            properties: with its headers.
            body: its bytes.
            mandatory: makes it an error that the queue does not exist.
            droppable: makes it none that the message cannot be sent: the others are.
            exchange: that it goes through, with the queue's name as routing key.
        """
        self.publications.append(Publication(self, queue, properties, body, mandatory, droppable, exchange))

    def end(self, error: GenderlineError | None) -> None:
        """Ends the batch unless it already has."""
        if not self.ended:
            self.ended = True
            self.on_end(error)


@dataclass(slots=True, eq=False)
class Publication:
    """One message on its way.

    Attributes:
        suspect: it was under way when the broker closed on us.
        refused_at: when the broker refused it first, on the monotonic clock; 0 where it did not.
    """

    batch: Batch
    queue: str
    properties: BasicProperties
    body: bytes
    mandatory: bool
    droppable: bool
    exchange: str
    suspect: bool = False
    refused_at: float = 0.0


class Publisher:
    """The component that publishes with confirms; all methods are for the I/O thread.

    Args:
        connection: the connection.
        limit_of: a work queue's limit in messages, None of any other.
    """

    def __init__(self, connection: Connection, limit_of: Callable[[str], int | None]) -> None:
        self._connection = connection
        self._limit_of = limit_of
        self._connected = False
        self._channel: Channel | None = None
        self._last_tag = 0
        self._waiting: deque[Publication] = deque()
        self._under_way: OrderedDict[int, Publication] = OrderedDict()
        self._under_way_bytes = 0
        self._closed = False
        self._refused: dict[str, list[Publication]] = {}
        self._again: list[Publication] = []
        self._renews = False
        self._newest: Channel | None = None
        self._trouble: Trouble | None = None
        self._trouble_at = 0.0

    @property
    def trouble(self) -> Trouble | None:
        """Set while a work queue takes no messages for lack of a majority; for any thread."""
        return self._trouble if time.monotonic() - self._trouble_at < _TROUBLE_S else None

    def submit(self, batch: Batch) -> None:
        """Publishes after all that was submitted before; an empty batch ends at once."""
        if not batch.publications:
            batch.end(None)
        elif self._closed:
            batch.end(BrokerClosed("the broker was closed"))
        elif not self._connected and not batch.survives:
            batch.end(ConnectionLost("not connected"))
        else:
            batch.unconfirmed = len(batch.publications)
            self._waiting.extend(batch.publications)
            batch.publications = []
            self._pump()

    def on_connected(self, transport: BatchingConnection) -> None:
        """Opens the channel; see `Component`."""
        self._connected = True
        transport.channel(on_open_callback=self._on_channel)

    def on_disconnected(self, error: Exception) -> None:
        """Keeps what survives for the next connection; see `Component`."""
        self._connected = False
        self._channel = None
        self._closed = isinstance(error, BrokerClosed)
        # 5xx says that a frame of ours was at fault; 320 and lost streams say nothing about what was under way.
        self._return_to_waiting(
            error if isinstance(error, ConnectionClosedByBroker) and error.reply_code >= 500 else None
        )
        for refused in (*self._refused.values(), self._again):
            self._waiting.extendleft(reversed(refused))
        self._refused.clear()
        self._again.clear()
        kept = deque[Publication]()
        for publication in self._waiting:
            batch = publication.batch
            if self._closed:
                batch.end(BrokerClosed("the broker was closed"))
            elif not batch.survives:
                batch.end(ConnectionLost(f"the connection was lost before the broker confirmed: {error}"))
            if not batch.ended:
                kept.append(publication)
        self._waiting = kept

    def _on_channel(self, channel: Channel) -> None:
        self._newest = channel

        def ready(_: object) -> None:
            if channel is not self._newest:
                return
            self._channel = channel
            self._last_tag = 0
            self._pump()
            self._connection.ask_for_alarms()

        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(functools.partial(self._on_confirm, channel), callback=ready)

    def _on_channel_closed(self, channel: Channel, error: Exception) -> None:
        if not isinstance(error, ChannelClosedByBroker) or not channel.connection.is_open:
            return  # the whole connection goes, or we closed it: `on_disconnected` follows
        is_newest = channel is self._newest
        if not is_newest:
            return  # another has taken its place
        self._channel = None
        if self._under_way:
            self._return_to_waiting(error)
            channel.connection.channel(on_open_callback=self._on_channel)
        else:
            self._connection.restart(f"the publishing channel was closed: {error}")

    def _return_to_waiting(self, fault: ChannelClosedByBroker | ConnectionClosedByBroker | None) -> None:
        """Puts what was under way back in front; with a `fault`, one of it is to blame."""
        under_way = list(self._under_way.values())
        self._under_way.clear()
        self._under_way_bytes = 0
        if fault is not None and len(under_way) == 1:
            culprit = under_way.pop()
            if isinstance(fault, ChannelClosedByBroker) and fault.reply_code == 403:
                culprit.batch.end(self._connection.refused(fault, "write"))
            else:
                kind = MessageTooLarge if "larger than" in fault.reply_text else BrokerError
                found = f"a message of {len(culprit.body)} bytes for {culprit.queue!r}"
                self._give_up(culprit, kind(f"RabbitMQ refused {found}: {fault.reply_text}"))
        for publication in under_way:
            publication.suspect = publication.suspect or fault is not None
        self._waiting.extendleft(reversed(under_way))

    def _pump(self) -> None:
        """Sends what waits, as far as the window goes."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        while self._waiting and len(self._under_way) < _WINDOW and self._under_way_bytes < _WINDOW_BYTES:
            publication = self._waiting[0]
            batch = publication.batch
            if batch.ended:
                self._waiting.popleft()
                continue
            if self._under_way and (publication.suspect or next(iter(self._under_way.values())).suspect):
                return
            self._waiting.popleft()
            if not is_address(publication.queue):
                self._give_up(publication, BrokerError(f"{publication.queue!r} is no address that RabbitMQ gave out"))
                continue
            try:
                channel.connection.publish(
                    channel.channel_number,
                    publication.exchange,
                    publication.queue,
                    publication.properties,
                    publication.body,
                    mandatory=publication.mandatory,
                )
            except (AMQPError, ValueError, TypeError, struct.error) as error:
                # pika encodes before it sends, so nothing of it has left.
                self._give_up(
                    publication, BrokerError(f"a message for {publication.queue!r} cannot be encoded: {error!r}")
                )
                continue
            self._last_tag += 1
            self._under_way[self._last_tag] = publication
            self._under_way_bytes += len(publication.body)

    def _on_confirm(self, channel: Channel, frame: Any) -> None:
        if channel is not self._channel:
            return  # closed meanwhile: what it carried is published again
        method: Basic.Ack | Basic.Nack = frame.method
        refused = isinstance(method, Basic.Nack)
        tag = int(method.delivery_tag or 0)
        if method.multiple:
            while self._under_way and next(iter(self._under_way)) <= tag:
                self._confirmed(self._under_way.popitem(last=False)[1], refused)
        elif tag in self._under_way:
            self._confirmed(self._under_way.pop(tag), refused)
        self._pump()

    def _confirmed(self, publication: Publication, refused: bool) -> None:
        self._under_way_bytes -= len(publication.body)
        if not refused:
            if self._trouble is not None and self._limit_of(publication.queue) is not None:
                self._trouble = None
            self._done(publication.batch)
            return
        self._find_out_why(publication)

    def _find_out_why(self, publication: Publication) -> None:
        """Asks why a publication was refused: a queue refuses when it is full, and while it has no leader."""
        queue, transport = publication.queue, self._connection.transport
        if publication.droppable or transport is None:
            self._give_up(publication, BrokerError(f"RabbitMQ could not store a message for {queue!r}"))
            return
        if queue in self._refused:  # which is being asked
            self._refused[queue].append(publication)
            return
        self._refused[queue] = [publication]
        asked: list[Channel] = []
        answered = False

        def answer(ready: int | None) -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            for refused in self._refused.pop(queue, []):
                self._judge(refused, ready)
            if asked and asked[0].is_open:
                asked[0].close()

        def ask(channel: Channel) -> None:
            asked.append(channel)
            channel.add_on_close_callback(lambda *_: answer(None))
            channel.queue_declare(
                queue, passive=True, callback=lambda frame: answer(int(frame.method.message_count or 0))
            )

        transport.channel(on_open_callback=ask)
        self._connection.call_later(_ANSWER_TIMEOUT_S, lambda: answer(None))

    def _judge(self, publication: Publication, ready: int | None) -> None:
        """Decides what becomes of a refused publication whose queue has `ready` messages, as far as that is known."""
        queue, now = publication.queue, time.monotonic()
        limit = self._limit_of(queue)
        publication.refused_at = publication.refused_at or now
        if limit is not None and ready is not None and ready >= limit * _NEARLY_FULL:
            self._give_up(publication, BrokerFull(f"queue {queue} is full; its limit is {limit} messages"))
        elif self.trouble is None and now - publication.refused_at < _ELECTION_S:
            self._again.append(publication)
            self._renew_later()
        elif limit is None:
            self._give_up(publication, BrokerError(f"RabbitMQ could not store a message for {queue!r}"))
        else:
            error = BrokerError(f"queue {queue} takes no messages: most of its replicas are away (no majority)")
            if self.trouble is None:
                log.warning("%s", error)
            self._trouble, self._trouble_at = Trouble("no_majority", str(error)), now
            self._give_up(publication, error)
            self._renew_later()

    def _renew_later(self) -> None:
        if not self._renews:
            self._renews = True
            self._connection.call_later(_AGAIN_S, self._renew)

    def _renew(self) -> None:
        """Opens a new channel, and publishes there what was refused.

        RabbitMQ's end of a channel keeps to the leader that it found when it first published to a queue. Where that was
        just dying, it refuses everything for as long as the channel lives.
        """
        self._renews = False
        refused, self._again = self._again, []
        old, transport = self._channel, self._connection.transport
        if old is None or transport is None or not transport.is_open:
            self._waiting.extendleft(reversed(refused))
            return  # a new channel is under way
        self._channel = None
        self._return_to_waiting(None)
        self._waiting.extendleft(reversed(refused))
        if old.is_open:
            old.close()
        transport.channel(on_open_callback=self._on_channel)

    def _done(self, batch: Batch) -> None:
        batch.unconfirmed -= 1
        if batch.unconfirmed == 0:
            batch.end(None)

    def _give_up(self, publication: Publication, error: GenderlineError) -> None:
        """Fails the batch of a message that cannot be sent, or drops that message alone."""
        if publication.droppable:
            log.warning("dropped a reply: %s", error)
            self._done(publication.batch)
        else:
            publication.batch.end(error)

    def _on_return(self, _: Channel, method: Basic.Return, properties: BasicProperties, __: bytes) -> None:
        # Comes just before the confirm, and without its tag.
        for publication in self._under_way.values():
            if publication.queue == method.routing_key and publication.properties.message_id == properties.message_id:
                publication.batch.end(BrokerError(f"queue {publication.queue!r} does not exist"))
                return


class EventPublisher:
    """The component that publishes events: unconfirmed, and not at all while there is no connection."""

    def __init__(self, connection: Connection, exchange: str) -> None:
        self._connection = connection
        self._exchange = exchange
        self._connected = False
        self._channel: Channel | None = None
        self._early: list[tuple[str, bytes]] = []

    def publish(self, topic: str, body: bytes) -> None:
        """Publishes in the I/O thread; on a new connection, as soon as the channel is there."""
        if self._channel is not None and self._channel.is_open:
            properties = BasicProperties(content_type="application/json", delivery_mode=DeliveryMode.Transient.value)
            self._channel.basic_publish(self._exchange, topic, body, properties)
        elif self._connected:
            self._early.append((topic, body))

    def on_connected(self, transport: BatchingConnection) -> None:
        """Opens the channel; see `Component`."""

        def opened(channel: Channel) -> None:
            self._channel = channel
            channel.add_on_close_callback(closed)
            early, self._early = self._early, []
            for topic, body in early:
                self.publish(topic, body)

        def closed(channel: Channel, error: Exception) -> None:
            if not isinstance(error, ChannelClosedByBroker) or not channel.connection.is_open:
                return
            if error.reply_code == 403:
                self._connection.forbid(self._connection.refused(error, "write"))
            else:
                self._connection.restart(f"the channel for events was closed: {error}")

        self._connected = True
        transport.channel(on_open_callback=opened)

    def on_disconnected(self, error: Exception) -> None:  # noqa: ARG002 - events are lost, whatever the cause
        """Forgets the channel; see `Component`."""
        self._connected = False
        self._channel = None
        self._early.clear()

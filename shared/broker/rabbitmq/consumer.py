"""Taking work from RabbitMQ and settling it.

Each queue of a consumer has a channel of its own, so that its prefetch counts alone and its failure is its own. A
delivery's token names the channel's *epoch*: tags of a channel that is gone mean other messages on the next one, so
whatever carries an older epoch is ignored.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from pika import BasicProperties
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic

from shared.broker.base import BrokerClosed, BrokerError, Consumer, Delivery, Outgoing, stamped
from shared.broker.rabbitmq.codec import delivery_count_of, fitting, message_of, properties_of
from shared.broker.rabbitmq.connection import ConnectionLost, Link
from shared.broker.rabbitmq.publisher import Batch, Publisher
from shared.broker.rabbitmq.transport import Connection
from shared.broker.reply_batch import bundled
from shared.errors import short_repr
from shared.topology import Topology

log = logging.getLogger(__name__)

_REOPEN_PAUSE_S: Final = 0.5
_CLOSE_TIMEOUT_S: Final = 5.0
_PULL_PAUSE_S: Final = 0.2
"""Between two looks into empty queues, for consumers without prefetch."""


@dataclass(frozen=True, slots=True)
class _Token:
    feed: _Feed
    epoch: int
    tag: int


class _Feed:
    """One queue's channel. All of it belongs to the I/O thread, except `ready`, which the consumer's lock guards.

    Attributes:
        epoch: grows with each channel.
        ready: delivered and not yet taken.
        unacked: every tag that the broker waits for, in order, and whether its work is settled.
        busy: tags whose settling, retrying or deferring is under way.
        unanswered: how often the broker was asked whether it has all acknowledgements, without an answer so far.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.channel: Channel | None = None
        self.epoch = 0
        self.ready: deque[tuple[int, int, BasicProperties, bytes]] = deque()
        self.unacked: OrderedDict[int, bool] = OrderedDict()
        self.busy: set[int] = set()
        self.unanswered = 0

    def is_live(self, token: _Token) -> bool:
        """Returns whether the delivery is still ours to decide on."""
        return token.epoch == self.epoch and token.tag in self.unacked and token.tag not in self.busy

    def settled(self, token: _Token) -> bool:
        """Notes that the delivery can be acknowledged; returns False where it was given back meanwhile."""
        if token.epoch != self.epoch or token.tag not in self.unacked:
            return False
        self.unacked[token.tag] = True
        return True

    def released(self, token: _Token) -> None:
        """Notes that settling failed: the delivery is held as before."""
        if token.epoch == self.epoch:
            self.busy.discard(token.tag)

    def acknowledge(self) -> None:
        """Acknowledges all that is settled: the oldest with one frame, and each that has an unsettled one before it."""
        if self.channel is None or not self.channel.is_open:
            return
        oldest = list(itertools.takewhile(self.unacked.__getitem__, self.unacked))
        for tag in oldest:
            del self.unacked[tag]
        self.busy.difference_update(oldest)
        if oldest:
            self.channel.basic_ack(oldest[-1], multiple=True)
        for tag in [tag for tag in self.busy if self.unacked.get(tag)]:
            self.channel.basic_ack(tag)
            del self.unacked[tag]
            self.busy.discard(tag)

    def give_back(self, token: _Token) -> None:
        """Hands the delivery back to the broker, which counts it."""
        if token.epoch == self.epoch and self.channel is not None and self.channel.is_open:
            self.channel.basic_nack(token.tag, requeue=True)
            del self.unacked[token.tag]
            self.busy.discard(token.tag)


class RabbitConsumer(Consumer):
    """A part of the link that consumes; see `Consumer` for the contract.

    Closing gives back what is held; quorum queues count that as a delivery, as they do every return.
    """

    def __init__(
        self,
        link: Link,
        publisher: Publisher,
        topology: Topology,
        queues: Sequence[str],
        prefetch: int,
        on_close: Callable[[RabbitConsumer], None],
    ) -> None:
        self._link = link
        self._publisher = publisher
        self._topology = topology
        self._own_queues = frozenset(topology.queues)
        self._prefetch = prefetch
        self._on_close = on_close
        self._feeds = [_Feed(queue) for queue in queues]
        self._changed = threading.Condition()
        self._closed = False
        self._settling = 0
        self._confirmed = 0
        self._lost = False
        self._refusal: BrokerError | None = None
        self._acks_due = False
        self._pulling = False
        self._asked: _Feed | None = None  # whose answer to a pull is under way; for the I/O thread only

    @property
    def dead_queue(self) -> str:
        return self._topology.dead

    # -- in the consumer's thread

    def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._closed:
                for feed in self._feeds:
                    if feed.ready:
                        taken = [feed.ready.popleft() for _ in range(min(limit, len(feed.ready)))]
                        return [_delivery(feed, *each) for each in taken]
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    break
                if not self._prefetch and not self._pulling:
                    self._pulling = True
                    self._link.call(functools.partial(self._pull, 0))
                self._changed.wait(remaining)
        return []

    def settle(self, deliveries: Sequence[Delivery], outgoing: Sequence[Outgoing] = ()) -> None:
        tokens = [delivery.token for delivery in deliveries]
        batch = Batch(functools.partial(self._on_settled, tokens), survives=False)
        for item in bundled(outgoing, self._topology.batch_reply_queue_prefix):
            # Only our own queues must exist: nobody else's mistake in `reply_to` may stop the work. And only what they
            # hold waits for workers, so only that is stamped: headers are the dearest part of a small message.
            ours = item.queue in self._own_queues
            properties = properties_of(stamped(item.message) if ours else item.message)
            batch.add(item.queue, properties, item.message.body, mandatory=ours, droppable=not ours)
        with self._changed:
            refusal, self._refusal = self._refusal, None
            if refusal is not None:
                raise refusal
            self._settling += 1
        self._link.call(functools.partial(self._settle, tokens, batch))

    def requeue(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        self._link.call(functools.partial(self._retry, delivery.token, delay_s))

    def defer(self, delivery: Delivery, delay_s: float) -> None:
        if delay_s > 0:
            self._link.call(functools.partial(self._defer, delivery, delay_s))
            return
        with self._changed:
            self._settling += 1
        self._link.call(functools.partial(self._put_back, delivery))

    def dead_letter(self, delivery: Delivery, reason: str, outgoing: Sequence[Outgoing] = ()) -> None:
        message = fitting(delivery.message, self._link.frame_bytes)
        if message is not delivery.message:
            lost = short_repr(", ".join(sorted(delivery.message.headers.keys() - message.headers.keys())))
            log.warning("a dead letter from %s has no room for its headers %s", delivery.queue, lost)
        super().dead_letter(replace(delivery, message=message), reason, outgoing)

    def flush(self, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            done = self._changed.wait_for(lambda: self._settling == 0, timeout_s)
            if done and not self._closed:  # closing a channel comes after its acknowledgements by itself
                self._settling += 1
                self._link.call(self._ask_for_acknowledged)
                done = self._changed.wait_for(lambda: self._settling == 0, deadline - time.monotonic())
            refusal, self._refusal = self._refusal, None
            lost, self._lost = self._lost, False
        if refusal is not None:
            raise refusal
        if lost:
            raise BrokerError("the connection was lost before all was settled; what was not will be delivered again")
        if not done:
            raise BrokerError(f"RabbitMQ did not confirm all settled work in {timeout_s:g} s{self._link.trouble}")

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if not self._link.closed:
            with suppress(BrokerError):
                self.flush(_CLOSE_TIMEOUT_S)
            returned = threading.Event()
            self._link.call(functools.partial(self._shut, returned))
            returned.wait(_CLOSE_TIMEOUT_S)
        self._on_close(self)

    # -- in the I/O thread

    def up(self, connection: Connection) -> None:
        """Opens a channel for each queue; see `Part`."""
        for feed in self._feeds:
            self._open(feed, connection)

    def down(self, error: Exception) -> None:
        """Forgets everything delivered: the broker will deliver it again; see `Part`."""
        for feed in self._feeds:
            self._reset(feed)
        if isinstance(error, BrokerClosed):
            with self._changed:
                self._closed = True
                self._settling = 0
                self._changed.notify_all()

    def _reset(self, feed: _Feed) -> None:
        feed.channel = None
        feed.epoch += 1
        feed.unacked.clear()
        feed.busy.clear()
        with self._changed:
            feed.ready.clear()
            self._lost = self._lost or feed.unanswered > 0
        for _ in range(feed.unanswered):
            self._note_confirmed()
        feed.unanswered = 0
        if self._asked is feed:
            # Its answer will not come. Only then: a pause ends by itself, and ended twice there would be two rounds at
            # the same time from then on, which sooner or later ask on the same channel.
            self._pulled()

    def _open(self, feed: _Feed, connection: Connection) -> None:
        def opened(channel: Channel) -> None:
            if self._closed:
                channel.close()
                return
            feed.channel = channel
            channel.add_on_close_callback(functools.partial(self._on_channel_closed, feed))
            channel.add_on_cancel_callback(lambda _: self._link.restart(f"queue {feed.queue} was deleted"))
            if self._prefetch:
                channel.basic_qos(prefetch_count=self._prefetch)
                channel.basic_consume(feed.queue, functools.partial(self._on_message, feed, feed.epoch))
            else:
                following = self._feeds.index(feed) + 1
                channel.add_callback(lambda _: self._pull(following), [Basic.GetEmpty], one_shot=False)

        connection.channel(on_open_callback=opened)

    def _pull(self, number: int) -> None:
        """Asks the queues for one message, beginning with the queue of that number; all empty, it leaves them alone.

        Only ever one request is under way, so at most one message is held that `receive` has not returned.
        """
        self._asked = None
        if number == len(self._feeds):
            self._link.later(_PULL_PAUSE_S, self._pulled)
            return
        feed = self._feeds[number]
        if feed.channel is None or not feed.channel.is_open:
            self._pull(number + 1)
            return
        epoch = feed.epoch

        def got(channel: Channel, method: Basic.GetOk, properties: BasicProperties, body: bytes) -> None:
            self._on_message(feed, epoch, channel, method, properties, body)
            self._pulled()

        self._asked = feed
        feed.channel.basic_get(feed.queue, got)

    def _pulled(self) -> None:
        """Notes that no request is under way: a `receive` that still waits asks again."""
        self._asked = None
        with self._changed:
            self._pulling = False
            self._changed.notify_all()

    def _on_message(
        self,
        feed: _Feed,
        epoch: int,
        _: Channel,
        method: Basic.Deliver | Basic.GetOk,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        tag = int(method.delivery_tag or 0)
        feed.unacked[tag] = False
        with self._changed:
            feed.ready.append((epoch, tag, properties, body))
            self._changed.notify_all()

    def _on_channel_closed(self, feed: _Feed, channel: Channel, error: Exception) -> None:
        if not isinstance(error, ChannelClosedByBroker) or not channel.connection.is_open:
            return  # we closed it, or the whole connection goes and `down` follows
        self._reset(feed)
        if error.reply_code == 404:
            self._link.restart(f"queue {feed.queue} does not exist")
            return
        # Most likely the acknowledgement time-out: the work took longer than the broker lets a consumer hold it.
        log.warning("RabbitMQ took back what was held of %s: %s", feed.queue, error)

        def reopen() -> None:
            if channel.connection.is_open and not self._closed:
                self._open(feed, channel.connection)

        self._link.later(_REOPEN_PAUSE_S, reopen)

    def _settle(self, tokens: Sequence[_Token], batch: Batch) -> None:
        live = [token for token in tokens if token.feed.is_live(token)]
        if tokens and not live:
            batch.end(ConnectionLost("the deliveries were given back meanwhile"))
            return
        for token in live:
            token.feed.busy.add(token.tag)
        self._publisher.submit(batch)

    def _on_settled(self, tokens: Sequence[_Token], error: BrokerError | None) -> None:
        lost = isinstance(error, ConnectionLost)
        for token in tokens:
            if error is None:
                lost = not token.feed.settled(token) or lost
            else:
                token.feed.released(token)
        with self._changed:
            self._lost = self._lost or lost
            if error is not None and not lost:
                self._refusal = error
        self._note_confirmed()

    def _note_confirmed(self) -> None:
        """Notes that one thing less is on its way, for `flush`: acknowledged together with what is confirmed beside."""
        self._confirmed += 1
        if not self._acks_due:
            self._acks_due = True
            self._link.call(self._acknowledge)

    def _acknowledge(self) -> None:
        """Acknowledges what became settled since the last turn of the I/O loop, all at once."""
        self._acks_due = False
        for feed in self._feeds:
            feed.acknowledge()
        with self._changed:
            self._settling = max(0, self._settling - self._confirmed)
            self._confirmed = 0
            self._changed.notify_all()

    def _ask_for_acknowledged(self) -> None:
        """Asks each channel something harmless: the answer tells that all acknowledgements before it have arrived.

        Sent is not enough: what a process that is killed has just sent may be lost with it.
        """
        for feed in self._feeds:
            if feed.channel is None or not feed.channel.is_open:
                continue
            feed.unanswered += 1
            with self._changed:
                self._settling += 1
            feed.channel.basic_qos(
                prefetch_count=self._prefetch, callback=functools.partial(self._on_answer, feed, feed.epoch)
            )
        self._note_confirmed()

    def _on_answer(self, feed: _Feed, epoch: int, _: object) -> None:
        if epoch == feed.epoch:
            feed.unanswered -= 1
            self._note_confirmed()

    def _retry(self, token: _Token, delay_s: float) -> None:
        if not token.feed.is_live(token):
            return
        if delay_s > 0:
            token.feed.busy.add(token.tag)
            self._link.later(delay_s, functools.partial(token.feed.give_back, token))
        else:
            token.feed.give_back(token)

    def _defer(self, delivery: Delivery, delay_s: float) -> None:
        token: _Token = delivery.token
        if not token.feed.is_live(token):
            return
        token.feed.busy.add(token.tag)

        def put_back() -> None:
            token.feed.released(token)
            with self._changed:
                self._settling += 1
            self._put_back(delivery)

        self._link.later(delay_s, put_back)

    def _put_back(self, delivery: Delivery) -> None:
        """Puts a copy into the queue, with the count as it was, and then acknowledges the delivery."""
        token: _Token = delivery.token
        if not token.feed.is_live(token):
            self._note_confirmed()
            return
        if fitting(delivery.message, self._link.frame_bytes) is not delivery.message:
            token.feed.give_back(token)  # with one header more, the copy would cost the connection
            self._note_confirmed()
            return
        token.feed.busy.add(token.tag)

        def copied(error: BrokerError | None) -> None:
            if error is None:
                token.feed.settled(token)
            else:
                log.warning("could not defer a message of %s, which stays held: %s", delivery.queue, error)
                token.feed.give_back(token)
                with self._changed:
                    self._lost = self._lost or isinstance(error, ConnectionLost)
            self._note_confirmed()

        batch = Batch(copied, survives=False)
        properties = properties_of(delivery.message, earlier_deliveries=delivery.delivery_count)
        batch.add(delivery.queue, properties, delivery.message.body, mandatory=True)
        self._publisher.submit(batch)

    def _shut(self, returned: threading.Event) -> None:
        self._link.detach(self)
        open_channels = [feed.channel for feed in self._feeds if feed.channel is not None and feed.channel.is_open]
        waiting = len(open_channels)

        def one_closed(*_: Any) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                returned.set()

        for channel in open_channels:
            channel.add_on_close_callback(one_closed)
            channel.close()
        for feed in self._feeds:
            self._reset(feed)
        if not open_channels:
            returned.set()


def _delivery(feed: _Feed, epoch: int, tag: int, properties: BasicProperties, body: bytes) -> Delivery:
    return Delivery(feed.queue, message_of(properties, body), delivery_count_of(properties), _Token(feed, epoch, tag))

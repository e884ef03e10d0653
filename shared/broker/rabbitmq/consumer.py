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

from shared.broker.base import (
    BrokerClosed,
    BrokerError,
    Consumer,
    Delivery,
    Outgoing,
    stamped,
    without_forged_reply_to,
)
from shared.broker.rabbitmq.codec import DeliveryCounter, message_of, properties_of, shrink_headers
from shared.broker.rabbitmq.connection import Connection, ConnectionLost
from shared.broker.rabbitmq.publisher import Batch, Publisher
from shared.broker.rabbitmq.transport import BatchingConnection, cancel_consumer
from shared.broker.reply_batch import pack
from shared.errors import GenderlineError, short_repr
from shared.topology import Topology

log = logging.getLogger(__name__)

_REOPEN_PAUSE_S: Final = 0.5
_CLOSE_TIMEOUT_S: Final = 5.0
_FIRST_WINDOW: Final = 4
"""Messages that may come before it is known how large they are."""
_FADING: Final = 0.95
"""What a typical size becomes with each message that is smaller."""
_PULL_PAUSE_S: Final = 0.2
"""Between two looks into empty queues, for consumers without prefetch."""


@dataclass(frozen=True, slots=True)
class _Token:
    source: QueueChannel
    epoch: int
    tag: int


class QueueChannel:
    """One queue's channel. All of it belongs to the I/O thread, except `ready`, which the consumer's lock guards.

    Attributes:
        epoch: grows with each channel.
        ready: delivered and not yet taken.
        unacked: every tag that the broker waits for, in order, and whether its work is settled.
        sizes: bytes of each tag's body.
        held_bytes: their sum.
        typical_bytes: what a body takes: that of the largest of late; 0 before the first.
        windows: consumer tags of the AMQP consumers on the channel, and how many messages each may hold; none while
            what is held fills the budget of bytes.
        delivered: messages since the windows last changed.
        busy: tags whose settling, retrying or deferring is under way.
        unanswered: how often the broker was asked whether it has all acknowledgements, without an answer so far.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.channel: Channel | None = None
        self.epoch = 0
        self.ready: deque[tuple[int, Basic.Deliver | Basic.GetOk, BasicProperties, bytes]] = deque()
        self.unacked: OrderedDict[int, bool] = OrderedDict()
        self.sizes: dict[int, int] = {}
        self.held_bytes = 0
        self.typical_bytes = 0.0
        self.windows: dict[str, int] = {}
        self.delivered = 0
        self.busy: set[int] = set()
        self.unanswered = 0

    def is_live(self, token: _Token) -> bool:
        """Returns whether the delivery is still ours to decide on."""
        return token.epoch == self.epoch and token.tag in self.unacked and token.tag not in self.busy

    def note(self, tag: int, size: int) -> None:
        """Notes a message that arrived."""
        self.unacked[tag] = False
        self.sizes[tag] = size
        self.held_bytes += size
        self.typical_bytes = max(1.0, size, self.typical_bytes * _FADING)
        self.delivered += 1

    def forget(self, tag: int) -> None:
        """Forgets a message that the broker waits for no longer."""
        del self.unacked[tag]
        self.held_bytes -= self.sizes.pop(tag)
        self.busy.discard(tag)

    def forget_all(self) -> None:
        """Forgets the channel with all that came on it."""
        self.channel = None
        self.epoch += 1
        self.unacked.clear()
        self.sizes.clear()
        self.held_bytes = 0
        self.windows.clear()
        self.busy.clear()

    def settled(self, token: _Token) -> bool:
        """Notes that the delivery can be acknowledged; returns False where it was given back meanwhile."""
        if token.epoch != self.epoch or token.tag not in self.unacked:
            return False
        self.unacked[token.tag] = True
        return True

    def unmark(self, token: _Token) -> None:
        """Notes that settling failed: the delivery is held as before."""
        if token.epoch == self.epoch:
            self.busy.discard(token.tag)

    def acknowledge(self) -> None:
        """Acknowledges all that is settled: the oldest with one frame, and each that has an unsettled one before it."""
        if self.channel is None or not self.channel.is_open:
            return
        oldest = list(itertools.takewhile(self.unacked.__getitem__, self.unacked))
        for tag in oldest:
            self.forget(tag)
        if oldest:
            self.channel.basic_ack(oldest[-1], multiple=True)
        for tag in [tag for tag in self.busy if self.unacked.get(tag)]:
            self.channel.basic_ack(tag)
            self.forget(tag)

    def requeue(self, token: _Token) -> None:
        """Hands the delivery back to the broker, which counts it."""
        if token.epoch == self.epoch and self.channel is not None and self.channel.is_open:
            self.channel.basic_nack(token.tag, requeue=True)
            self.forget(token.tag)


class RabbitConsumer(Consumer):
    """The component that consumes; see `Consumer` for the contract.

    Closing gives back what is held; quorum queues count that as a delivery, as they do every return.
    """

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        topology: Topology,
        queues: Sequence[str],
        *,
        prefetch: int,
        prefetch_bytes: int,
        on_close: Callable[[RabbitConsumer], None],
    ) -> None:
        self._connection = connection
        self._publisher = publisher
        self._topology = topology
        self._own_queues = frozenset(topology.queues)
        self._prefetch = prefetch
        self._prefetch_bytes = prefetch_bytes
        self._on_close = on_close
        self._counter = DeliveryCounter(connection.secret)
        self._sources = [QueueChannel(queue) for queue in queues]
        self._changed = threading.Condition()
        self._closed = False
        self._settling = 0
        self._confirmed = 0
        self._lost = False
        self._refusal: GenderlineError | None = None
        self._acks_due = False
        self._pulling = False
        connection.on_forbidden.append(self._wake)
        self._asked: QueueChannel | None = None  # whose answer to a pull is under way; for the I/O thread only

    @property
    def dead_queue(self) -> str:
        return self._topology.dead

    # -- in the consumer's thread

    def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._closed:
                if self._connection.forbidden is not None:
                    raise self._connection.forbidden
                for source in self._sources:
                    if source.ready:
                        taken = [source.ready.popleft() for _ in range(min(limit, len(source.ready)))]
                        return [self._delivery(source, *each) for each in taken]
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    break
                if not self._prefetch and not self._pulling:
                    self._pulling = True
                    self._connection.call(functools.partial(self._pull, 0))
                self._changed.wait(remaining)
        return []

    @property
    def has_waiting(self) -> bool:
        return any(source.ready for source in self._sources)

    def _delivery(
        self,
        source: QueueChannel,
        epoch: int,
        method: Basic.Deliver | Basic.GetOk,
        properties: BasicProperties,
        body: bytes,
    ) -> Delivery:
        message = without_forged_reply_to(message_of(properties, body), self._own_queues)
        count = self._counter.count(message, properties, redelivered=bool(method.redelivered))
        return Delivery(source.queue, message, count, _Token(source, epoch, int(method.delivery_tag or 0)))

    def settle(self, deliveries: Sequence[Delivery], outgoing: Sequence[Outgoing] = ()) -> None:
        tokens = [delivery.token for delivery in deliveries]
        batch = Batch(functools.partial(self._on_settled, tokens), survives=False)
        for item in pack(outgoing, self._topology.batch_reply_queue_prefix):
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
        self._connection.call(functools.partial(self._settle, tokens, batch))

    def requeue(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        self._connection.call(functools.partial(self._retry, delivery.token, delay_s))

    def defer(self, delivery: Delivery, delay_s: float) -> None:
        if delay_s > 0:
            self._connection.call(functools.partial(self._defer, delivery, delay_s))
            return
        with self._changed:
            self._settling += 1
        self._connection.call(functools.partial(self._put_back, delivery))

    def dead_letter(self, delivery: Delivery, reason: str, outgoing: Sequence[Outgoing] = ()) -> None:
        message = shrink_headers(delivery.message, self._connection.frame_bytes)
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
                self._connection.call(self._ask_for_acknowledged)
                done = self._changed.wait_for(lambda: self._settling == 0, deadline - time.monotonic())
            refusal, self._refusal = self._refusal, None
            lost, self._lost = self._lost, False
        if refusal is not None:
            raise refusal
        if lost:
            raise BrokerError("the connection was lost before all was settled; what was not will be delivered again")
        if not done:
            raise BrokerError(
                f"RabbitMQ did not confirm all settled work in {timeout_s:g} s{self._connection.status_suffix}"
            )

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if not self._connection.closed:
            with suppress(BrokerError):
                self.flush(_CLOSE_TIMEOUT_S)
            returned = threading.Event()
            self._connection.call(functools.partial(self._shut, returned))
            returned.wait(_CLOSE_TIMEOUT_S)
        self._on_close(self)

    # -- in the I/O thread

    def on_connected(self, transport: BatchingConnection) -> None:
        """Opens a channel for each queue; see `Component`."""
        for source in self._sources:
            self._open(source, transport)

    def on_disconnected(self, error: Exception) -> None:
        """Forgets everything delivered: the broker will deliver it again; see `Component`."""
        for source in self._sources:
            self._reset(source)
        if isinstance(error, BrokerClosed):
            with self._changed:
                self._closed = True
                self._settling = 0
                self._changed.notify_all()

    def _reset(self, source: QueueChannel) -> None:
        source.forget_all()
        with self._changed:
            source.ready.clear()
            self._lost = self._lost or source.unanswered > 0
        for _ in range(source.unanswered):
            self._note_confirmed()
        source.unanswered = 0
        if self._asked is source:
            # Its answer will not come. Only then: a pause ends by itself, and ended twice there would be two rounds at
            # the same time from then on, which sooner or later ask on the same channel.
            self._pulled()

    def _open(self, source: QueueChannel, transport: BatchingConnection) -> None:
        def opened(channel: Channel) -> None:
            if self._closed:
                channel.close()
                return
            source.channel = channel
            channel.add_on_close_callback(functools.partial(self._on_channel_closed, source))
            channel.add_on_cancel_callback(lambda _: self._connection.restart(f"queue {source.queue} was deleted"))
            if self._prefetch:
                self._adjust_windows(source)
            else:
                following = self._sources.index(source) + 1
                channel.add_callback(lambda _: self._pull(following), [Basic.GetEmpty], one_shot=False)

        transport.channel(on_open_callback=opened)

    def _adjust_windows(self, source: QueueChannel) -> None:
        """Lets more messages come where those of the size seen of late fit into the budget, and none where it is full.

        A prefetch counts messages, and AMQP has no way to change that of a consumer: it takes more consumers on the
        channel to hold more, and ending them all to hold less.
        """
        channel = source.channel
        if not self._prefetch or channel is None or not channel.is_open or self._closed:
            return
        allowed = sum(source.windows.values())
        if allowed and source.held_bytes >= self._prefetch_bytes:
            for consumer_tag in source.windows:
                cancel_consumer(channel, consumer_tag)
            source.windows.clear()
            return
        if (allowed and source.delivered < allowed) or (not allowed and source.held_bytes > self._prefetch_bytes // 2):
            return
        fits = _FIRST_WINDOW
        if source.typical_bytes:
            # New consumers know nothing of what those before them brought.
            room = self._prefetch_bytes - (0 if allowed else source.held_bytes)
            fits = int(room / source.typical_bytes)
        fits = max(1, min(fits, self._prefetch if allowed else self._prefetch - len(source.unacked)))
        if fits >= 2 * allowed or allowed < fits == self._prefetch:
            channel.basic_qos(prefetch_count=fits - allowed)
            on_message = functools.partial(self._on_message, source, source.epoch)
            source.windows[channel.basic_consume(source.queue, on_message)] = fits - allowed
            source.delivered = 0

    def _pull(self, number: int) -> None:
        """Asks the queues for one message, beginning with the queue of that number; all empty, it leaves them alone.

        Only ever one request is under way, so at most one message is held that `receive` has not returned.
        """
        self._asked = None
        if number == len(self._sources):
            self._connection.call_later(_PULL_PAUSE_S, self._pulled)
            return
        source = self._sources[number]
        if source.channel is None or not source.channel.is_open:
            self._pull(number + 1)
            return
        epoch = source.epoch

        def got(channel: Channel, method: Basic.GetOk, properties: BasicProperties, body: bytes) -> None:
            self._on_message(source, epoch, channel, method, properties, body)
            self._pulled()

        self._asked = source
        source.channel.basic_get(source.queue, got)

    def _pulled(self) -> None:
        """Notes that no request is under way: a `receive` that still waits asks again."""
        self._asked = None
        with self._changed:
            self._pulling = False
            self._changed.notify_all()

    def _on_message(
        self,
        source: QueueChannel,
        epoch: int,
        _: Channel,
        method: Basic.Deliver | Basic.GetOk,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        source.note(int(method.delivery_tag or 0), len(body))
        self._adjust_windows(source)
        with self._changed:
            source.ready.append((epoch, method, properties, body))
            self._changed.notify_all()

    def _on_channel_closed(self, source: QueueChannel, channel: Channel, error: Exception) -> None:
        if not isinstance(error, ChannelClosedByBroker) or not channel.connection.is_open:
            return  # we closed it, or the whole connection goes and `on_disconnected` follows
        self._reset(source)
        if error.reply_code == 403:
            self._connection.forbid(self._connection.refused(error, "read"))
            return
        if error.reply_code == 404:
            self._connection.restart(f"queue {source.queue} does not exist")
            return
        # Most likely the acknowledgement time-out: the work took longer than the broker lets a consumer hold it.
        log.warning("RabbitMQ took back what was held of %s: %s", source.queue, error)

        def reopen() -> None:
            if channel.connection.is_open and not self._closed:
                self._open(source, channel.connection)

        self._connection.call_later(_REOPEN_PAUSE_S, reopen)

    def _settle(self, tokens: Sequence[_Token], batch: Batch) -> None:
        live = [token for token in tokens if token.source.is_live(token)]
        if tokens and not live:
            batch.end(ConnectionLost("the deliveries were given back meanwhile"))
            return
        for token in live:
            token.source.busy.add(token.tag)
        self._publisher.submit(batch)

    def _on_settled(self, tokens: Sequence[_Token], error: GenderlineError | None) -> None:
        lost = isinstance(error, ConnectionLost)
        for token in tokens:
            if error is None:
                lost = not token.source.settled(token) or lost
            else:
                token.source.unmark(token)
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
            self._connection.call(self._acknowledge)

    def _acknowledge(self) -> None:
        """Acknowledges what became settled since the last turn of the I/O loop, all at once."""
        self._acks_due = False
        for source in self._sources:
            source.acknowledge()
            self._adjust_windows(source)
        with self._changed:
            self._settling = max(0, self._settling - self._confirmed)
            self._confirmed = 0
            self._changed.notify_all()

    def _ask_for_acknowledged(self) -> None:
        """Asks each channel something harmless: the answer tells that all acknowledgements before it have arrived.

        Sent is not enough: what a process that is killed has just sent may be lost with it.
        """
        for source in self._sources:
            if source.channel is None or not source.channel.is_open:
                continue
            source.unanswered += 1
            with self._changed:
                self._settling += 1
            source.channel.basic_qos(
                prefetch_count=self._prefetch, callback=functools.partial(self._on_answer, source, source.epoch)
            )
        self._note_confirmed()

    def _on_answer(self, source: QueueChannel, epoch: int, _: object) -> None:
        if epoch == source.epoch:
            source.unanswered -= 1
            self._note_confirmed()

    def _return(self, token: _Token) -> None:
        token.source.requeue(token)
        self._adjust_windows(token.source)

    def _retry(self, token: _Token, delay_s: float) -> None:
        if not token.source.is_live(token):
            return
        if delay_s > 0:
            token.source.busy.add(token.tag)
            self._connection.call_later(delay_s, functools.partial(self._return, token))
        else:
            self._return(token)

    def _defer(self, delivery: Delivery, delay_s: float) -> None:
        token: _Token = delivery.token
        if not token.source.is_live(token):
            return
        token.source.busy.add(token.tag)

        def put_back() -> None:
            token.source.unmark(token)
            with self._changed:
                self._settling += 1
            self._put_back(delivery)

        self._connection.call_later(delay_s, put_back)

    def _put_back(self, delivery: Delivery) -> None:
        """Puts a copy into the queue, with the count as it was, and then acknowledges the delivery."""
        token: _Token = delivery.token
        if not token.source.is_live(token):
            self._note_confirmed()
            return
        if shrink_headers(delivery.message, self._connection.frame_bytes) is not delivery.message:
            self._return(token)  # with one header more, the copy would cost the connection
            self._note_confirmed()
            return
        token.source.busy.add(token.tag)

        def copied(error: GenderlineError | None) -> None:
            if error is None:
                token.source.settled(token)
            else:
                log.warning("could not defer a message of %s, which stays held: %s", delivery.queue, error)
                self._return(token)
                with self._changed:
                    self._lost = self._lost or isinstance(error, ConnectionLost)
            self._note_confirmed()

        batch = Batch(copied, survives=False)
        signed = self._counter.sign(delivery.message.message_id, delivery.delivery_count)
        properties = properties_of(delivery.message, earlier_deliveries=signed)
        batch.add(delivery.queue, properties, delivery.message.body, mandatory=True)
        self._publisher.submit(batch)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _shut(self, returned: threading.Event) -> None:
        self._connection.detach(self)
        self._connection.on_forbidden.remove(self._wake)
        open_channels = [
            source.channel for source in self._sources if source.channel is not None and source.channel.is_open
        ]
        waiting = len(open_channels)

        def one_closed(*_: Any) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                returned.set()

        for channel in open_channels:
            channel.add_on_close_callback(one_closed)
            channel.close()
        for source in self._sources:
            self._reset(source)
        if not open_channels:
            returned.set()

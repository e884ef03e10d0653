"""The one way of every message: received, parsed, handled, settled.

A `ConsumerLoop` does that for all services. What is particular to a queue is its `Handler`, which knows neither the
broker nor deliveries: it is given requests, and returns what came of them or raises an error, of which `retry` says
what it means for the message.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from prometheus_client import Histogram

from shared.broker.base import Broker, BrokerError, BrokerFull, Consumer, Delivery, Message, Outgoing
from shared.errors import GenderlineError, Retryable
from shared.runtime.log import log_ids
from shared.worker.batches import batch_by_size
from shared.worker.retry import Bury, Requeue, RetryPolicy, Wait, as_retryable

R = TypeVar("R")

_WAIT_S: Final = 0.5
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """A request is done with.

    Attributes:
        outgoing: to be published; once that is confirmed, the request's message is acknowledged.
        on_confirmed: called after that. By then the message is gone, so what it raises is logged and changes nothing.
    """

    outgoing: Sequence[Outgoing] = ()
    on_confirmed: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Defer:
    """A request is to come again later, through no fault of its own."""

    delay_s: float


Outcome = Done | Defer


class Context:
    """What a handler may ask of the loop while it works.

    Attributes:
        stopping: set when the service is to end: work that can be carried on later should return soon.
    """

    def __init__(self, consumer: Consumer, stopping: threading.Event) -> None:
        self._consumer = consumer
        self.stopping = stopping

    def send(self, outgoing: Sequence[Outgoing]) -> None:
        """Publishes an interim answer, while the request goes on."""
        self._consumer.settle([], outgoing)


class Handler(abc.ABC, Generic[R]):
    """What is done with the messages of one queue."""

    @abc.abstractmethod
    def parse(self, message: Message) -> R:
        """Returns the request that a message is.

        Raises:
            InvalidMessage: it is none.
        """

    def size_of(self, request: R) -> int:  # noqa: ARG002 - for those that measure
        """Returns how much of a batch's size a request takes."""
        return 1

    @abc.abstractmethod
    def handle(self, requests: Sequence[R], context: Context) -> Sequence[Outcome]:
        """Does what is asked for.

        Args:
            requests: as many as fit into a batch of the loop's size; only one where that is 1.
            context: of the loop.

        Returns:
            An outcome a request, in order.

        Raises:
            Exception: nothing was done. Where there are several requests, each is handled again by itself.
        """

    @abc.abstractmethod
    def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
        """Records that a message ends as a dead letter, which it may not have been parsed for.

        Returns:
            The error replies.
        """

    def close(self) -> None:
        """Lets go of what was kept from one request to the next; called when the loop ends."""


@dataclass(frozen=True, slots=True)
class _Item:
    delivery: Delivery
    request: Any
    size: int


class ConsumerLoop:
    """Handles the messages of some queues until told to stop.

    Told to stop, it finishes the batch at hand, and gives back what it holds beside it.

    Args:
        broker: where messages come from.
        handlers: what to do with them, by queue, the most urgent queue first.
        retry: what becomes of messages that fail.
        prefetch: messages held at once.
        batch_size: the most that is handled together, as the handler measures it.
        gather_s: how long some requests of size 1 wait for more, where messages come faster than they are handled. One
            that comes alone never waits, nor does any of a broker that is asked for each batch (the embedded one).
        wait_until_ready: waits, for so many seconds at the most, and returns whether messages may be taken at all.
        on_idle: told when the loop begins and when it ends to wait for messages.
        queue_wait: told how long each message waited, in seconds.
    """

    def __init__(
        self,
        broker: Broker,
        handlers: Mapping[str, Handler[Any]],
        retry: RetryPolicy,
        *,
        prefetch: int,
        batch_size: int = 1,
        gather_s: float = 0.0,
        wait_until_ready: Callable[[float], bool] = lambda _: True,
        on_idle: Callable[[bool], None] = lambda _: None,
        queue_wait: Histogram | None = None,
    ) -> None:
        self._broker = broker
        self._handlers = handlers
        self._retry = retry
        self._prefetch = prefetch
        self._batch_size = batch_size
        self._gather_s = gather_s
        self._wait_until_ready = wait_until_ready
        self._on_idle = on_idle
        self._queue_wait = queue_wait

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`. A broker that is away is waited for."""
        try:
            while not stop.is_set() and not self._wait_until_ready(_WAIT_S):
                pass
            self._consume(stop)
        finally:
            for handler in self._handlers.values():
                handler.close()

    def _consume(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                # Closing the consumer gives back whatever is unsettled: after an error, and what `stop` left untouched.
                with self._broker.consume(list(self._handlers), self._prefetch) as consumer:
                    context = Context(consumer, stop)
                    while not stop.is_set():
                        self._handle_next(consumer, context)
                    consumer.flush()
            except BrokerError as error:
                _LOG.warning("what is at hand will come again: %s", error)
                stop.wait(_WAIT_S)

    def _handle_next(self, consumer: Consumer, context: Context) -> None:
        """Receives what there is, in one or a few batches, and handles it."""
        waiting = consumer.has_waiting
        with self._idle():
            deliveries = consumer.receive(self._batch_size, _WAIT_S)
        items = list(self._parse(consumer, deliveries))
        if self._gather_s and waiting and 1 < len(items) < self._batch_size and all(item.size == 1 for item in items):
            time.sleep(self._gather_s)  # and not in `receive`, which every message that comes would wake
            items += self._parse(consumer, consumer.receive(self._batch_size - len(items), 0))
        for batch in batch_by_size(items, lambda item: item.size, self._batch_size):
            if context.stopping.is_set():
                return
            self._handle(consumer, context, batch)

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        self._on_idle(True)
        yield
        self._on_idle(False)

    def _parse(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> Iterator[_Item]:
        """Yields the deliveries that can be handled; of the others it disposes."""
        for delivery in deliveries:
            if self._queue_wait is not None and (waited_s := delivery.waited_s()) is not None:
                self._queue_wait.observe(waited_s)
            handler = self._handlers[delivery.queue]
            try:
                self._retry.check(delivery.delivery_count)
                request = handler.parse(delivery.message)
                item = _Item(delivery, request, handler.size_of(request))
            except Exception as error:
                with log_ids(message_id=delivery.message.message_id):
                    self._fail(consumer, delivery, error)
            else:
                yield item

    def _handle(self, consumer: Consumer, context: Context, batch: Sequence[_Item]) -> None:
        """Handles a batch of one queue and settles it."""
        handler = self._handlers[batch[0].delivery.queue]
        first, *others = [item.delivery.message.message_id for item in batch]
        with log_ids(message_id=f"{first} and {len(others)} more" if others else first):
            try:
                outcomes = handler.handle([item.request for item in batch], context)
                self._settle(consumer, batch, outcomes)
                return
            except Exception as error:
                if isinstance(error, BrokerError) and not isinstance(error, BrokerFull):
                    raise
                if not others:
                    self._fail(consumer, batch[0].delivery, error)
                    return
        for item in batch:  # one of them is at fault; which one shows when each is by itself
            self._handle(consumer, context, [item])

    def _settle(self, consumer: Consumer, batch: Sequence[_Item], outcomes: Sequence[Outcome]) -> None:
        done: list[Delivery] = []
        outgoing: list[Outgoing] = []
        to_call: list[Callable[[], object]] = []
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Defer):
                consumer.defer(item.delivery, outcome.delay_s)
                continue
            done.append(item.delivery)
            outgoing += outcome.outgoing
            if outcome.on_confirmed is not None:
                to_call.append(outcome.on_confirmed)
        consumer.settle(done, outgoing)
        if to_call:
            consumer.flush()
        for call in to_call:
            try:
                call()
            except Exception as error:
                _LOG.warning("after a message was settled: %s", error, exc_info=not isinstance(error, GenderlineError))

    def _fail(self, consumer: Consumer, delivery: Delivery, error: Exception) -> None:
        """Does with a delivery what `retry` says that its error means; called while that is being handled."""
        message = delivery.message
        verdict = self._retry.decide(error, message.message_id, delivery.delivery_count)
        if isinstance(verdict, Bury):
            try:
                replies = self._handlers[delivery.queue].fail(message, verdict.error)
            except Exception as failure:
                if isinstance(away := as_retryable(failure), Retryable):
                    verdict = self._retry.decide(away, message.message_id, delivery.delivery_count)
                else:
                    _LOG.exception("a dead letter gets no reply")
                    replies = ()
        match verdict:
            case Wait(pause_s):
                consumer.defer(delivery, pause_s)
            case Requeue(pause_s):
                consumer.requeue(delivery, pause_s)
            case Bury(reason, _):
                self._retry.note_buried(delivery.queue, reason)
                consumer.dead_letter(delivery, reason, replies)

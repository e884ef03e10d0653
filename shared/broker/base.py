"""The broker interface. These docstrings are the contract; `tests/contract` holds both brokers to it.

The one idea that the rest stands on is `Consumer.settle`: the results of some work are handed to the broker and, once
it has *confirmed* them, the work itself is acknowledged. In between nothing can be lost: a process that dies before
the confirmation leaves the work to be delivered again, and results have deterministic names, so doing it twice is
harmless.
"""

from __future__ import annotations

import abc
import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self, get_args

from pydantic_core import from_json

from shared.errors import GenderlineError, Retryable, short_repr
from shared.topology import WORKER_HEARTBEAT, Topology

_LOG: Final = logging.getLogger(__name__)

HeaderValue = str | int | float | bool
REASON: Final = "reason"
ORIGIN: Final = "origin"
DELIVERY_COUNT: Final = "delivery_count"
DEAD_ID: Final = "dead_id"
RETRIED_AT: Final = "retried_at"
"""Header of a dead letter that was sent back: when. Sent back anew, it has another."""
ENQUEUED_AT: Final = "enqueued_at"
"""Header with the Unix time, in seconds, at which our own clients published; foreign ones need not set it."""
DEAD_LETTERS_KEPT: Final = 100_000
"""The most dead letters; beyond, the oldest are dropped, so that a flood of bad messages cannot fill the disk."""
DEAD_BYTES_KEPT: Final = 4 * 2**30
"""The most bytes of their bodies."""
PREFETCH_BYTES: Final = 64 * 2**20
"""Bytes of message bodies that a consumer holds of one queue, unless it is told otherwise."""
MOST_EVENT_BYTES: Final = 65_536
"""Of an event's body; a larger one reaches no subscriber."""
MOST_HEARTBEAT_BYTES: Final = 8192
"""Of a heartbeat's body: each listener remembers those of a thousand workers."""
_LONGEST_WAIT_S: Final = 365 * 86400.0
_CLOCKS_DIFFER_S: Final = 86400.0


class BrokerError(Retryable):
    """The broker is away or refused; the same call may succeed later."""


class BrokerFull(BrokerError):
    """The queue holds as many messages as it may; nothing was accepted."""


class Unconfirmed(BrokerError):
    """What was published is not confirmed, and may yet be accepted."""


class AccessRefused(GenderlineError):
    """The broker's user lacks a permission. No `BrokerError`: trying again is of no use before somebody grants it."""

    default_code = "unavailable"


class MessageTooLarge(BrokerError):
    """The message is larger than the broker takes: the others of its batch may not have been accepted either."""


class BrokerClosed(BrokerError):
    """This broker object, or the consumer, was closed."""


TroubleKind = Literal["disconnected", "blocked", "no_majority", "forbidden"]
TROUBLES: Final[tuple[TroubleKind, ...]] = get_args(TroubleKind)


class Trouble(NamedTuple):
    """Why the broker does not serve us now: a word for programs and a sentence for people."""

    kind: TroubleKind
    text: str


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach and use a broker on the network, beside its URL.

    Attributes:
        ca_file: certificates of the authorities to trust instead of the system's.
        cert_file: our certificate.
        key_file: its private key.
        login: by the URL's user and password, or by the certificate.
        declare: make queues and exchanges, or only look whether an administrator has.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    login: Literal["password", "external"] = "password"
    declare: Literal["active", "passive"] = "active"

    @property
    def uses_tls(self) -> bool:
        """Whether a file for TLS is set."""
        return any((self.ca_file, self.cert_file, self.key_file))


def _new_id() -> str:
    return os.urandom(16).hex()  # as unlikely to come twice as a UUID, in a fourth of the time


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it travels, on either broker.

    `headers` hold text, numbers and booleans only.
    """

    body: bytes
    content_type: str
    message_id: str = field(default_factory=_new_id)
    correlation_id: str | None = None
    reply_to: str | None = None
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)

    def reply(self, body: bytes, content_type: str) -> list[Outgoing]:
        """Returns the reply that this message asked for: one, or none where it named no `reply_to`.

        The reply carries the message's `correlation_id`, or its `message_id` where it has none.
        """
        if not self.reply_to:
            return []
        correlation = self.correlation_id or self.message_id
        return [Outgoing(self.reply_to, Message(body, content_type, correlation_id=correlation))]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message and the queue it is for."""

    queue: str
    message: Message


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message taken from a queue and not yet settled.

    Attributes:
        queue: where it came from.
        delivery_count: how often it had been delivered before without being settled; 0 the first time.
        token: the broker's handle; means nothing to anyone else.
    """

    queue: str
    message: Message
    delivery_count: int
    token: Any = field(repr=False)

    def waited_s(self, now: float | None = None) -> float | None:
        """Returns how long the message waited in its queue, in seconds; None where its sender did not say when.

        Nor where it said what cannot be: one such number would spoil a sum for good.
        """
        sent = self.message.headers.get(ENQUEUED_AT)
        if isinstance(sent, bool) or not isinstance(sent, int | float):
            return None
        now = time.time() if now is None else now
        if not now - _LONGEST_WAIT_S < sent < now + _CLOCKS_DIFFER_S:
            return None
        return max(0.0, now - sent)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `payload` holds JSON types."""

    topic: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Depth:
    """How full a queue is. `unacknowledged` is None where the broker does not tell."""

    ready: int
    unacknowledged: int | None = None


class SentBack(NamedTuple):
    """A dead letter's message that is in its queue again, and when it was sent there, in seconds since 1970."""

    queue: str
    message_id: str
    retried_at: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be processed.

    Attributes:
        dead_id: names it to `Broker.retry_dead` and `Broker.drop_dead`.
        reason: an error code, `delivery_limit`, or the broker's own word for it.
        origin: the queue it was taken from.
        delivery_count: how often it had been delivered.
    """

    dead_id: str
    reason: str
    origin: str
    delivery_count: int
    message: Message

    def summary(self) -> dict[str, Any]:
        """Returns what is told of it in JSON: all but the message's body and headers."""
        return {
            "dead_id": self.dead_id,
            "reason": self.reason,
            "origin": self.origin,
            "delivery_count": self.delivery_count,
            "message_id": self.message.message_id,
            "content_type": self.message.content_type,
            "size_bytes": len(self.message.body),
        }


class Consumer(abc.ABC):
    """Takes messages from some queues. Used by one thread; `close` may be called from any.

    Deliveries that are neither settled nor retried belong to this consumer until it closes or its process dies; then
    the broker delivers them again. A consumer that stalled for so long that its deliveries were given to another may
    still call `settle`, `requeue` or `dead_letter`: that does no harm.
    """

    @abc.abstractmethod
    def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        """Takes up to `limit` messages of one queue, the first of this consumer's queues that has any.

        Messages come in the order in which they were accepted, except those delivered again. Never waits for more
        once there is one. A `reply_to` that names a queue of the topology is left out: an answer is no work.

        Args:
            limit: the most messages to return; what is held unsettled is bounded by the prefetch besides.
            timeout_s: how long to wait for the first one; None waits until there is one or the consumer closes.

        Returns:
            The deliveries; empty after the time-out or once closed.

        Raises:
            AccessRefused: the broker's user may not read a queue, or not publish events.
        """

    @property
    def has_waiting(self) -> bool:
        """Whether messages have come that `receive` would return at once; never, where it must ask the broker first."""
        return False

    @abc.abstractmethod
    def settle(self, deliveries: Sequence[Delivery], outgoing: Sequence[Outgoing] = ()) -> None:
        """Publishes `outgoing` and, once the broker has confirmed all of it, acknowledges `deliveries`.

        May return before the confirmation; `flush` waits for it. Where the broker is lost in between, the deliveries
        are delivered again and nothing needs to be done. An outgoing message to a reply queue that no longer exists
        is dropped without complaint, and one that cannot be sent, or that somebody's own queue refuses, with a line in
        the log.

        Raises:
            BrokerFull: (or from `flush`) a work queue refused a message; the deliveries stay unsettled.
        """

    @abc.abstractmethod
    def requeue(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        """Gives the delivery back, to be delivered again after `delay_s` at the earliest, its count one higher."""

    @abc.abstractmethod
    def defer(self, delivery: Delivery, delay_s: float) -> None:
        """Gives the delivery back for `delay_s` without counting it as a failed delivery."""

    @abc.abstractmethod
    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until every `settle` so far is confirmed, and what was deferred without a delay is given back.

        Raises:
            BrokerError: it was not, in that time or because the connection was lost; what was not settled will be
                delivered again.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Gives back what is held, uncounted where the broker can, and stops. Idempotent; wakes a waiting `receive`."""

    def dead_letter(self, delivery: Delivery, reason: str, outgoing: Sequence[Outgoing] = ()) -> None:
        """Moves the delivery to the dead letters, with why, and publishes `outgoing` (an error reply) beside it."""
        headers = dict(delivery.message.headers)
        headers.update(
            {
                REASON: reason,
                ORIGIN: delivery.queue,
                DELIVERY_COUNT: delivery.delivery_count,
                DEAD_ID: uuid.uuid4().hex,
            }
        )
        dead = replace(delivery.message, headers=headers)
        self.settle([delivery], [Outgoing(self.dead_queue, dead), *outgoing])

    @property
    @abc.abstractmethod
    def dead_queue(self) -> str:
        """The name of the dead letters' queue."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ReplyQueue(abc.ABC):
    """A private queue for replies. It outlives a broker restart, and goes when closed or long unused."""

    name: str

    @abc.abstractmethod
    def receive(self, timeout_s: float) -> list[Message]:
        """Returns the replies that have arrived, waiting up to `timeout_s` for the first; each is returned once."""

    @abc.abstractmethod
    def close(self) -> None:
        """Deletes the reply queue. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Subscription(abc.ABC):
    """Events as they happen, from the moment of subscribing; those of a time without connection are lost.

    Anybody may publish events; what `read_event` does not take reaches no subscriber.

    Attributes:
        gaps: how often events may have been lost so far: once for each time without connection.
    """

    gaps: int = 0

    @abc.abstractmethod
    def receive(self, timeout_s: float) -> list[Event]:
        """Returns the events since the last call, in order, waiting up to `timeout_s` for the first."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the subscription. Idempotent; wakes a waiting `receive`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Broker(abc.ABC):
    """A connection to the broker. Opening one declares every queue and exchange of the topology.

    All methods may be called from any thread. A lost connection is made anew with growing, jittered pauses; calls
    meanwhile wait, up to their time-outs.
    """

    topology: Topology
    remembers_stores: ClassVar[bool] = False
    """Whether it knows, after all services were stopped, which store they worked with."""

    @abc.abstractmethod
    def publish_many(self, outgoing: Sequence[Outgoing], timeout_s: float = 30.0) -> None:
        """Publishes and returns when the broker has confirmed every message: they are on disk, or replicated.

        Messages to one queue keep their order. Each gets an `enqueued_at` header.

        Raises:
            BrokerFull: a queue is at its limit; messages before the refused one may have been accepted.
            Unconfirmed: no confirmation in `timeout_s`. Publishing again with the same `message_id` is harmless.
            MessageTooLarge: a message is larger than the broker takes.
            BrokerError: the queue does not exist.
            AccessRefused: the broker's user may not publish there.
        """

    def publish(self, queue: str, message: Message, timeout_s: float = 30.0) -> None:
        """Publishes one message; see `publish_many`."""
        self.publish_many([Outgoing(queue, message)], timeout_s)

    @abc.abstractmethod
    def consume(self, queues: Sequence[str], prefetch: int, prefetch_bytes: int = PREFETCH_BYTES) -> Consumer:
        """Opens a consumer of `queues`, most urgent first, that holds up to `prefetch` unsettled messages of each.

        Their bodies come to hardly more than `prefetch_bytes`, but there may always be one.

        With a prefetch of 0 it holds nothing but what `receive` has returned: slower, and right where one message is
        hours of work that anybody else may do meanwhile.
        """

    @abc.abstractmethod
    def emit(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Tells whoever is subscribed now. Best effort: returns at once, and never raises for a broker that is away."""

    @abc.abstractmethod
    def subscribe(self, patterns: Sequence[str] = ("#",)) -> Subscription:
        """Subscribes to topics; in a pattern `*` stands for one word and `#` for any number, as in AMQP."""

    @abc.abstractmethod
    def reply_queue(self) -> ReplyQueue:
        """Opens a private queue for replies."""

    @abc.abstractmethod
    def depths(self, timeout_s: float = 10.0) -> dict[str, Depth]:
        """Returns how full every queue of the topology is, keyed by its full name.

        Raises:
            BrokerError: the broker is away, or has not answered in that time.
        """

    @abc.abstractmethod
    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Returns the oldest dead letters, leaving them where they are."""

    @abc.abstractmethod
    def retry_dead(self, dead_ids: Sequence[str] | None = None) -> list[SentBack]:
        """Sends dead letters back to where they came from with a count of zero; None means all."""

    @abc.abstractmethod
    def retry_messages(self, wanted: Callable[[str], bool]) -> list[SentBack]:
        """Does as `retry_dead` with the dead letters whose message id is wanted."""

    @abc.abstractmethod
    def drop_dead(self, dead_ids: Sequence[str] | None = None) -> int:
        """Deletes dead letters; None means all. Returns how many."""

    def remembered_store(self) -> str | None:
        """Returns which store the services of this broker work with; None where it does not know."""
        return None

    def remember_store(self, identity: str) -> None:  # noqa: B027 - for those that can
        """Remembers the store that the services work with, unless it remembers one."""

    @property
    def trouble(self) -> Trouble | None:
        """Why the broker does not serve us now, as far as it is known; None where it does."""
        return None

    @property
    @abc.abstractmethod
    def reconnects(self) -> int:
        """How often a lost connection was made anew."""

    @abc.abstractmethod
    def ping(self, timeout_s: float = 2.0) -> bool:
        """Returns whether the broker answers now."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes every consumer, reply queue and subscription of this broker, and the connection. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_event(topic: str, body: bytes) -> Event | None:
    """Returns the event that has this body; None, after one log line, where it is too large or no JSON object.

    What is nested more than 200 deep is no JSON object either.
    """
    most = MOST_HEARTBEAT_BYTES if topic == WORKER_HEARTBEAT else MOST_EVENT_BYTES
    if len(body) > most:
        fault = f"its body has {len(body)} bytes, expected at most {most}"
    else:
        try:
            payload = from_json(body, allow_inf_nan=False)
            if isinstance(payload, dict):
                return Event(topic, payload)
            fault = f"expected a JSON object (found {short_repr(payload)})"
        except ValueError as error:
            fault = f"expected a JSON object ({error})"
    _LOG.warning("passed over an event of topic %s: %s", short_repr(topic), fault)
    return None


def without_forged_reply_to(message: Message, own_queues: Collection[str]) -> Message:
    """Returns the message, without a `reply_to` by which its sender would have us publish to a queue of our own."""
    if message.reply_to not in own_queues:
        return message
    asker = short_repr(message.message_id)
    _LOG.warning("not answered: message %s names our own queue %s as reply_to", asker, message.reply_to)
    return replace(message, reply_to=None)


def requeued_copy(message: Message, now: float) -> Message:
    """Returns a dead letter's message as it was before it was buried, save that it says when it was sent back."""
    kept = {k: v for k, v in message.headers.items() if k not in {REASON, ORIGIN, DELIVERY_COUNT, DEAD_ID}}
    return replace(message, headers={**kept, RETRIED_AT: now})


def stamped(message: Message) -> Message:
    """Returns the message with the time of publishing in its headers."""
    return Message(
        message.body,
        message.content_type,
        message.message_id,
        message.correlation_id,
        message.reply_to,
        {**message.headers, ENQUEUED_AT: time.time()},
    )


def topic_matches(pattern: str, topic: str) -> bool:
    """Returns whether an AMQP topic pattern matches: `*` is one word, `#` any number of them."""

    def match(left: list[str], right: list[str]) -> bool:
        if not left:
            return not right
        if left[0] == "#":
            return any(match(left[1:], right[i:]) for i in range(len(right) + 1))
        return bool(right) and left[0] in {"*", right[0]} and match(left[1:], right[1:])

    return match(pattern.split("."), topic.split("."))

"""Looking into the dead-letter queue and taking letters out of it, one at a time and without a consumer."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pika import BasicProperties
from pika.channel import Channel
from pika.spec import Basic

from shared.broker.base import BrokerError, DeadLetter
from shared.broker.rabbitmq.codec import dead_letter_of
from shared.broker.rabbitmq.connection import Connection
from shared.broker.rabbitmq.rpc import ResourceLocked, RpcChannel
from shared.topology import Topology

_TIMEOUT_S: Final = 10.0
_REQUEUE_TIMEOUT_S: Final = 2.0
_LOCK_TIMEOUT_S: Final = 10.0
_LOCK_PAUSE_S: Final = 0.05
_BATCH: Final = 16
"""Dead letters taken in one go. A channel that closes with more than 32 commands to a quorum queue under way loses some
of them (`quorum_commands_soft_limit`), and every acknowledgement of a message got singly is one."""

_Got = tuple[int, BasicProperties, bytes]
"""A message's delivery tag, properties and body."""


class DeadLetterQueue:
    """The dead letters, for any thread but the I/O thread; one call at a time, of all processes, has the queue.

    Args:
        connection: the connection.
        topology: the queues' names.
        last_resort: the work queues' delivery limit.

    Raises:
        BrokerError: (from every call) no answer in time, or another process has the queue for too long.
    """

    def __init__(self, connection: Connection, topology: Topology, last_resort: int) -> None:
        self._connection = connection
        self._queue = topology.dead
        self._lock_queue = topology.dead_lock
        self._last_resort = last_resort
        self._lock = threading.Lock()

    def list(self, limit: int) -> list[DeadLetter]:
        """Returns the oldest letters, leaving them where they are."""
        with self._alone() as rpc:
            ready = count_ready(rpc, self._queue)
            found = [letter for _, letter in self._get_each(rpc, min(limit, ready))]
            self._requeue_all(rpc, ready)
            return found

    def take(self, wanted: Callable[[DeadLetter], bool], handle: Callable[[Sequence[DeadLetter]], None]) -> int:
        """Handles the wanted letters, some at a time, and acknowledges them; the others stay. Returns how many."""
        taken = 0
        with self._alone() as rpc:
            tags: list[int] = []
            letters: list[DeadLetter] = []

            def finish() -> None:
                nonlocal taken
                handle(letters)
                for tag in tags:
                    rpc.cast(functools.partial(Channel.basic_ack, delivery_tag=tag))
                taken += len(tags)
                tags.clear()
                letters.clear()

            ready = count_ready(rpc, self._queue)
            for tag, letter in self._get_each(rpc, ready):
                if wanted(letter):
                    tags.append(tag)
                    letters.append(letter)
                if len(tags) == _BATCH:
                    finish()
            finish()
            self._requeue_all(rpc, ready - taken)
        return taken

    @contextlib.contextmanager
    def _alone(self) -> Iterator[RpcChannel]:
        """Opens a channel while no other process goes through the letters: what one holds, no other finds.

        The lock is an exclusive queue, which goes with this channel or this connection, as does what they hold.
        """
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        with self._lock, contextlib.ExitStack() as channels:
            while True:
                rpc = channels.enter_context(RpcChannel(self._connection, _TIMEOUT_S))
                try:
                    rpc.call(self._claim)
                    break
                except ResourceLocked:
                    if time.monotonic() > deadline:
                        raise BrokerError(
                            f"another program has worked on the failed messages for {_LOCK_TIMEOUT_S:g} s; "
                            "try again later"
                        ) from None
                    time.sleep(_LOCK_PAUSE_S)  # the broker tells nobody that a queue is gone
            yield rpc
            rpc.call(self._release)

    def _claim(self, channel: Channel, answer: Callable[[None], None]) -> None:
        """Declares the lock and consumes from it, as a queue of this kind goes with its last consumer."""

        def consume(_: object) -> None:
            channel.basic_consume(self._lock_queue, lambda *_: None, auto_ack=True, callback=lambda _: answer(None))

        channel.queue_declare(self._lock_queue, exclusive=True, auto_delete=True, callback=consume)

    def _release(self, channel: Channel, answer: Callable[[None], None]) -> None:
        """Deletes the lock: left to the closing of the channel, it might go while the next call declares it."""
        channel.queue_delete(self._lock_queue, callback=lambda _: answer(None))

    def _get_each(self, rpc: RpcChannel, limit: int) -> Iterator[tuple[int, DeadLetter]]:
        """Gets letters with their delivery tags, without acknowledging them."""
        getter = _Getter(rpc, self._queue)
        for _ in range(limit):
            got = getter.get()
            if got is None:
                return
            tag, properties, body = got
            yield tag, dead_letter_of(properties, body, last_resort=self._last_resort)

    def _requeue_all(self, rpc: RpcChannel, expected: int) -> None:
        """Returns everything unacknowledged to the front of the queue, in its order, and waits until it is there again.

        The broker does not answer a `basic.nack`; a caller who looked at the letters and now wants to move them must
        not find the queue empty.
        """
        rpc.cast(lambda channel: channel.basic_nack(0, multiple=True, requeue=True))
        deadline = time.monotonic() + _REQUEUE_TIMEOUT_S
        while count_ready(rpc, self._queue) < expected and time.monotonic() < deadline:
            time.sleep(0.005)


def count_ready(rpc: RpcChannel, queue: str) -> int:
    """Returns how many messages wait in the queue."""

    def ask(channel: Channel, answer: Callable[[int], None]) -> None:
        channel.queue_declare(queue, passive=True, callback=lambda frame: answer(int(frame.method.message_count or 0)))

    return rpc.call(ask)


class _Getter:
    """Gets messages of a queue one at a time, without acknowledging them."""

    def __init__(self, rpc: RpcChannel, queue: str) -> None:
        self._rpc = rpc
        self._queue = queue
        self._answer: Callable[[_Got | None], None] | None = None
        rpc.cast(lambda channel: channel.add_callback(self._on_empty, [Basic.GetEmpty], one_shot=False))

    def get(self) -> _Got | None:
        """Returns the next message; None where there is none."""

        def ask(channel: Channel, answer: Callable[[_Got | None], None]) -> None:
            self._answer = answer
            channel.basic_get(self._queue, self._on_message)

        return self._rpc.call(ask)

    def _on_message(self, _: Channel, method: Basic.GetOk, properties: BasicProperties, body: bytes) -> None:
        if self._answer is not None:
            self._answer((int(method.delivery_tag or 0), properties, body))

    def _on_empty(self, _: object) -> None:
        if self._answer is not None:
            self._answer(None)

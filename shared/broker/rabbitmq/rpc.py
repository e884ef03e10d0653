"""A channel for requests that wait for their answers: declaring, looking into a queue, moving dead letters."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker, NoFreeChannels

from shared.broker.base import BrokerError
from shared.broker.rabbitmq.connection import Connection
from shared.errors import GenderlineError

T = TypeVar("T")


class ResourceLocked(BrokerError):
    """A queue of this name belongs to another connection for as long as that uses it."""


class RpcChannel:
    """A channel whose requests wait for the broker's answer; for any thread but the I/O thread.

    Args:
        connection: the connection.
        timeout_s: how long to wait for a connection, and for each answer.

    Raises:
        BrokerError: (from every call, too) no answer in time, or the broker refused and closed the channel.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._channel: Channel | None = None
        self._waiting: Future[Any] = Future()
        self._abandoned = False

    def __enter__(self) -> Self:
        self._connection.wait_up(self._timeout_s)

        def start() -> None:
            transport = self._connection.transport
            if transport is None or not transport.is_open:
                self._fail("the connection was lost")
                return
            try:
                transport.channel(on_open_callback=opened)
            except NoFreeChannels:
                self._fail("it has not answered for so long that no channel is free")

        def opened(channel: Channel) -> None:
            if self._abandoned:
                channel.close()
                return
            self._channel = channel
            channel.add_on_close_callback(on_closed)
            self._waiting.set_result(None)

        def on_closed(_: Channel, error: Exception) -> None:
            if isinstance(error, ChannelClosedByBroker) and error.reply_code == 403:
                self._fail_with(self._connection.refused(error, "read"))
            elif isinstance(error, ChannelClosedByBroker) and error.reply_code == 405:
                self._fail_with(ResourceLocked(error.reply_text))
            else:
                self._fail(str(error))

        try:
            self._await(start)
        except BrokerError:
            self._connection.call(self._close)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.call(self._close)

    def call(self, start: Callable[[Channel, Callable[[T], None]], None]) -> T:
        """Runs `start(channel, answer)` in the I/O thread and returns what it gives to `answer`, then or later."""
        waiting: Future[T] = Future()
        self._waiting = waiting

        def answer(value: T) -> None:
            if not waiting.done():
                waiting.set_result(value)

        def run() -> None:
            if self._channel is None or not self._channel.is_open:
                self._fail("the connection was lost")
            else:
                start(self._channel, answer)

        result: T = self._await(run)
        return result

    def cast(self, what: Callable[[Channel], None]) -> None:
        """Runs `what(channel)` in the I/O thread without waiting, for methods that the broker does not answer."""

        def run() -> None:
            if self._channel is not None and self._channel.is_open:
                what(self._channel)

        self._connection.call(run)

    def _close(self) -> None:
        """Closes the channel, now or as soon as the broker has opened it: in the I/O thread."""
        self._abandoned = True
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _await(self, run: Callable[[], None]) -> Any:
        self._connection.call(run)
        try:
            return self._waiting.result(self._timeout_s)
        except TimeoutError:
            connection = self._connection
            raise BrokerError(
                f"no answer from RabbitMQ at {connection.address} in {self._timeout_s:g} s{connection.status_suffix}"
            ) from None

    def _fail(self, why: str) -> None:
        self._fail_with(BrokerError(f"RabbitMQ at {self._connection.address}: {why}"))

    def _fail_with(self, error: GenderlineError) -> None:
        if not self._waiting.done():
            self._waiting.set_exception(error)

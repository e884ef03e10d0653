"""The connection to RabbitMQ: one thread that owns it, and makes it anew when it is lost.

pika is not thread-safe, so everything that touches the connection runs in that thread. Other threads hand it work with
`Connection.call`. Publisher, consumers, reply queues and subscriptions are `Component`s: each is set up on every new
connection and told when that is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import pika
from pika import spec
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed, AMQPConnectorPhaseErrorBase
from pika.channel import Channel
from pika.exceptions import (
    AMQPConnectionError,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionWrongStateError,
    NoFreeChannels,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from shared.broker.base import Access, AccessRefused, BrokerClosed, BrokerError, Trouble
from shared.broker.rabbitmq.login import connection_parameters, shared_secret
from shared.broker.rabbitmq.transport import BatchingConnection

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_STABLE_S: Final = 2.0
"""A connection that lived shorter than this does not reset the growing pauses."""
_CLOSE_TIMEOUT_S: Final = 5.0
_REFUSED: Final = re.compile(r"(?:(?P<operation>configure|write|read) )?access to (?P<kind>\w+) '(?P<name>[^']*)'")


class ConnectionLost(BrokerError):
    """The connection went away before the broker had confirmed."""


class Component(Protocol):
    """Lives on the connection. Both methods are called in the I/O thread only."""

    def on_connected(self, transport: BatchingConnection) -> None:
        """Sets itself up on a new connection; all queues are declared by then."""

    def on_disconnected(self, error: Exception) -> None:
        """Forgets the lost connection; `error` is a `BrokerClosed` where no other will follow."""


class Connection:
    """A connection to RabbitMQ that is made anew whenever it is lost.

    Args:
        url: `amqp://…` or `amqps://…`, of one host or several, with pika's URL parameters.
        access: TLS and login.
        any_exchange: one that every user may write to, and that has no queue for the routing key "".
        declare: declares the queues on a channel and calls back when all are; refused, the broker closes the channel.

    Attributes:
        transport: pika's connection, perhaps still being made; None between two. For the I/O thread only.
        closed: for good.
        forbidden: a permission that a service cannot do without, and lacks.
        on_forbidden: called when that has become known.
        secret: shared by all who connect as this user.
        frame_bytes: the largest frame that the broker takes, and so the most that a message's headers may be.

    Raises:
        ValueError: the URL is malformed, or a parameter of it.
    """

    def __init__(
        self, url: str, access: Access, any_exchange: str, declare: Callable[[Channel, Callable[[], None]], None]
    ) -> None:
        self._hosts = connection_parameters(url, access)
        self._turn = random.randrange(len(self._hosts))  # so that many processes share the nodes
        for parameters in self._hosts:
            parameters.client_properties = {"connection_name": f"genderline {socket.gethostname()} {os.getpid()}"}
        self.secret = shared_secret(self._hosts[0], access)
        self._passive = access.declare == "passive"
        self._any_exchange = any_exchange
        self._declare = declare
        self._loop = IOLoop()
        self._components: list[Component] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False
        self.transport: BatchingConnection | None = None
        self._state = threading.Condition()
        self._is_up = False
        self._refused = False
        self._last_error = "no connection yet"
        self._ups = 0
        self._failures = 0
        self._up_since = 0.0
        self.closed = False
        self.frame_bytes = spec.FRAME_MAX_SIZE
        self.forbidden: AccessRefused | None = None
        self.on_forbidden: list[Callable[[], None]] = []
        self._blocked = ""
        self._shutting = False
        self._thread = threading.Thread(target=self._run, name="rabbitmq", daemon=True)

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._parameters.host}:{self._parameters.port}"

    @property
    def _parameters(self) -> pika.ConnectionParameters:
        return self._hosts[self._turn % len(self._hosts)]

    @property
    def reconnects(self) -> int:
        """How often a lost connection was made anew."""
        return max(0, self._ups - 1)

    @property
    def status_suffix(self) -> str:
        """What is wrong with the connection, as the end of a sentence; empty where nothing is known."""
        trouble = self.trouble
        return "" if trouble is None else f"; {trouble.text}"

    @property
    def trouble(self) -> Trouble | None:
        """What is wrong with the connection now."""
        if self.forbidden is not None:
            return Trouble("forbidden", str(self.forbidden))
        if not self._is_up:
            return Trouble("disconnected", f"not connected: {self._last_error}")
        if self._blocked:
            return Trouble("blocked", f"RabbitMQ takes no messages: {self._blocked}")
        return None

    def open(self, timeout_s: float) -> None:
        """Connects, trying again until `timeout_s` is over.

        Raises:
            BrokerError: it could not; wrong credentials and queues declared otherwise are reported at once.
        """
        self._thread.start()
        self.call(self._connect)
        with self._state:
            self._state.wait_for(lambda: self._is_up or self._refused, timeout_s)
            if self._is_up:
                return
        self.close()
        raise BrokerError(f"cannot use RabbitMQ at {self.address}: {self._last_error}")

    def wait_up(self, timeout_s: float) -> None:
        """Waits for a connection.

        Raises:
            BrokerError: there was none in that time.
            BrokerClosed: there will be none.
        """
        with self._state:
            self._state.wait_for(lambda: self._is_up or self.closed, timeout_s)
            if self.closed:
                raise BrokerClosed("the broker was closed")
            if not self._is_up:
                raise BrokerError(f"no connection to RabbitMQ at {self.address} in {timeout_s:g} s{self.status_suffix}")

    def call(self, work: Callable[[], None]) -> None:
        """Runs `work` in the I/O thread, in the order of the calls; one wake-up serves many of them."""
        self._calls.append(work)
        if not self._woken:
            self._woken = True
            self._loop.add_callback_threadsafe(self._run_calls)

    def close(self) -> None:
        """Closes the connection and ends the thread. Idempotent."""
        with self._state:
            first, self.closed = not self.closed, True
            self._state.notify_all()
        if first:
            self.call(self._shut)
        self._thread.join()

    # -- in the I/O thread

    def attach(self, component: Component) -> None:
        """Adds a component, setting it up at once if there is a connection."""
        self._components.append(component)
        if self._is_up and self.transport is not None:
            component.on_connected(self.transport)

    def detach(self, component: Component) -> None:
        """Removes a component."""
        with contextlib.suppress(ValueError):
            self._components.remove(component)

    def call_later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Runs `work` in the I/O thread after a pause."""
        self._loop.call_later(delay_s, work)

    def ask_for_alarms(self) -> None:
        """Publishes a message that no queue gets: RabbitMQ tells only publishers of an alarm (`connection.blocked`).

        From then on it reads nothing of this connection until the alarm ends, so channels must be open before.
        """

        def publish_nothing(channel: Channel) -> None:
            channel.basic_publish(self._any_exchange, "", b"")
            channel.close()

        if self.transport is not None and self.transport.is_open:
            with contextlib.suppress(NoFreeChannels):  # then the next message that is published asks
                self.transport.channel(on_open_callback=publish_nothing)

    def forbid(self, error: AccessRefused) -> None:
        """Notes that a service cannot do its work as this user: its consumers raise that."""
        if self.forbidden is None:
            self.forbidden = error
            log.error("%s", error)
            for tell in list(self.on_forbidden):
                tell()

    def refused(self, error: ChannelClosedByBroker, operation: str) -> AccessRefused:
        """Returns the error for a closed channel of reply code 403.

        Args:
            error: what the broker says.
            operation: what was tried, in RabbitMQ's words: `configure`, `write` or `read`.
        """
        found = _REFUSED.search(error.reply_text)
        what = f"{found['kind']} {found['name']!r}" if found else error.reply_text
        user = getattr(self._parameters.credentials, "username", None) or "of the client certificate"
        return AccessRefused(
            f"the user {user} has no {(found and found['operation']) or operation} permission on {what} of RabbitMQ at "
            f"{self.address}; docs/rabbitmq.md lists what each service and the command line need"
        )

    def restart(self, reason: str) -> None:
        """Gives the connection up and makes a new one, which declares every queue again."""
        log.warning("reconnecting to RabbitMQ at %s: %s", self.address, reason)
        if self.transport is not None:
            with contextlib.suppress(ConnectionWrongStateError):
                self.transport.close(320, reason[:200])

    def _run(self) -> None:
        while True:
            try:
                self._loop.start()
                break
            except Exception:
                log.exception("a bug in handling what RabbitMQ sent")
                self.restart("an unexpected error")
        self._loop.close()

    def _run_calls(self) -> None:
        self._woken = False
        transport = self.transport
        with contextlib.nullcontext() if transport is None else transport.batch():
            while self._calls:
                work = self._calls.popleft()
                try:
                    work()
                except Exception:
                    log.exception("a bug in a callback of the connection to RabbitMQ")

    def _connect(self) -> None:
        if self._shutting:
            return
        self.transport = BatchingConnection(
            self._parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
            custom_ioloop=self._loop,
        )

    def _on_open(self, transport: Any) -> None:
        transport.add_on_connection_blocked_callback(self._on_blocked)
        transport.add_on_connection_unblocked_callback(self._on_unblocked)
        transport.channel(on_open_callback=self._on_setup_channel)

    def _on_blocked(self, _: object, frame: Any) -> None:
        self._blocked = str(frame.method.reason)
        log.warning("RabbitMQ at %s takes no messages: %s", self.address, self._blocked)

    def _on_unblocked(self, *_: object) -> None:
        self._blocked = ""
        log.info("RabbitMQ at %s takes messages again", self.address)

    def _on_setup_channel(self, channel: Channel) -> None:
        def refused(_: Channel, error: Exception) -> None:
            if not isinstance(error, ChannelClosedByBroker):
                return
            if error.reply_code == 403:
                self._refuse(f"{self.refused(error, 'configure')}, or is declared by an administrator")
                self.restart(self._last_error)
            elif error.reply_code == 404 and self._passive:
                self._refuse(f"{error.reply_text}; import what `genderline definitions` prints")
                self.restart(self._last_error)
            else:
                self._refuse(
                    f"{error.reply_text}. A queue or exchange was declared before with other arguments (another "
                    "GENDERLINE_QUEUE_LIMIT or GENDERLINE_DELIVERY_LIMIT, an older version, or by hand): set them "
                    "back, choose another GENDERLINE_QUEUE_PREFIX, or delete it once it is empty"
                )
                self.restart(self._last_error)

        def declared() -> None:
            channel.close()
            self._on_up()

        channel.add_on_close_callback(refused)
        self._declare(channel, declared)

    def _on_up(self) -> None:
        transport = self.transport
        if transport is None or not transport.is_open:
            return
        self._up_since = time.monotonic()
        self.frame_bytes = transport.params.frame_max or spec.FRAME_MAX_SIZE
        self._refused = False
        if self._ups:
            log.info("connected to RabbitMQ at %s again", self.address)
        for component in list(self._components):
            component.on_connected(transport)
        with self._state:
            self._ups += 1
            self._is_up = True
            self._state.notify_all()

    def _on_lost(self, transport: Any, error: BaseException) -> None:
        if transport is not self.transport:
            return
        self.transport = None
        self._blocked = ""
        address = self.address
        self._turn += 1  # another node may be there
        was_up, self._is_up = self._is_up, False
        cause = _cause(error)
        if self._shutting:
            self._loop.stop()
            return
        if isinstance(cause, AuthenticationError | ProbableAuthenticationError | ProbableAccessDeniedError):
            self._refuse(f"it refused the user or the virtual host: {cause}")
        elif not self._refused:
            self._last_error = _describe(cause)
        if was_up:
            log.warning("lost the connection to RabbitMQ at %s: %s", address, self._last_error)
        for component in list(self._components):
            component.on_disconnected(cause)
        if was_up and time.monotonic() - self._up_since >= _STABLE_S:
            self._failures = 0
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self.call_later(pause * random.uniform(0.5, 1.0), self._connect)

    def _refuse(self, why: str) -> None:
        with self._state:
            self._refused = True
            self._last_error = why
            self._state.notify_all()

    def _shut(self) -> None:
        self._shutting = True
        for component in list(self._components):
            component.on_disconnected(BrokerClosed("the broker was closed"))
        self._components.clear()
        self._is_up = False
        transport = self.transport
        if transport is None:
            self._loop.stop()
            return

        def give_up() -> None:
            transport.abort()
            self.call(self._loop.stop)  # after the socket is closed

        self.call_later(_CLOSE_TIMEOUT_S, give_up)
        with contextlib.suppress(ConnectionWrongStateError):
            transport.close()


def _cause(error: BaseException) -> Exception:
    """Returns the innermost of the errors that pika wraps around a failed connection."""
    while True:
        if isinstance(error, AMQPConnectionWorkflowFailed):
            error = error.exceptions[-1]
        elif isinstance(error, AMQPConnectorPhaseErrorBase):
            error = error.exception
        elif isinstance(error, AMQPConnectionError) and error.args and isinstance(error.args[0], BaseException):
            error = error.args[0]
        else:
            return error if isinstance(error, Exception) else ConnectionLost(str(error))


def _describe(cause: Exception) -> str:
    """Returns what went wrong, for people."""
    text = str(cause) or repr(cause)
    # pika's word for it names no side.
    return "the server closed the connection" if "Transport indicated EOF" in text else text

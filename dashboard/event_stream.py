"""The broker's events as server-sent events: one subscription for all open streams, and a buffer to resume from."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.broker.base import Broker, BrokerClosed, Event, Subscription, topic_matches
from shared.errors import Retryable, short_repr

RESYNC: Final = "resync"
"""Topic of our own: events were missed, so whoever listens should look at the present state again."""
AWAY: Final = "away"
"""Topic of our own: the broker does not answer. `RESYNC` says when it is back."""

_RECEIVE_S: Final = 1.0
_SILENT_S: Final = 3.0
"""Every service beats more often, this one too. After such a silence the broker is asked whether it still answers."""
_PAUSE_S: Final = 1.0
_CLIENT_CHECK_S: Final = 1.0
_BUFFERED_BYTES: Final = 16 * 2**20
"""Of events that are remembered, together."""
_RETRY_MS: Final = 1000
_NUMBER: Final = re.compile("[0-9]{1,18}")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _BufferedEvent:
    number: int
    topic: str
    text: str  # as it goes over the wire


def _as_text(topic: str) -> str:
    """Returns an event without an id, as it is sent: no stream can resume from it."""
    return f"event: {topic}\ndata: {{}}\n\n"


class EventHub:
    """Listens to the broker in one thread and hands every event to every open stream.

    Args:
        broker: where events come from; it may go away and come back.
        listeners: called with each event, in the listening thread; they must be quick and must not raise.
        buffered: events remembered for streams that come back.
        max_streams: streams open at once.
        heartbeat_s: seconds of silence after which a stream gets a comment, so that proxies leave it open and a
            client that is gone is noticed.
    """

    def __init__(
        self,
        broker: Broker,
        listeners: Sequence[Callable[[Event], None]] = (),
        *,
        buffered: int = 4096,
        max_streams: int = 64,
        heartbeat_s: float = 15.0,
    ) -> None:
        self._broker = broker
        self._listeners = tuple(listeners)
        self._max_streams = max_streams
        self.heartbeat_s = heartbeat_s
        # A number alone would mean something else after a restart.
        self._boot = uuid.uuid4().hex[:8]
        self._buffer: deque[_BufferedEvent] = deque(maxlen=buffered)
        self._buffered_bytes = 0
        self._number = 0
        self._changed = threading.Condition()
        self._streams = 0
        self._away = False
        self._stop = threading.Event()
        self._subscribed = threading.Event()
        self._subscription: Subscription | None = None
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)

    def start(self, timeout_s: float = 5.0) -> None:
        """Starts listening; returns once subscribed, or after `timeout_s` with the broker away."""
        self._thread.start()
        self._subscribed.wait(timeout_s)

    def end_streams(self) -> None:
        """Ends all streams, and lets no event in any more; returns at once."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all streams and stops listening. Idempotent."""
        self.end_streams()
        if (subscription := self._subscription) is not None:
            subscription.close()  # wakes the listener
        if self._thread.is_alive():
            self._thread.join()

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._streams

    @property
    def is_listening(self) -> bool:
        """Whether the listening thread lives, so that events reach the pages once the broker answers."""
        return self._thread.is_alive()

    @property
    def away(self) -> bool:
        """Whether the broker does not answer at present, as far as is known."""
        return self._away

    def open_stream(
        self,
        patterns: Sequence[str],
        last_event_id: str | None = None,
        client_gone: Callable[[], bool] = lambda: False,
    ) -> Stream:
        """Opens a stream of the events whose topic matches one of `patterns`.

        Args:
            patterns: as in AMQP; `#` for all.
            last_event_id: the last id that the client has seen: what came since is sent first, as far as it is
                remembered, else a `resync`. An `away` comes first where the broker does not answer.
            client_gone: asked every second, so that a closed page soon frees its place.

        Raises:
            Retryable: as many streams are open as may be.
        """
        with self._changed:
            if self._streams >= self._max_streams:
                raise Retryable(f"{self._streams} event streams are open, the most there may be; close some pages")
            start = self._number
            missed = False
            if last_event_id:
                boot, _, number = last_event_id.partition("-")
                oldest = self._number - len(self._buffer)
                known = boot == self._boot and _NUMBER.fullmatch(number) and oldest <= int(number) <= self._number
                start, missed = (int(number), False) if known else (start, True)
            first = ([RESYNC] if missed else []) + ([AWAY] if self._away else [])
            self._streams += 1
        return Stream(self, patterns, start, first, client_gone)

    # -- for `Stream`

    def _after(self, number: int, timeout_s: float) -> list[_BufferedEvent] | None:
        """Returns the events after `number`, waiting for the first; none after the time-out, None once closed.

        Where some of them are no longer remembered, a `RESYNC` stands in their place.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._number > number or self._stop.is_set(), timeout_s)
            if self._stop.is_set():
                return None
            kept = len(self._buffer)
            new = min(self._number - number, kept)
            events = [self._buffer[i] for i in range(kept - new, kept)]
            if number < self._number - kept:
                events.insert(0, _BufferedEvent(self._number - kept, RESYNC, _as_text(RESYNC)))
            return events

    def _release_stream(self) -> None:
        with self._changed:
            self._streams -= 1

    # -- the listening thread

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                gaps = 0
                with self._broker.subscribe() as subscription:
                    self._subscription = subscription
                    self._subscribed.set()
                    self._set_reachable(True)
                    heard = time.monotonic()
                    while not self._stop.is_set():
                        events = subscription.receive(_RECEIVE_S)
                        for event in events:
                            self._dispatch(event)
                        if subscription.gaps > gaps:
                            gaps = subscription.gaps
                            self._set_reachable(True, missed=True)
                        # A subscription outlives its connection, and is silent until there is a new one.
                        if events or time.monotonic() - heard > _SILENT_S:
                            self._set_reachable(bool(events) or self._broker.ping())
                            heard = time.monotonic()
            except BrokerClosed:
                return
            except Retryable as error:
                _LOG.warning("no events for now: %s", error)
                self._set_reachable(False)
                self._stop.wait(_PAUSE_S)
            except Exception:  # a bug: pages without events for a second are better than without any for good
                _LOG.exception("listening to events failed; trying again")
                self._set_reachable(False)
                self._stop.wait(_PAUSE_S)

    def _set_reachable(self, answers: bool, *, missed: bool = False) -> None:
        """Takes note of whether the broker answers, and tells the streams where that is news or events were missed."""
        with self._changed:
            if self._away == answers or missed:
                self._away = not answers
                self._add(RESYNC if answers else AWAY, {})

    def _dispatch(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # anybody may publish events: none may end the listening
                _LOG.exception("an event of topic %s is not taken", short_repr(event.topic))
        self._add(event.topic, event.payload)

    def _add(self, topic: str, payload: dict[str, Any]) -> None:
        data = json.dumps(payload)
        with self._changed:
            self._number += 1
            text = f"id: {self._boot}-{self._number}\nevent: {topic}\ndata: {data}\n\n"
            if len(self._buffer) == self._buffer.maxlen:
                self._buffered_bytes -= len(self._buffer.popleft().text)
            self._buffer.append(_BufferedEvent(self._number, topic, text))
            self._buffered_bytes += len(text)
            while self._buffered_bytes > _BUFFERED_BYTES:
                self._buffered_bytes -= len(self._buffer.popleft().text)
            self._changed.notify_all()


class Stream(Iterator[str]):
    """One client's stream, in the wire format of server-sent events. `close` must be called; WSGI servers do."""

    def __init__(
        self,
        hub: EventHub,
        patterns: Sequence[str],
        start: int,
        first: Sequence[str],
        client_gone: Callable[[], bool],
    ) -> None:
        self._hub = hub
        self._client_gone = client_gone
        self._patterns = tuple(patterns)
        self._seen = start
        self._open = True
        self._lock = threading.Lock()
        self._first: str | None = f"retry: {_RETRY_MS}\n\n" + "".join(map(_as_text, first))

    def __next__(self) -> str:
        """Waits for events, or for the time of the next heartbeat."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        quiet_until = time.monotonic() + self._hub.heartbeat_s
        while self._open and not self._client_gone():
            quiet_s = quiet_until - time.monotonic()
            if quiet_s <= 0:
                return ": still here\n\n"
            events = self._hub._after(self._seen, min(quiet_s, _CLIENT_CHECK_S))
            if events is None:
                break
            if not events:
                continue
            self._seen = events[-1].number
            text = "".join(
                event.text
                for event in events
                if event.topic in {RESYNC, AWAY}
                or any(topic_matches(pattern, event.topic) for pattern in self._patterns)
            )
            if text:
                return text
        raise StopIteration

    def close(self) -> None:
        """Frees the stream's place. Idempotent."""
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._hub._release_stream()

"""Which services run: what their heartbeats tell to somebody who listens for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Self

from shared.broker.base import Broker, BrokerClosed
from shared.events import WorkerHeartbeat, parse_event
from shared.topology import WORKER_HEARTBEAT

_TAKE_S = 1.0
MOST_WORKERS: Final = 1000
"""Processes that are remembered: anybody may publish heartbeats under any number of names."""


class HeartbeatListener:
    """Listens for heartbeats in a thread of its own, from the moment it is made. A context manager.

    Args:
        broker: where they come from; to be closed after this object.
    """

    def __init__(self, broker: Broker) -> None:
        self._subscription = broker.subscribe([WORKER_HEARTBEAT])
        self._workers: dict[str, dict[str, Any]] = {}
        self._heard = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name="heartbeat listener", daemon=True)
        self._thread.start()

    def workers(self, service: str | None = None) -> list[dict[str, Any]]:
        """Returns the last heartbeat of each process, by service and then by name; of one service or of all."""
        with self._heard:
            found = [beat for beat in self._workers.values() if service in {None, beat["service"]}]
        return sorted(found, key=lambda beat: (str(beat["service"]), str(beat["worker"])))

    def wait_until(self, enough: Callable[[Collection[dict[str, Any]]], bool], timeout_s: float) -> None:
        """Waits until the last heartbeats of all processes are enough, or the time is up."""
        with self._heard:
            self._heard.wait_for(lambda: enough(self._workers.values()), timeout_s)

    def wait_for(self, services: Iterable[str], timeout_s: float) -> set[str]:
        """Waits until every one of `services` was heard, and returns those that were not in time."""
        wanted = set(services)
        self.wait_until(lambda beats: wanted <= {beat["service"] for beat in beats}, timeout_s)
        return wanted - {beat["service"] for beat in self.workers()}

    def close(self) -> None:
        """Stops listening. Idempotent."""
        self._closed = True
        self._subscription.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        while not self._closed:
            try:
                events = self._subscription.receive(_TAKE_S)
            except BrokerClosed:
                return
            with self._heard:
                for event in events:
                    beat = parse_event(event)
                    if isinstance(beat, WorkerHeartbeat):
                        self._workers.pop(beat.worker, None)
                        self._workers[beat.worker] = beat.as_dict()
                        while len(self._workers) > MOST_WORKERS:
                            del self._workers[next(iter(self._workers))]
                self._heard.notify_all()

"""Every process tells the others that it lives, what it is and what it does, every two seconds."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from shared.broker.base import Broker
from shared.clock import now_iso
from shared.events import WorkerHeartbeat
from shared.store.base import Store

HEARTBEAT_S: Final = 2.0


class Heartbeat:
    """Emits `worker.heartbeat` events.

    Args:
        broker: where to.
        service: `trainer`, `inference` or `dashboard`.
        state: returns what changes: `version`, `provider`, `busy`, `images_per_second`, ….
        store: which the process works with.
    """

    def __init__(self, broker: Broker, service: str, state: Callable[[], Mapping[str, Any]], store: Store) -> None:
        self._broker = broker
        self._state = state
        self._store = store
        self._fixed = {
            "schema": 1,
            "service": service,
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": now_iso(),
            "store": store.identity,
        }

    def run(self, stop: threading.Event) -> None:
        """Beats until `stop`."""
        while True:
            broker, store = self._broker.trouble, self._store.trouble
            told = {"broker_trouble": broker and broker.text, "store_trouble": store and store.text}
            state = {**self._fixed, **told, **self._state()}
            self._broker.emit(*WorkerHeartbeat.model_validate(state).wire())
            if stop.wait(HEARTBEAT_S):
                return

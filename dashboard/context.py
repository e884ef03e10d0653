"""What every view works with, in one place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from flask import current_app

from dashboard.event_stream import EventHub
from dashboard.incoming import IncomingUploads
from dashboard.store_cache import StoreCache
from dashboard.tasks.samples import SampleTask
from dashboard.tasks.scoring import ScoringTask
from dashboard.workers import WorkerStates
from shared.broker.base import Broker
from shared.client import Client
from shared.errors import Retryable
from shared.runtime.settings import Settings
from shared.store.base import Store
from shared.store.identity import watch_store
from shared.telemetry.heartbeat import Heartbeat

EXTENSION = "genderline"


@dataclass
class Dashboard:
    """The parts behind the views. `start` and `close` belong to whoever made the app.

    Attributes:
        recent_predictions: the newest ones made through this dashboard, newest first.
    """

    broker: Broker
    store: Store
    settings: Settings
    client: Client
    store_cache: StoreCache
    workers: WorkerStates
    event_hub: EventHub
    uploads: IncomingUploads
    samples: SampleTask
    scoring: ScoringTask
    recent_predictions: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=50))
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Starts listening to events, and telling the others that this process lives."""
        self.event_hub.start()
        heartbeat = Heartbeat(
            self.broker, "dashboard", lambda: {"version": None, "provider": None, "busy": None}, self.store
        )
        self._threads = [
            threading.Thread(target=heartbeat.run, args=(self._stop,), name="heartbeat", daemon=True),
            threading.Thread(target=watch_store, args=(self.store, self._stop), name="store", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def runs_ahead(self) -> int:
        """Returns how many runs wait in the queue before a new one; 0 while the broker is away."""
        try:
            return self.broker.depths()[self.broker.topology.datasets].ready
        except Retryable:
            return 0

    def refusals(self, versions: Collection[int]) -> dict[int, str]:
        """Returns why workers do not serve a version, of those that are refused: all of them, or some that live now."""
        return {
            **{version: reason for version, reason in self.workers.refused().items() if version in versions},
            **self.client.registry.refusals(versions),
        }

    def close(self) -> None:
        """Ends all event streams and threads; broker and store stay open. Idempotent."""
        self._stop.set()
        self.event_hub.close()
        self.samples.close()
        self.scoring.close()
        self.store_cache.close()
        for thread in self._threads:
            thread.join()


def dashboard() -> Dashboard:
    """Returns the parts of the app that handles the present request."""
    found: Dashboard = current_app.extensions[EXTENSION]
    return found

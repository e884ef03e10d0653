"""The inference loops in this process, on a real broker and store, for tests that look inside or inject a fault."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from inference.jobs.open import JobHandler, OpenArchive
from inference.jobs.shards import ShardHandler
from inference.model.champion import Models
from inference.model.decoder import Decoder
from inference.model.predictor import Predictor
from inference.monitoring.recent_predictions import RecentPredictions
from inference.monitoring.shadow import Shadow
from inference.monitoring.throughput import ThroughputMeter
from inference.predictions import PredictionHandler
from shared.archives.archive import ArchiveLimits
from shared.broker import open_broker
from shared.broker.base import Broker, ReplyQueue
from shared.faces.decode import ImageLimits
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from shared.telemetry.metrics import InferenceMetrics
from shared.topology import Topology
from shared.worker.child import ForkServer
from shared.worker.loop import ConsumerLoop
from shared.worker.retry import RetryPolicy
from tests.support.builders.models import ModelBuilder

Work = Callable[[threading.Event], None]


@dataclass
class Loops:
    """What one worker process is made of.

    Attributes:
        predictor: set another one before a loop is made to inject a fault.
    """

    broker: Broker
    store: FileStore
    settings: Settings
    registry: CollectorRegistry
    metrics: InferenceMetrics
    models: Models
    throughput: ThroughputMeter
    recent_predictions: RecentPredictions
    shadow: Shadow
    predictor: Predictor
    first_pause_s: float = 1.0
    missing_for_s: float = 60.0

    @property
    def builder(self) -> ModelBuilder:
        return ModelBuilder(self.store)

    def predictions(self) -> PredictionHandler:
        return PredictionHandler(self.models, self.predictor, self.metrics, self.throughput, self.recent_predictions)

    def interactive(
        self,
        handler: PredictionHandler | None = None,
        *,
        batch_delay_s: float = 0.0,
        on_idle: Callable[[bool], None] | None = None,
    ) -> ConsumerLoop:
        return ConsumerLoop(
            self.broker,
            {self.broker.topology.predictions: handler or self.predictions()},
            RetryPolicy(self.settings.delivery_limit, self.metrics.dead_letters, first_pause_s=self.first_pause_s),
            prefetch=self.settings.prefetch,
            batch_size=self.settings.batch_size,
            gather_s=batch_delay_s,
            wait_until_ready=self.models.wait_for_champion,
            on_idle=on_idle or self.shadow.on_idle,
            queue_wait=self.metrics.queue_wait,
        )

    def shards(
        self, archives: OpenArchive | None = None, *, interactive_recently: Callable[[], bool] = lambda: False
    ) -> ShardHandler:
        return ShardHandler(
            self.store,
            self.models,
            self.predictor,
            archives or self.archives(),
            self.throughput,
            self.broker.emit,
            self.broker.topology.shards,
            lease_s=self.settings.lease_s,
            interactive_recently=interactive_recently,
            missing_for_s=self.missing_for_s,
        )

    def archives(self) -> OpenArchive:
        return OpenArchive(self.store, ArchiveLimits.from_settings(self.settings))

    def bulk(self, *, interactive_recently: Callable[[], bool] = lambda: False) -> ConsumerLoop:
        topology, archives = self.broker.topology, self.archives()
        return ConsumerLoop(
            self.broker,
            {
                topology.jobs: JobHandler(
                    self.store, self.settings, self.models, archives, self.broker.emit, topology.shards
                ),
                topology.shards: self.shards(archives, interactive_recently=interactive_recently),
            },
            RetryPolicy(self.settings.delivery_limit, self.metrics.dead_letters, first_pause_s=self.first_pause_s),
            prefetch=1,
            wait_until_ready=self.models.wait_for_champion,
        )

    def follow(self, stop: threading.Event) -> None:
        self.models.follow(self.broker, stop)

    @contextlib.contextmanager
    def running(self, *works: Work) -> Iterator[None]:
        """Runs loops in threads of their own; none of them may fail."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def body(work: Work) -> None:
            try:
                work(stop)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=body, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []

    def value(self, name: str, **labels: str) -> float:
        """Returns a metric's value; 0 where nothing was counted."""
        return self.registry.get_sample_value(name, labels) or 0.0


@contextlib.contextmanager
def open_loops(folder: Path, broker_url: str, **settings: Any) -> Iterator[Loops]:
    """Opens a broker with queues of its own, and a store."""
    chosen = Settings(
        broker_url=broker_url,
        store_url=f"file:{folder / 'store'}",
        queue_prefix=f"t{uuid.uuid4().hex[:10]}",
        allowed_roots=str(folder / "allowed"),
        provider="cpu",
        **settings,
    )
    with open_broker(
        broker_url,
        Topology(chosen.queue_prefix),
        lease_s=chosen.lease_s,
        delivery_limit=chosen.delivery_limit,
        queue_limit=chosen.queue_limit,
    ) as broker:
        store = FileStore(folder / "store")
        registry = CollectorRegistry()
        metrics = InferenceMetrics(registry)
        models = Models(store, "cpu", metrics)
        shadow = Shadow(store, chosen, models, metrics)
        observers = [shadow.observe] if shadow.wanted else []
        with ForkServer(Decoder.TARGET) as server, Decoder(server, ImageLimits.from_settings(chosen)) as decoder:
            yield Loops(
                broker,
                store,
                chosen,
                registry,
                metrics,
                models,
                ThroughputMeter(),
                RecentPredictions(),
                shadow,
                Predictor(decoder, chosen.batch_size, metrics, observers=observers),
            )


def replies(inbox: ReplyQueue, count: int, timeout_s: float = 30.0) -> dict[str, dict[str, Any]]:
    """Returns the bodies of `count` replies by correlation id; fails where one id has two, or some do not come."""
    found: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + timeout_s
    while len(found) < count:
        for message in inbox.receive(max(0.0, min(1.0, deadline - time.monotonic()))):
            assert message.content_type == "application/json"
            key = str(message.correlation_id)
            assert key not in found, f"two replies to {key}"
            found[key] = json.loads(message.body)
            assert found[key]["schema"] == 1
        assert time.monotonic() < deadline, f"{len(found)} of {count} replies within {timeout_s:g} s: {found}"
    return found

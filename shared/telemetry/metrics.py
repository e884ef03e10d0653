"""Prometheus metrics: every name of the contract."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.broker.base import TROUBLES, Broker, Trouble
from shared.errors import CODES, Retryable
from shared.faces.labels import GENDERS
from shared.faces.rejects import REJECT_REASONS
from shared.store.base import STORE_TROUBLES, Store

LABELS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "genderline_predictions": {"outcome": ("ok", "invalid", "failed", "expired")},
    "genderline_model_info": {"version": (), "provider": ("cpu", "cuda")},
    "genderline_model_swaps": {"outcome": ("ok", "failed", "crashed")},
    "genderline_predicted_gender": {"gender": GENDERS},
    "genderline_drift_score": {"signal": ("luma", "contrast", "predicted_female", "confidence")},
    "genderline_shadow_predictions": {"outcome": ("agree", "disagree", "failed", "dropped")},
    "genderline_shadow_run_seconds": {"model": ("champion", "challenger")},
    "genderline_datasets": {"outcome": ("registered", "ingested", "rejected", "failed", "cancelled")},
    "genderline_images_rejected": {"reason": tuple(REJECT_REASONS)},
    "genderline_training_loss": {"split": ("train", "val")},
    "genderline_training_accuracy": {"split": ("train", "val")},
    "genderline_dead_letters": {"reason": (*CODES, "delivery_limit")},
    "genderline_queue_depth": {"queue": ()},
    "genderline_broker_trouble": {"kind": TROUBLES},
    "genderline_store_trouble": {"kind": STORE_TROUBLES},
}
"""Every label with its values, none where they are open. A series whose labels are all known stands at 0 from the start
of a process: `increase()` in an alert sees a change only where it has seen the value before."""

STORE_TROUBLE_HELP: Final = "Why the store cannot be used"
_SCRAPE_WAIT_S: Final = 1.0
"""For a broker that is away: Prometheus gives a whole scrape ten seconds, and loses all of it after them."""
_LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DIFFERENCE_BUCKETS: Final = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_SIZE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class InferenceMetrics:
    """What an inference worker measures. Several workers' figures are added up by their parent process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.predictions = Counter(
            "genderline_predictions", "Images answered", ["outcome"], registry=registry
        )  # exposed as genderline_predictions_total
        self.latency = Histogram(
            "genderline_prediction_latency_seconds",
            "From taking a message to its settled reply",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "genderline_queue_wait_seconds",
            "From publishing a message to taking it",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.decode = Histogram(
            "genderline_decode_seconds", "Decoding of one batch", buckets=_LATENCY_BUCKETS, registry=registry
        )
        self.model_run = Histogram(
            "genderline_model_run_seconds", "One run of the model", buckets=_LATENCY_BUCKETS, registry=registry
        )
        self.batch_size = Histogram(
            "genderline_batch_size", "Images in one run of the model", buckets=_SIZE_BUCKETS, registry=registry
        )
        self.model_info = Gauge(
            "genderline_model_info",
            "Workers serving this version with this provider",
            ["version", "provider"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.swaps = Counter("genderline_model_swaps", "Tries to load a new model", ["outcome"], registry=registry)
        self.predicted_gender = Counter(
            "genderline_predicted_gender", "Images by predicted gender", ["gender"], registry=registry
        )
        self.drift = Gauge(
            "genderline_drift_score",
            "Population stability index of the last images against the model's card; 0 until there are enough",
            ["signal"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.drift_images = Gauge(
            "genderline_drift_window_images",
            "Images that the drift scores look back on",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.shadow_predictions = Counter(
            "genderline_shadow_predictions",
            "Images offered to the challenger, by how its answer compares with the champion's",
            ["outcome"],
            registry=registry,
        )
        self.shadow_difference = Histogram(
            "genderline_shadow_difference",
            "Difference of the challenger's probability from the champion's",
            buckets=_DIFFERENCE_BUCKETS,
            registry=registry,
        )
        self.shadow_run = Histogram(
            "genderline_shadow_run_seconds",
            "Runs of champion and challenger on the same images; on a CPU, CPU time",
            ["model"],
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.store_trouble = Gauge(
            "genderline_store_trouble",
            STORE_TROUBLE_HELP,
            ["kind"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.dead_letters = _dead_letters(registry)
        _start_at_zero(self)


class TrainerMetrics:
    """What a trainer measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.datasets = Counter(
            "genderline_datasets", "Datasets by how their run ended", ["outcome"], registry=registry
        )
        self.ingested = Counter("genderline_images_ingested", "Faces that became part of a dataset", registry=registry)
        self.rejected = Counter("genderline_images_rejected", "Archive entries left out", ["reason"], registry=registry)
        self.epoch = Gauge("genderline_training_epoch", "The present epoch, from 1; 0 between runs", registry=registry)
        self.loss = Gauge("genderline_training_loss", "Loss of the last epoch", ["split"], registry=registry)
        self.accuracy = Gauge(
            "genderline_training_accuracy", "Accuracy of the last epoch", ["split"], registry=registry
        )
        self.images_per_second = Gauge(
            "genderline_training_images_per_second", "Training speed; 0 between runs", registry=registry
        )
        self.dead_letters = _dead_letters(registry)
        _start_at_zero(self)


def _start_at_zero(metrics: InferenceMetrics | TrainerMetrics) -> None:
    """Makes every series whose labels are known."""
    for metric in vars(metrics).values():
        (family,) = metric.describe()
        if labels := LABELS.get(family.name):
            for values in itertools.product(*labels.values()):
                metric.labels(*values)


def _dead_letters(registry: CollectorRegistry) -> Counter:
    return Counter("genderline_dead_letters", "Messages buried, by error code", ["reason"], registry=registry)


class BrokerCollector(Collector):
    """Queue depths, reconnections and trouble, read from the broker when somebody scrapes.

    Args:
        broker: asked.
        trouble: tells why the broker does not serve this service; by default, what `broker` knows.
    """

    def __init__(self, broker: Broker, trouble: Callable[[], Trouble | None] | None = None) -> None:
        self._broker = broker
        self._trouble = trouble or (lambda: broker.trouble)

    def collect(self) -> Iterable[Metric]:
        """Yields the broker's figures; of one that is away, only its trouble and how often it was reached again."""
        depth = GaugeMetricFamily("genderline_queue_depth", "Messages waiting in a queue", labels=["queue"])
        with contextlib.suppress(Retryable):
            for queue, found in self._broker.depths(_SCRAPE_WAIT_S).items():
                depth.add_metric([self._broker.topology.short(queue)], found.ready)
            yield depth
        trouble = self._trouble()
        troubles = GaugeMetricFamily("genderline_broker_trouble", "Why the broker does not serve us", labels=["kind"])
        for kind in TROUBLES:
            troubles.add_metric([kind], float(trouble is not None and trouble.kind == kind))
        yield troubles
        yield CounterMetricFamily(
            "genderline_broker_reconnects", "Lost broker connections made anew", value=self._broker.reconnects
        )

    def describe(self) -> Iterable[Metric]:
        """Nothing up front, so that registering does not ask the broker."""
        return []


class StoreCollector(Collector):
    """Whether the store is in trouble, as its user knows: a scrape waits for no store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """Yields a figure for each kind of trouble."""
        trouble = self._store.trouble
        family = GaugeMetricFamily("genderline_store_trouble", STORE_TROUBLE_HELP, labels=["kind"])
        for kind in STORE_TROUBLES:
            family.add_metric([kind], float(trouble is not None and trouble.kind == kind))
        yield family


def process_registry() -> CollectorRegistry:
    """Returns a new registry that holds this process's own figures (memory, CPU time, open files)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry

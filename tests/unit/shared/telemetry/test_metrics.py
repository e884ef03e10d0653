"""Every metric of the contract, with its labels."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.broker.base import Message
from shared.broker.sqlite.broker import SqliteBroker
from shared.telemetry.metrics import LABELS, BrokerCollector, InferenceMetrics, TrainerMetrics, process_registry

REPOSITORY = Path(__file__).parents[4]
CONTRACT = """
genderline_predictions_total{outcome} genderline_prediction_latency_seconds genderline_queue_wait_seconds
genderline_decode_seconds genderline_model_run_seconds genderline_batch_size genderline_queue_depth{queue}
genderline_model_info{version,provider} genderline_model_swaps_total{outcome}
genderline_predicted_gender_total{gender} genderline_datasets_total{outcome} genderline_images_ingested_total
genderline_images_rejected_total{reason} genderline_training_epoch genderline_training_loss{split}
genderline_training_accuracy{split} genderline_training_images_per_second genderline_dead_letters_total{reason}
genderline_broker_reconnects_total genderline_broker_trouble{kind} genderline_store_trouble{kind}
"""
WATCHING = """
genderline_drift_score{signal} genderline_drift_window_images genderline_shadow_predictions_total{outcome}
genderline_shadow_difference genderline_shadow_run_seconds{model}
"""
"""What watches the model that serves, beside the contract."""


def samples(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Returns the labels of every metric, under the name of the contract, after one observation of each."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        if family.name.endswith("_created"):
            continue  # the library's own companion of each counter and histogram
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = found.get(name, set()) | labels
    return found


def test_every_metric_promised_exists_with_its_labels_and_no_other(tmp_path: Path) -> None:
    inference, trainer = CollectorRegistry(), CollectorRegistry()
    worker = InferenceMetrics(inference)
    for counter in (worker.predictions, worker.swaps, worker.predicted_gender, worker.dead_letters):
        counter.labels("x").inc()
    worker.model_info.labels("3", "cpu").set(1)
    for watching in (worker.drift, worker.shadow_predictions, worker.shadow_run):
        watching.labels("x")
    training = TrainerMetrics(trainer)
    for labelled in (training.datasets, training.rejected, training.loss, training.accuracy, training.dead_letters):
        labelled.labels("x").inc()
    with SqliteBroker(tmp_path / "broker.db") as broker:
        trainer.register(BrokerCollector(broker))
        found = samples(inference) | samples(trainer)
    contract = {
        name: set(labels.split(",")) - {""}
        for name, labels in re.findall(r"(genderline_\w+)(?:\{([\w,]*)\})?", CONTRACT + WATCHING)
    }
    assert found == contract


def test_a_process_tells_its_memory_and_time() -> None:
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total"} <= set(samples(process_registry()))


def test_queue_depths_are_read_when_somebody_asks(tmp_path: Path) -> None:
    with SqliteBroker(tmp_path / "broker.db") as broker:
        registry = CollectorRegistry()
        registry.register(BrokerCollector(broker))
        broker.publish(broker.topology.datasets, Message(b"x", "x"))
        assert registry.get_sample_value("genderline_queue_depth", {"queue": "datasets"}) == 1
        assert registry.get_sample_value("genderline_queue_depth", {"queue": "dead"}) == 0
        assert registry.get_sample_value("genderline_broker_reconnects_total") == 0


def test_a_broker_that_is_away_hides_its_queues_and_nothing_else(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    TrainerMetrics(registry).epoch.set(3)
    broker = SqliteBroker(tmp_path / "broker.db")
    registry.register(BrokerCollector(broker))
    broker.close()
    assert registry.get_sample_value("genderline_training_epoch") == 3
    assert registry.get_sample_value("genderline_queue_depth", {"queue": "dead"}) is None
    assert registry.get_sample_value("genderline_broker_reconnects_total") == 0


@pytest.mark.parametrize("kind", [InferenceMetrics, TrainerMetrics])
def test_every_series_whose_labels_are_known_stands_at_0_from_the_start(kind: type) -> None:
    registry = CollectorRegistry()
    kind(registry)
    counted = 0
    for family in registry.collect():
        labels = LABELS.get(family.name, {})
        suffix = {"counter": "_total", "histogram": "_count"}.get(family.type, "")
        for values in itertools.product(*labels.values()):
            sample = registry.get_sample_value(family.name + suffix, dict(zip(labels, values, strict=True)))
            assert sample == 0, (family.name, values)
            counted += 1
    assert counted > 30


def test_label_values_written_in_the_code_are_known() -> None:
    known = {value for labels in LABELS.values() for values in labels.values() for value in values}
    sources = [path for package in ("shared", "trainer", "inference") for path in (REPOSITORY / package).rglob("*.py")]
    written = {value for path in sources for value in re.findall(r'\.labels\("(\w+)"', path.read_text())}
    assert written
    assert written <= known

"""Every metric of the contract, with its labels."""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
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


def written_labels(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields (name of the metric's attribute, value) for each `.labels(…)` whose value stands in the code.

    There, or in the rows of the loop around it.
    """
    rows: dict[str, list[ast.expr]] = defaultdict(list)
    for loop in ast.walk(tree):
        if isinstance(loop, ast.For) and isinstance(loop.target, ast.Tuple) and isinstance(loop.iter, ast.Tuple):
            for row in loop.iter.elts:
                assert isinstance(row, ast.Tuple)
                for name, value in zip(loop.target.elts, row.elts, strict=True):
                    rows[ast.unparse(name)].append(value)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "labels":
            metric = ast.unparse(call.func.value).rpartition(".")[2].lstrip("_")
            for value in itertools.chain.from_iterable(rows.get(ast.unparse(given), [given]) for given in call.args):
                choices = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                yield from ((metric, str(each.value)) for each in choices if isinstance(each, ast.Constant))


def test_label_values_written_in_the_code_are_those_of_their_metric() -> None:
    metrics = vars(InferenceMetrics(CollectorRegistry())) | vars(TrainerMetrics(CollectorRegistry()))
    known = {
        name: set(itertools.chain.from_iterable(LABELS.get(metric.describe()[0].name, {}).values()))
        for name, metric in metrics.items()
    }
    sources = [path for package in ("shared", "trainer", "inference") for path in (REPOSITORY / package).rglob("*.py")]
    functions = [
        node for path in sources for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    ]
    written = set(itertools.chain.from_iterable(map(written_labels, functions)))
    assert {
        ("loss", "train"),
        ("swaps", "crashed"),
        ("predictions", "expired"),
        ("predicted_gender", "male"),
    } <= written
    assert {(metric, value) for metric, value in written if value not in known[metric]} == set()

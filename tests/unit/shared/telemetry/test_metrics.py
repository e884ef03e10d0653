"""Metrics and health over real HTTP, and every name of the contract."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.broker.base import Message
from shared.broker.sqlite.broker import SqliteBroker
from shared.telemetry.metrics import (
    BrokerCollector,
    InferenceMetrics,
    StatusServer,
    TrainerMetrics,
    authorised,
    process_registry,
)

CONTRACT = """
genderline_predictions_total{outcome} genderline_prediction_latency_seconds genderline_queue_wait_seconds
genderline_decode_seconds genderline_model_run_seconds genderline_batch_size genderline_queue_depth{queue}
genderline_model_info{version,provider} genderline_model_swaps_total{outcome}
genderline_predicted_gender_total{gender} genderline_datasets_total{outcome} genderline_images_ingested_total
genderline_images_rejected_total{reason} genderline_training_epoch genderline_training_loss{split}
genderline_training_accuracy{split} genderline_training_images_per_second genderline_dead_letters_total{reason}
genderline_broker_reconnects_total
"""
WATCHING = """
genderline_drift_score{signal} genderline_drift_window_images genderline_shadow_predictions_total{outcome}
genderline_shadow_difference genderline_shadow_run_seconds{model}
"""
"""What watches the model that serves, beside the contract."""


class Service:
    """A status server on a free port, and what its readiness says."""

    def __init__(self, token: str | None = None, host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        self.metrics = TrainerMetrics(registry)
        self.state: dict[str, Any] = {"ready": True}
        self.server = StatusServer(registry, lambda: self.state, host=host, port=0, token=token)
        self.host = f"[{host}]" if ":" in host else host

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://{self.host}:{self.server.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.close()


@pytest.fixture
def guarded() -> Iterator[Service]:
    service = Service(token="open sesame")
    yield service
    service.server.close()


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


def test_metrics_are_served_in_the_format_of_prometheus(service: Service) -> None:
    service.metrics.epoch.set(7)
    status, text = service.get("/metrics")
    assert status == 200
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "genderline_training_epoch"]
    assert [sample.value for sample in family.samples] == [7]


def test_a_live_process_is_healthy(service: Service) -> None:
    assert service.get("/healthz") == (200, '{"alive": true}')


def test_readiness_decides_the_status_and_is_shown(service: Service) -> None:
    assert service.get("/readyz") == (200, '{"ready": true}')
    service.state = {"ready": False, "broker": "away"}
    status, body = service.get("/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "broker": "away"})


def test_another_path_is_not_found_with_those_there_are(service: Service) -> None:
    status, body = service.get("/nope")
    assert status == 404
    message = "no /nope; expected /metrics, /healthz or /readyz"
    assert json.loads(body) == {"error": {"code": "not_found", "message": message}}


def test_a_token_guards_the_metrics_and_leaves_health_open(guarded: Service) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "open sesame"}):
        status, body = guarded.get("/metrics", **headers)
        assert status == 401
        assert json.loads(body)["error"]["code"] == "unauthorized"
    assert guarded.get("/metrics", Authorization="Bearer open sesame")[0] == 200
    assert guarded.get("/healthz")[0] == guarded.get("/readyz")[0] == 200


@pytest.mark.parametrize(
    ("header", "token", "allowed"),
    [
        (None, None, True),
        ("Bearer anything", None, True),
        (None, "secret", False),
        ("", "secret", False),
        ("secret", "secret", False),
        ("Basic secret", "secret", False),
        ("Bearer ", "secret", False),
        ("Bearer secretly", "secret", False),
        ("Bearer s\xe9cret", "secret", False),
        ("Bearer secret", "secret", True),
        ("bearer  secret ", "secret", True),
    ],
)
def test_only_the_whole_token_as_bearer_opens(header: str | None, token: str | None, allowed: bool) -> None:
    assert authorised(header, token) is allowed


def test_a_taken_port_is_an_error_at_the_start(service: Service) -> None:
    with pytest.raises(OSError, match="in use"):
        StatusServer(CollectorRegistry(), dict, host="127.0.0.1", port=service.server.port)


def test_a_closed_server_gives_its_port_back(service: Service) -> None:
    other = Service()
    other.server.close()
    with pytest.raises(urllib.error.URLError):
        other.get("/healthz")


def test_the_loopback_of_ipv6_can_be_bound_to() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    service = Service(host="::1")
    assert service.get("/healthz")[0] == 200
    service.server.close()

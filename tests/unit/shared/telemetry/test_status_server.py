"""Metrics and health over real HTTP."""

from __future__ import annotations

import json
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from shared.access import AccessToken
from shared.errors import Retryable
from shared.runtime.settings import SettingsError
from shared.telemetry.metrics import TrainerMetrics
from shared.telemetry.status_server import CONNECTIONS, StatusServer


class Service:
    """A status server on a free port, and what its readiness says."""

    def __init__(self, tokens: Sequence[AccessToken] = (), host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        self.metrics = TrainerMetrics(registry)
        self.state: dict[str, Any] = {"ready": True}
        self.server = StatusServer(registry, lambda: self.state, host=host, port=0, tokens=tokens)
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
    service = Service(
        tokens=[AccessToken("admin", "full", "open sesame"), AccessToken("scraper", "read", "only looking")]
    )
    yield service
    service.server.close()


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
    for token in ("open sesame", "only looking"):
        assert guarded.get("/metrics", Authorization=f"Bearer {token}")[0] == 200
    assert guarded.get("/healthz")[0] == guarded.get("/readyz")[0] == 200


def test_a_taken_port_is_an_error_at_the_start(service: Service) -> None:
    with pytest.raises(Retryable, match=f"on port {service.server.port}: Address already in use"):
        StatusServer(CollectorRegistry(), dict, host="127.0.0.1", port=service.server.port)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "a..b"])
def test_a_host_that_cannot_be_bound_to_is_a_wrong_setting_and_no_fault_of_the_port(host: str) -> None:
    with pytest.raises(SettingsError, match=rf"^GENDERLINE_HOST: expected an address .* \(found '{host}': [^)]+\)$"):
        StatusServer(CollectorRegistry(), dict, host=host, port=0)


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


@pytest.mark.slow
def test_idle_connections_cost_no_scrape_and_no_more_descriptors_than_are_allowed(service: Service) -> None:
    idle = [socket.create_connection(("127.0.0.1", service.server.port)) for _ in range(3 * CONNECTIONS)]
    try:
        assert service.get("/metrics")[0] == 200
        # The oldest were closed for the newest: they read the end of their connection.
        for closed in idle[:CONNECTIONS]:
            closed.settimeout(10)
            assert closed.recv(1) == b""
    finally:
        for connection in idle:
            connection.close()


def test_a_peer_that_goes_away_leaves_no_traceback(service: Service, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", service.server.port)) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        peer.sendall(b"GET /metrics HTTP/1.0\r\n")
    assert service.get("/healthz")[0] == 200
    assert capfd.readouterr().err == ""

"""`up` and `status`."""

from __future__ import annotations

import re

import pytest

from shared.broker.base import Message
from shared.cli.service_urls import SERVICES, choose_ports
from shared.client import Client
from shared.runtime.settings import Settings
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import beating, document, run


def test_status_tells_who_is_up_what_waits_and_what_serves(client: Client, builder: StoreBuilder) -> None:
    builder.model(builder.dataset(), "run-000000000001")
    client.promote(1, "the first")
    builder.run("run-000000000002", name="second")
    client.broker.publish(client.broker.topology.jobs, Message(b"{}", "application/json"))
    told = {
        "version": 1,
        "provider": "cpu",
        "device": "cpu",
        "images_per_second": 512.5,
        "broker_trouble": "no majority",
    }
    with beating(client, "inference", **told):
        status = run("status")
        found = document("status")
    shown = status.stdout
    assert "no majority" in status.stderr
    assert re.search(r"^inference +\S+:\d+ +1 +cpu +512\.5", shown, flags=re.MULTILINE)
    assert re.search(r"^jobs +1 ", shown, flags=re.MULTILINE)
    assert "champion: version 1" in shown
    assert "run-000000000002 (second): queued" in shown
    assert found["champion"] == 1
    assert [worker["service"] for worker in found["services"]] == ["inference"]


def test_status_of_nothing_says_so() -> None:
    shown = run("status").stdout
    assert "no service is running" in shown
    assert "no model is in use yet" in shown


def test_up_says_which_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("GENDERLINE_PORT", str(port))
        result = run("up", "--only", "dashboard")
    assert result.exit_code == 2
    assert f"the dashboard's port {port} on 127.0.0.1 cannot be used" in result.stderr
    assert "set GENDERLINE_PORT to 0, which takes a free one" in result.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "a..b"])
def test_up_says_that_the_host_is_at_fault_and_no_port(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("GENDERLINE_HOST", host)
    monkeypatch.setenv("GENDERLINE_TOKEN", "long enough")
    result = run("up")
    assert result.exit_code == 2
    assert f"GENDERLINE_HOST: expected an address of this machine, or a name that leads to one (found '{host}': " in (
        " ".join(result.stderr.split())
    )
    assert "PORT" not in result.stderr


def test_one_metrics_port_for_two_services_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_METRICS_PORT", "9999")
    result = run("up")
    assert result.exit_code == 2
    assert "a port is needed for each of trainer and inference; set it to 0, which takes free ones" in result.stderr


def test_the_metrics_port_0_that_the_messages_name_gives_each_service_a_free_one() -> None:
    ports = choose_ports(Settings(port=0, metrics_port=0), SERVICES)
    assert len(set(ports.values()) - {0}) == len(SERVICES)

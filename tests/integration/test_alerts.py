"""The shipped alerts in a real Prometheus: the first failed message after a start is seen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.broker.base import Message
from tests.support.brokers.rabbitmq_node import free_port
from tests.support.services import Installation, Service, eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [DEPLOY/alerts.yml]
scrape_configs:
  - job_name: trainer
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""


def program(name: str) -> str:
    """Returns the path of one of Prometheus' programs; skips the test where there is none, and fails it in CI."""
    found = shutil.which(name)
    if found is None:
        missing = f"no {name} on this machine; on Debian: apt-get install prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def test_the_alerts_fire_where_they_should() -> None:
    command = [program("promtool"), "test", "rules", "alerts_test.yml"]
    done = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[tuple[Installation, Service]]:
    installation = Installation(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}")
    yield installation, installation.start("trainer", wait=False)
    installation.close()


def test_prometheus_sees_the_first_failed_message_after_a_start(
    trainer: tuple[Installation, Service], tmp_path: Path
) -> None:
    prometheus = program("prometheus")
    installation, service = trainer
    (tmp_path / "prometheus.yml").write_text(CONFIG.replace("DEPLOY", str(DEPLOY)).replace("PORT", str(service.port)))
    port = free_port()

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=5) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def failed() -> dict[str, float]:
        found = ask("query?query=genderline_dead_letters_total") or {"result": []}
        return {series["metric"]["reason"]: float(series["value"][1]) for series in found["result"]}

    command = [
        prometheus,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            assert set(eventually(failed, 60, "Prometheus has scraped the service").values()) == {0.0}
            with installation.broker() as broker:
                broker.publish(broker.topology.datasets, Message(b"{", "application/json", message_id="broken"))
            alerts = eventually(
                lambda: [alert for alert in (ask("alerts") or {"alerts": []})["alerts"] if alert["state"] == "firing"],
                60,
                "an alert fires",
            )
        finally:
            process.terminate()
    assert [alert["labels"]["alertname"] for alert in alerts] == ["DeadLetters"]
    assert alerts[0]["labels"]["reason"] == "invalid_message"
    said = [line for line in service.log.read_text().splitlines() if "dead letter" in line]
    assert [line.endswith("[message_id broken]") for line in said] == [True]

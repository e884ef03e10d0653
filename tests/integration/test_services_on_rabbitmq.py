"""Separately started services on a real RabbitMQ node: what the dashboard shows, and what a foreign client gets."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.broker.base import Message
from shared.faces.synthetic import draw_sample
from shared.store.files import FileStore
from tests.support.brokers.rabbitmq_shared import SharedNode
from tests.support.brokers.wire import typed
from tests.support.services import Installation, Service, eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]


CLIENT_S = 180
"""How long the client may take: so long that one that does not end is told with what was printed, not by the limit."""

PAGE = Path(__file__).parents[2] / "docs" / "messages.md"


@pytest.fixture(scope="module")
def installation(rabbitmq: SharedNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """All services, with the queues' own names, which the client uses; nothing else may use them."""
    one_core = {"GENDERLINE_WORKERS": "1", "GENDERLINE_THREADS": "1"}
    made = Installation(tmp_path_factory.mktemp("services"), rabbitmq.url, one_core, prefix="genderline")
    try:
        for module in ("trainer", "inference", "dashboard"):
            made.start(module, wait=False)
        for service in made.services:
            eventually(service.ready, 60, f"{service.name} is ready")
        with typed(made.broker(), FileStore(made.folder / "store"), "worker.heartbeat"):
            yield made
    finally:
        made.close()


class Listener(threading.Thread):
    """Reads the dashboard's event stream; keeps (topic, payload) in order."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        self.connection.request("GET", "/api/v1/events?topics=run.*,model.*,resync")
        self.answer = self.connection.getresponse()
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def run(self) -> None:
        topic = ""
        for line in self.answer:
            if line.startswith(b"event: "):
                topic = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                self.heard.append((topic, json.loads(line[6:])))

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.heard]


def post(service: Service, path: str, body: bytes = b"", content_type: str = "application/json") -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}{path}", data=body, headers={"Content-Type": content_type}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{path} answered {error.code}: {error.read().decode()}") from error
    return found


def get(service: Service, path: str) -> dict[str, Any]:
    status, text = service.get(path)
    assert status == 200, text
    found: dict[str, Any] = json.loads(text)
    return found


def test_upload_events_predictions_and_dead_letters_go_over_rabbitmq(
    installation: Installation, sample_zip: Path
) -> None:
    dashboard = installation.services[-1]
    listener = Listener(dashboard)
    listener.start()

    # An upload is trained on, and every step of it is told to whoever listens.
    query = "params=%7B%22epochs%22%3A2%2C%22quantize%22%3Afalse%7D"
    run_id = post(dashboard, f"/api/v1/datasets?name=faces&{query}", sample_zip.read_bytes(), "application/zip")[
        "run_id"
    ]
    eventually(lambda: "run.registered" in listener.topics(), 120, "the run is registered")
    told = listener.topics()
    assert told.index("run.accepted") < told.index("run.training") < told.index("run.epoch")
    assert told.count("run.epoch") == 2
    assert {payload["run_id"] for topic, payload in listener.heard if topic.startswith("run.")} == {run_id}
    assert "resync" not in told
    assert get(dashboard, f"/api/v1/runs/{run_id}")["state"] == "registered"

    # A prediction is answered, and its worker is known to be alive and busy.
    with zipfile.ZipFile(sample_zip) as archive:
        image = next(archive.read(name) for name in archive.namelist() if name.endswith(".jpg"))
    reply = post(dashboard, "/api/v1/predictions?timeout_s=60", image, "image/jpeg")
    assert reply["model"]["version"] == 1
    probability = reply["predictions"][0]["probability_female"]

    def newest() -> list[float]:
        workers = get(dashboard, "/api/v1/status")["workers"]
        return [entry["probability_female"] for worker in workers for entry in worker.get("recent_predictions") or []]

    eventually(lambda: newest() == [probability], 10, "the worker tells of its newest prediction")
    services = {worker["service"] for worker in get(dashboard, "/api/v1/status")["workers"] if worker["alive"]}
    assert services == {"dashboard", "trainer", "inference"}

    # What nobody can process is listed, sent back, and comes again as it fails again.
    with installation.broker() as broker:
        broker.publish(broker.topology.predictions, Message(b"{}", "application/json", "bad"))

    def letters() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = get(dashboard, "/api/v1/dead")["dead_letters"]
        return found

    first = eventually(letters, 20, "a dead letter")
    assert [(letter["reason"], letter["message_id"]) for letter in first] == [("unsupported_content_type", "bad")]
    assert post(dashboard, f"/api/v1/dead/retry?dead_id={first[0]['dead_id']}") == {"count": 1}
    again = eventually(letters, 20, "the dead letter once more")
    assert [letter["message_id"] for letter in again] == ["bad"]
    assert post(dashboard, "/api/v1/dead/drop?all=true") == {"count": 1}
    assert letters() == []
    assert get(dashboard, "/api/v1/status")["queues"]["dead"]["ready"] == 0

    assert dashboard.stop() == 0
    listener.join(10)
    assert not listener.is_alive()
    listener.connection.close()


def script() -> str:
    """Returns the page's Python program, which uses nothing of ours."""
    (found,) = re.findall(r"```python\n(import json.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def test_the_foreign_client_trains_by_value_and_reference_and_gets_every_prediction(
    installation: Installation, tmp_path: Path
) -> None:
    draw_sample(tmp_path / "faces.zip", 60, seed=3)
    allowed = installation.folder / "allowed"
    allowed.mkdir()
    archive = shutil.move(tmp_path / "faces.zip", allowed / "faces.zip")
    program = tmp_path / "client.py"
    program.write_text(script())
    printed = tmp_path / "client.log"
    code = None
    with printed.open("wb") as output, contextlib.suppress(subprocess.TimeoutExpired):
        code = subprocess.run(
            [sys.executable, "-u", str(program), installation.broker_url, str(archive)],
            cwd=tmp_path,  # away from our packages
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=CLIENT_S,
            check=False,
        ).returncode
    assert code == 0, f"{printed.read_text()}\n{installation.logs()}"
    lines = printed.read_text().splitlines()
    for kind in ("by value", "by reference"):
        assert f"{kind} accepted None None" in lines
        assert any(line.startswith(f"{kind} registered {{'name': 'gender'") for line in lines), lines
    last = lines[-1]
    assert last.startswith("201 replies; [{'id': None, 'gender': ")
    good, broken = eval(last[last.rindex("] [") + 2 :])  # our own script's own print
    assert good["id"] == "good"
    assert 0 <= good["probability_female"] <= 1
    assert broken["id"] == "broken"
    assert broken["error"]["code"] == "invalid_image"
    with installation.broker() as broker:
        assert broker.depths()[broker.topology.dead].ready == 0

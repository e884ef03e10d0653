"""Health and metrics of the dashboard, and its process from start to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.broker.base import Event
from shared.errors import Retryable
from tests.support.dashboard_app import open_site


def test_ready_means_that_broker_and_store_answer(tmp_path: Path) -> None:
    with open_site(tmp_path, started=True) as site:
        well = site.web.get("/readyz")
        site.broker.close()
        ill = site.web.get("/readyz")

    assert (well.status_code, well.json) == (
        200,
        {
            "ready": True,
            "broker": True,
            "store": True,
            "events": True,
            "broker_trouble": None,
            "store_trouble": None,
        },
    )
    assert ill.status_code == 503
    assert ill.json is not None
    assert (ill.json["ready"], ill.json["broker"], ill.json["store"]) == (False, False, True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dashboard_whose_listener_has_died_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_site(tmp_path, started=True) as site:
        listener = next(thread for thread in threading.enumerate() if thread.name == "events")

        def die(_: Event) -> None:
            raise SystemExit

        monkeypatch.setattr(site.parts.event_hub, "_listeners", (die,))
        site.broker.emit("run.progress", {})
        listener.join(10)
        answer = site.web.get("/readyz")

    assert answer.status_code == 503
    assert answer.json is not None
    assert (answer.json["broker"], answer.json["events"]) == (True, False)


def test_a_store_that_fails_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise Retryable("away")

    with open_site(tmp_path) as site:
        monkeypatch.setattr(site.store, "ping", fail)
        answer = site.web.get("/readyz")

    assert answer.status_code == 503


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("prefix", ["", "/faces"])
def test_health_and_metrics_answer_with_the_path_prefix_and_without(tmp_path: Path, path: str, prefix: str) -> None:
    with open_site(tmp_path, started=True, url_prefix="/faces") as site:
        assert site.web.get(prefix + path).status_code == 200


def test_health_needs_neither(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        site.broker.close()

        assert site.web.get("/healthz").json == {"alive": True}


def test_metrics_show_queues_and_requests_by_endpoint(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        web = site.web
        web.get("/api/v1/runs/some-id")
        answer = web.get("/metrics")
        some = web.get("/metrics?name[]=genderline_event_streams")

    assert answer.mimetype == "text/plain"
    assert 'genderline_queue_depth{queue="datasets"} 0.0' in answer.text
    assert 'genderline_http_requests_total{endpoint="api.get_run",status="404"} 1.0' in answer.text
    assert "some-id" not in answer.text
    assert "genderline_broker_reconnects_total 0.0" in answer.text
    assert "genderline_event_streams 0.0" in some.text
    assert "queue_depth" not in some.text


def test_openmetrics_is_spoken_where_asked_for(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        answer = site.web.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert answer.text.endswith("# EOF\n")


@contextmanager
def process(folder: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[str], list[str], threading.Event]]:
    """Runs `python -m dashboard`; gives the process, its log lines so far, and whether it serves."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GENDERLINE_")}
    environment |= {
        "GENDERLINE_BROKER_URL": f"sqlite:///{folder}/broker.db",
        "GENDERLINE_STORE_URL": f"file:{folder}/store",
        "GENDERLINE_PORT": "0",
        **settings,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "dashboard"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        lines: list[str] = []
        serving = threading.Event()

        def follow() -> None:
            assert child.stderr is not None
            for line in child.stderr:
                lines.append(line.rstrip())
                if "serving at" in line:
                    serving.set()
            serving.set()

        reader = threading.Thread(target=follow)
        reader.start()
        try:
            yield child, lines, serving
        finally:
            child.kill()
            child.wait()
            reader.join()


def address(lines: list[str]) -> str:
    return next(line.rpartition(" ")[2] for line in lines if "serving at" in line)


def test_the_process_serves_on_a_free_port_and_drains_on_sigterm_with_a_stream_open(tmp_path: Path) -> None:
    with process(tmp_path) as (child, lines, serving):
        assert serving.wait(30)
        with urllib.request.urlopen(f"{address(lines)}readyz", timeout=10) as answer:
            assert answer.status == 200
        stream = urllib.request.urlopen(f"{address(lines)}api/v1/events", timeout=10)
        assert stream.readline().startswith(b"retry")

        child.send_signal(signal.SIGTERM)
        rest = stream.read()
        stream.close()

        assert child.wait(15) == 0
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"broker.db"}
        assert {path.stat().st_mode & 0o077 for path in files} == {0}
        assert child.stdout is not None
        assert child.stdout.read() == ""
    assert b"worker.heartbeat" in rest or rest == b"\n"
    assert lines[-1].endswith("stopped")


def test_a_supervised_process_ends_with_its_supervisor(tmp_path: Path) -> None:
    with process(tmp_path, GENDERLINE_SUPERVISED="1") as (child, _, serving):
        assert serving.wait(30)
        assert child.stdin is not None
        child.stdin.close()

        assert child.wait(15) == 0


def test_a_port_that_is_taken_is_said_without_a_traceback(tmp_path: Path) -> None:
    with process(tmp_path) as (_, lines, serving):
        assert serving.wait(30)
        port = address(lines).rstrip("/").rpartition(":")[2]
        with process(tmp_path, GENDERLINE_PORT=port) as (second, words, _):
            assert second.wait(30) == 1
    assert any(f"127.0.0.1:{port}" in word for word in words)
    assert not any("Traceback" in word for word in words)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "a..b"])
def test_a_host_that_cannot_be_bound_to_is_said_as_a_wrong_setting(tmp_path: Path, host: str) -> None:
    with process(tmp_path, GENDERLINE_HOST=host, GENDERLINE_TOKEN="long enough") as (child, lines, _):
        assert child.wait(30) == 2
    assert any("ERROR   dashboard: GENDERLINE_HOST: expected an address of this machine" in line for line in lines)
    assert not any("Traceback" in line or "PORT" in line for line in lines)


def test_it_refuses_to_bind_beyond_loopback_without_a_token(tmp_path: Path) -> None:
    with process(tmp_path, GENDERLINE_HOST="0.0.0.0") as (child, lines, _):
        assert child.wait(30) == 2
    assert any("GENDERLINE_TOKEN" in line for line in lines)


def test_a_broker_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "broker.db").write_bytes(b"not a database" * 100)

    with process(tmp_path) as (child, lines, _):
        assert child.wait(30) == 1
    assert any("ERROR" in line and "broker.db" in line for line in lines)


def test_a_broker_url_with_a_wrong_parameter_is_said(tmp_path: Path) -> None:
    with process(tmp_path, GENDERLINE_BROKER_URL="amqp://host/?heartbeat=often") as (child, lines, _):
        assert child.wait(30) == 2
    assert any("ERROR   dashboard: GENDERLINE_BROKER_URL: Invalid heartbeat value 'often'" in line for line in lines)
    assert not any("Traceback" in line for line in lines)

"""What a service says that cannot start: one line of what is missing, in the log's own format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers.rabbitmq_node import free_port
from tests.support.services import Service, eventually

REPOSITORY = Path(__file__).parents[2]
SERVICES = ("trainer", "inference", "dashboard")


def ends(folder: Path, **settings: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Starts every service without HOME, side by side; yields the exit code and the JSON lines of each."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "GENDERLINE_LOG_FORMAT": "json", **settings}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", service], cwd=folder, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for service in SERVICES
    ]
    for process in processes:
        _, text = process.communicate(timeout=60)
        yield process.returncode, [json.loads(line) for line in text.splitlines()]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder is expected")
    for code, lines in ends(tmp_path, GENDERLINE_PORT="0", GENDERLINE_METRICS_PORT="0"):
        assert code == 1
        (line,) = [line for line in lines if line["level"] == "error"]
        assert "data" in line["message"]
        assert "traceback" not in line


@pytest.mark.parametrize("service", SERVICES)
def test_a_user_without_a_name_and_a_home_is_enough(service: str, tmp_path: Path) -> None:
    """As in a container that is run with any uid."""
    as_somebody = ["unshare", "--user", "--map-user=12345"]
    if subprocess.run([*as_somebody, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this machine allows no user namespaces")
    port = free_port()
    settings = {"GENDERLINE_PORT": str(port), "GENDERLINE_METRICS_PORT": str(port), "GENDERLINE_WORKERS": "1"}
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path), **settings}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*as_somebody, sys.executable, "-m", service], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stderr=log
        )
        try:
            running = Service(service, process, port, tmp_path / "log")
            # Without a champion, inference waits for one.
            expected = 503 if service == "inference" else 200
            eventually(lambda: answers(running) == expected, 60, "it runs")
            if service == "inference":
                eventually(lambda: json.loads(running.get("/readyz")[1])["workers"], 60, "its worker runs")
            assert "Traceback" not in (tmp_path / "log").read_text()
            assert running.stop() == 0
        finally:
            process.kill()
            process.wait()


def answers(service: Service) -> int | None:
    """Returns the status of `/readyz`, None where nobody listens yet."""
    try:
        return service.get("/readyz")[0]
    except OSError:
        return None


def test_each_wrong_setting_is_one_line_and_ends_with_2(tmp_path: Path) -> None:
    for code, lines in ends(tmp_path, GENDERLINE_WORKERS="many", GENDERLINE_STORE_URL="http://x"):
        assert code == 2
        assert [line["message"].partition(":")[0] for line in lines] == ["GENDERLINE_STORE_URL", "GENDERLINE_WORKERS"]

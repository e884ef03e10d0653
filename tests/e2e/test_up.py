"""All services on one machine, started by the commands that a user types."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers.rabbitmq_node import free_port

REPOSITORY = Path(__file__).parents[2]
GENDERLINE = [sys.executable, "-c", "from shared.cli import main; main()"]


def environment(**settings: str) -> dict[str, str]:
    """Returns an environment with these settings and none from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GENDERLINE_")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **settings}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`genderline up` for one service that is quick to start."""
    settings = environment(GENDERLINE_METRICS_PORT=str(free_port()), GENDERLINE_WORKERS="1")
    command = [*GENDERLINE, "up", "--only", "inference"]
    with subprocess.Popen(command, cwd=tmp_path, env=settings, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def line_with(process: subprocess.Popen[str], part: str) -> str:
    """Returns the next line on standard error that holds `part`."""
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return line
    raise AssertionError(f"ended with {process.wait()} and without a line that holds {part!r}")


def pid_in(line: str) -> int:
    found = re.search(r"\(pid (\d+)\)", line)
    assert found, line
    return int(found[1])


def test_a_service_that_is_killed_is_restarted_and_said_and_the_end_leaves_nothing_behind(
    up: subprocess.Popen[str],
) -> None:
    first = pid_in(line_with(up, "inference (pid"))
    line_with(up, "worker 0 (pid")
    os.kill(first, signal.SIGKILL)
    assert line_with(up, "died") == f"inference (pid {first}) died of SIGKILL; restarting in 0.2 s\n"
    second = pid_in(line_with(up, "inference (pid"))
    line_with(up, "worker 0 (pid")
    up.send_signal(signal.SIGTERM)
    line_with(up, "put their work down")
    # End-of-file means that every process which shares it is gone: the killed service's worker too.
    assert up.stderr is not None
    up.stderr.read()
    assert up.wait() == 0
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_service_that_cannot_do_what_a_setting_says_ends_all_with_its_message(tmp_path: Path) -> None:
    settings = environment(GENDERLINE_DEVICE="cuda", GENDERLINE_PORT="0", GENDERLINE_METRICS_PORT="0")
    done = subprocess.run(
        [*GENDERLINE, "up", "--only", "trainer", "--only", "dashboard"],
        cwd=tmp_path,
        env={**settings, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert re.search(
        "ERROR +trainer: GENDERLINE_DEVICE is cuda, but torch .* finds no CUDA device", done.stderr, flags=re.MULTILINE
    )
    assert "restarting" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the trainer refused to start with these settings")


@pytest.mark.timeout(400)
def test_the_demo_trains_predicts_shows_and_ends_by_itself(tmp_path: Path) -> None:
    settings = environment(GENDERLINE_PORT="0", GENDERLINE_WORKERS="1")
    done = subprocess.run(
        [*GENDERLINE, "demo", "--once", "--images", "80", "--epochs", "12"],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    log = tmp_path / "data" / "demo" / "services.log"
    assert done.returncode == 0, f"{done.stderr}\n{log.read_text() if log.exists() else ''}"
    assert "is registered as version 1: accuracy" in done.stdout
    assert re.search(r"by version 1: 300 images, 0 errors, \d+ female, \d+ male, accuracy \d", done.stdout)
    assert "test faces; the champion now\n" in done.stdout
    # Where it can be watched is said while somebody is there to watch, and not at the end.
    head, _, end = done.stdout.partition("\ndone\n")
    assert re.search(r"^dashboard +http://127\.0\.0\.1:\d+$", head, flags=re.MULTILINE)
    assert "http://" not in end
    assert "all services end now; `genderline up` starts them again" in end
    assert [
        line for line in done.stderr.splitlines() if line.startswith("generating ") and "synthetic" not in line
    ] == ["generating 80", "generating 300"]

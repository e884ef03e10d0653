"""The supervisor, on real processes that are really killed."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.runtime.supervisor import Child, Supervisor, watch_parent
from tests.support.services import eventually

REPOSITORY = Path(__file__).parents[4]
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-S",
    "-c",
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]
WATCHER = """
import signal, sys, threading
from shared.runtime.supervisor import watch_parent
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
watch_parent(stop)
print("watching", flush=True)
if not stop.wait(20):
    sys.exit("nobody told me to stop")
open(sys.argv[1], "w").write("drained")
"""


class Told:
    """Collects a supervisor's lines, to be awaited."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()

    def __call__(self, line: str) -> None:
        self._lines.put(line)

    def until(self, part: str) -> str:
        """Returns the next line that holds `part`."""
        while True:
            line = self._lines.get(timeout=15)
            if part in line:
                return line

    def rest(self) -> list[str]:
        """Returns what was said and not yet awaited."""
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get())
        return lines


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def ended_processes() -> Iterator[list[int]]:
    """Process ids that a test hands over; whatever of them is still alive is killed, and the test fails."""
    pids: list[int] = []
    yield pids
    left = []
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            left.append(pid)
        except ProcessLookupError:
            pass
    assert not left, f"processes left behind: {left}"


def test_a_killed_child_is_restarted_and_that_is_said(told: Told) -> None:
    with Supervisor([Child("inference", SLEEPER)], told) as supervisor:
        told.until("started")
        first = supervisor.pids["inference"]
        os.kill(first, signal.SIGKILL)
        assert told.until("died") == f"inference (pid {first}) died of SIGKILL; restarting in 0.2 s"
        told.until("started")
        assert supervisor.pids["inference"] != first


def test_only_the_child_that_died_is_restarted(told: Told) -> None:
    with Supervisor([Child("a", SLEEPER), Child("b", SLEEPER)], told) as supervisor:
        told.until("started")
        told.until("started")
        before = supervisor.pids
        os.kill(before["a"], signal.SIGKILL)
        told.until("a (pid")
        told.until("started")
        assert supervisor.pids["b"] == before["b"]


def test_pauses_between_restarts_grow_up_to_a_limit(told: Told) -> None:
    broken = Child("trainer", [sys.executable, "-S", "-c", "raise SystemExit(3)"])
    with Supervisor([broken], told, first_pause_s=0.01, longest_pause_s=0.03):
        said = [told.until("exited").split(") ", 1)[1] for _ in range(4)]
    assert said == [
        "exited with code 3; restarting in 0.01 s",
        "exited with code 3; restarting in 0.02 s",
        "exited with code 3; restarting in 0.03 s",
        "exited with code 3; restarting in 0.03 s",
    ]


def test_a_child_that_ran_for_long_is_restarted_after_the_first_pause_again(told: Told) -> None:
    with Supervisor([Child("c", ["true"])], told, first_pause_s=0.01, healthy_s=0.0):
        assert all("in 0.01 s" in told.until("exited") for _ in range(4))


def test_a_command_that_cannot_be_run_is_said_and_tried_again(told: Told) -> None:
    with Supervisor([Child("lost", ["/nowhere/at/all"])], told, first_pause_s=0.01) as supervisor:
        told_first = told.until("lost")
        assert told_first == (
            "lost could not be started (No such file or directory: /nowhere/at/all); restarting in 0.01 s"
        )
        assert "0.02 s" in told.until("lost")
        assert supervisor.pids == {}


def test_a_child_that_refuses_its_settings_is_not_restarted_and_its_neighbours_run_on(told: Told) -> None:
    refusing = Child("trainer", [sys.executable, "-S", "-c", "raise SystemExit(2)"])
    refused: queue.Queue[str] = queue.Queue()
    with Supervisor([refusing, Child("b", SLEEPER)], told, on_refusal=refused.put, first_pause_s=0.01) as supervisor:
        assert refused.get(timeout=15) == "trainer"
        assert "exited with code 2, which means wrong usage: not restarted" in told.until("exited")
        eventually(lambda: set(supervisor.pids) == {"b"}, 15, "the neighbour runs")
    assert not any("restarting" in line for line in told.rest())


def test_where_nobody_asks_for_refusals_such_a_child_is_restarted_like_any_other(told: Told) -> None:
    with Supervisor([Child("c", [sys.executable, "-S", "-c", "raise SystemExit(2)"])], told, first_pause_s=0.01):
        assert "exited with code 2; restarting in 0.01 s" in told.until("exited")


def test_stop_lets_children_drain(told: Told, tmp_path: Path) -> None:
    note = tmp_path / "note"
    script = textwrap.dedent(f"""
        import signal, time
        def drain(*_):
            open({str(note)!r}, "w").write("drained")
            raise SystemExit(0)
        signal.signal(signal.SIGTERM, drain)
        open({str(tmp_path / "ready")!r}, "w").close()
        time.sleep(60)
    """)
    os.mkfifo(tmp_path / "ready")
    supervisor = Supervisor([Child("worker", [sys.executable, "-S", "-c", script])], told)
    supervisor.start()
    (tmp_path / "ready").read_bytes()  # a named pipe: waits until the child has opened it
    supervisor.stop(timeout_s=10)
    assert note.read_text() == "drained"
    assert supervisor.pids == {}
    assert [line for line in told.rest() if "started" not in line] == []


def test_stop_kills_a_child_that_does_not_end_in_time(told: Told, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    shell = ["sh", "-c", f'exec "$0" "$@" > {tmp_path / "out"}', *STUBBORN]
    supervisor = Supervisor([Child("deaf", shell)], told)
    supervisor.start()
    with (tmp_path / "out").open() as out:
        assert out.readline() == "deaf\n"
        pid = supervisor.pids["deaf"]
        supervisor.stop(timeout_s=0.1)
    assert told.until("killed") == f"deaf (pid {pid}) had not stopped after 0.1 s; killed"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stop_ends_a_pause_at_once(told: Told) -> None:
    supervisor = Supervisor([Child("c", ["false"])], told, first_pause_s=3600, longest_pause_s=3600)
    supervisor.start()
    told.until("restarting")
    supervisor.stop(timeout_s=60)
    supervisor.stop(timeout_s=60)
    assert supervisor.pids == {}


def test_a_child_has_the_variables_given_to_it(told: Told) -> None:
    checks = "import os; raise SystemExit(int(os.environ['EXTRA']) + int(os.environ['GENDERLINE_SUPERVISED']))"
    with Supervisor([Child("c", [sys.executable, "-S", "-c", checks], {"EXTRA": "41"})], told, first_pause_s=60):
        assert "exited with code 42" in told.until("exited")


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="expected different ones"):
        Supervisor([Child("a", ["true"]), Child("a", ["true"])])


def test_a_child_drains_when_its_supervisor_is_killed(tmp_path: Path, ended_processes: list[int]) -> None:
    supervising = textwrap.dedent(f"""
        import sys, threading
        from shared.runtime.supervisor import Child, Supervisor
        Supervisor([Child("w", [sys.executable, "-c", {WATCHER!r}, {str(tmp_path / "note")!r}])]).start()
        threading.Event().wait()
    """)
    # The child inherits our pipe: end-of-file on it means that both processes are gone.
    parent = subprocess.Popen([sys.executable, "-c", supervising], stdout=subprocess.PIPE, cwd=REPOSITORY)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"watching\n"
        parent.kill()
        assert parent.stdout.read() == b""
    assert (tmp_path / "note").read_text() == "drained"


def test_without_a_supervisor_the_parent_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENDERLINE_SUPERVISED", raising=False)
    threads = threading.active_count()
    stop = threading.Event()
    watch_parent(stop)
    assert threading.active_count() == threads
    assert not stop.is_set()

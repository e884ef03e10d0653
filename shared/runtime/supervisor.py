"""Starts child processes, keeps them running and ends them together: the services of one machine, a service's workers.

A child notices by end-of-file on its standard input that its supervisor is gone, even by SIGKILL, and drains by itself
(`watch_parent`): no process is left behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

_LOG = logging.getLogger(__name__)

SUPERVISED: Final = "GENDERLINE_SUPERVISED"
"""Set to 1 in every child's environment; not a setting of the user's."""

WRONG_USAGE: Final = 2
"""The exit code of a program that was told what it cannot do, by a setting for example."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep running.

    Attributes:
        name: unique among the children; what log lines call it.
        command: the program and its arguments.
        env: variables added to this process's own.
        log: a file that its output is added to; None leaves it this process's own.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None


class Supervisor:
    """Keeps some child processes running until `stop`.

    Each has a thread that waits for it to end and starts it anew, after a pause that doubles with each death and
    starts over once the child ran for a while. Children lead process groups of their own, so that Ctrl-C in a terminal
    reaches the supervisor alone, which then ends them in order.

    Args:
        children: what to run.
        on_event: called, from any thread, with a line for people about each start and death.
        on_refusal: called, from any thread, with the name of a child that ended with `WRONG_USAGE`: it would end so
            again, and is not restarted. None restarts it like any other.
        first_pause_s: before the first restart.
        longest_pause_s: the most that the pause grows to.
        healthy_s: a child that ran for so long is not in a loop of crashes.
    """

    def __init__(
        self,
        children: Sequence[Child],
        on_event: Callable[[str], None] = _LOG.warning,
        *,
        on_refusal: Callable[[str], None] | None = None,
        first_pause_s: float = 0.2,
        longest_pause_s: float = 10.0,
        healthy_s: float = 30.0,
    ) -> None:
        names = [child.name for child in children]
        if len(set(names)) < len(names):
            raise ValueError(f"the children's names are {names}; expected different ones")
        self._children = tuple(children)
        self._on_event = on_event
        self._on_refusal = on_refusal
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._healthy_s = healthy_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts every child. To be called once."""
        self._threads = [
            threading.Thread(target=self._keep, args=(child,), name=f"supervise {child.name}", daemon=True)
            for child in self._children
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Asks every child to drain (SIGTERM), waits, and kills those that have not ended in time. Idempotent."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for name, pid in self._signal(signal.SIGKILL).items():
            self._on_event(f"{name} (pid {pid}) had not stopped after {timeout_s:g} s; killed")
        for thread in self._threads:
            thread.join()

    @property
    def pids(self) -> dict[str, int]:
        """The children that run at this moment, by name."""
        with self._lock:
            return {name: process.pid for name, process in self._running.items()}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _keep(self, child: Child) -> None:
        """Runs one child over and over; the body of its thread."""
        pause_s = self._first_pause_s
        while True:
            started = time.monotonic()
            code, ended = self._run(child)
            if self._stopping.is_set():
                return
            if code == WRONG_USAGE and self._on_refusal is not None:
                self._on_event(f"{child.name} {ended}, which means wrong usage: not restarted")
                self._on_refusal(child.name)
                return
            if time.monotonic() - started >= self._healthy_s:
                pause_s = self._first_pause_s
            self._on_event(f"{child.name} {ended}; restarting in {pause_s:g} s")
            if self._stopping.wait(pause_s):
                return
            pause_s = min(self._longest_pause_s, pause_s * 2)

    def _run(self, child: Child) -> tuple[int | None, str]:
        """Runs a child once, to its end; returns its exit code, if it had one, and how it ended."""
        with self._lock:
            # Under the lock, so that `stop` either sees the process or keeps it from being made.
            if self._stopping.is_set():
                return None, "was not started"
            try:
                with contextlib.nullcontext() if child.log is None else child.log.open("ab") as output:
                    process = subprocess.Popen(  # noqa: S603 - our own commands
                        list(child.command),
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=output,
                        env={**os.environ, **child.env, SUPERVISED: "1"},
                        process_group=0,
                    )
            except OSError as error:
                where = f": {error.filename}" if error.filename else ""
                return None, f"could not be started ({error.strerror or error}{where})"
            self._running[child.name] = process
        self._on_event(f"{child.name} (pid {process.pid}) started")
        try:
            code = process.wait()
        finally:
            with self._lock:
                del self._running[child.name]
            assert process.stdin is not None  # noqa: S101 - a pipe was asked for
            process.stdin.close()
        how = f"died of {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
        return code, f"(pid {process.pid}) {how}"

    def _signal(self, number: signal.Signals) -> dict[str, int]:
        """Sends a signal to every running child and returns their process ids by name."""
        with self._lock:
            for process in self._running.values():
                process.send_signal(number)
            return {name: process.pid for name, process in self._running.items()}


def watch_parent(stop: threading.Event) -> None:
    """Sets `stop` when this process's supervisor is gone; does nothing where there is none.

    A daemon thread blocks on standard input, of which the supervisor holds the other end.
    """
    if os.environ.get(SUPERVISED) != "1":
        return

    def wait() -> None:
        # Not by `sys.stdin`: its lock, held by a daemon thread, would abort the interpreter's exit.
        while os.read(0, 4096):
            pass
        stop.set()

    threading.Thread(target=wait, name="watch parent", daemon=True).start()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

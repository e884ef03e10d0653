"""Starts `store.py` processes, and leaves none behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


class StoreProcess:
    """A process that works on the file store at `root` in one of the child's roles."""

    def __init__(self, root: Path, *role: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.children.store", str(root), *role],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Returns the next line that the process prints."""
        return _pipe(self._process.stdout).readline().strip()

    def go(self) -> None:
        """Lets a waiting process begin."""
        _pipe(self._process.stdin).write("go\n")
        _pipe(self._process.stdin).flush()

    def kill(self) -> None:
        """Kills the process with SIGKILL and reaps it."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


@contextlib.contextmanager
def store_process(root: Path, *role: str) -> Iterator[StoreProcess]:
    process = StoreProcess(root, *role)
    try:
        yield process
    finally:
        process.kill()


def race(root: Path, roles: Sequence[Sequence[str]]) -> list[str]:
    """Starts a process a role, lets all begin at once, and returns what each prints in the end."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(store_process(root, *role)) for role in roles]
        for process in processes:
            assert process.line() == "ready"
        for process in processes:
            process.go()
        return [process.line() for process in processes]


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe

"""What is dear to make and the same for every process of a test run: the first that needs it makes it for all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

FOLDER = "TESTS_RUN_FOLDER"
"""The environment variable that names the folder which all processes of a run share; unset outside a run of pytest."""


def made_once_a_run(name: str, make: Callable[[], bytes]) -> bytes:
    """Returns what `make` gives, made by the first process of a run that asks for the name."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return make()
    path = Path(folder) / name
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            whole = path.with_suffix(".part")
            whole.write_bytes(make())
            whole.rename(path)
    return path.read_bytes()

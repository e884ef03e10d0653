"""One folder for all temporary files of a trainer: should it be killed, the next one finds them and removes them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PREFIX: Final = "genderline-trainer-"


@contextmanager
def workspace() -> Iterator[None]:
    """Lets this process's temporary files be made in a folder of its own, and removes those of trainers that are gone.

    A trainer holds a lock on its folder, which ends with it, however it ends: what can be locked is in nobody's use.
    """
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{_PREFIX}*"):
        _remove_if_left(folder)
    before = tempfile.tempdir
    made = Path(tempfile.mkdtemp(prefix="genderline-"))
    lock = _locked(made)
    folder = made.rename(made.with_name(made.name.replace("genderline-", _PREFIX)))  # in sight only once it is locked
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_if_left(folder: Path) -> None:
    if (lock := _locked(folder)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """Returns the open folder with a lock on it; None where another process has it or it cannot be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # on some network file systems there are no locks: then nothing is removed
        os.close(handle)
        return None
    return handle

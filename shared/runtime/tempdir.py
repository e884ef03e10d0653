"""Temporary files: those of a piece of work go with it, those of a killed service go when the next one starts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.errors import Retryable


@contextlib.contextmanager
def temp_folder() -> Iterator[Path]:
    """Makes a temporary folder, and deletes it with all that is in it.

    Raises:
        Retryable: this machine has no room for one now. Python then says that there is no such file, whatever is amiss.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="genderline-", ignore_cleanup_errors=True)
    except OSError as error:
        raise Retryable(f"this machine has no room for temporary files: {error.strerror or error}") from error
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def workspace(service: str) -> Iterator[Path]:
    """Lets this process's temporary files be made in a folder of its own, and removes those of services that are gone.

    A service holds a lock on its folder, which ends with it, however it ends: what can be locked is in nobody's use.

    Args:
        service: `trainer`, `inference` or `dashboard`: each clears up after its like.
    """
    parent, prefix = Path(tempfile.gettempdir()), f"genderline-{service}-"
    for folder in parent.glob(f"{prefix}*"):
        _remove_if_left(folder)
    before = tempfile.tempdir
    made = Path(tempfile.mkdtemp(prefix="genderline-"))
    lock = _locked(made)
    folder = made.rename(made.with_name(made.name.replace("genderline-", prefix)))  # in sight only once it is locked
    tempfile.tempdir = str(folder)
    try:
        yield folder
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

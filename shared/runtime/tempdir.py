"""A place for a piece of work's own files, on this machine and for as long as the work takes."""

from __future__ import annotations

import contextlib
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

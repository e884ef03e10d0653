"""Files on their way into a store: written once, in the store's own staging folder, and hashed meanwhile."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Final

_PREFIX: Final = "incoming-"
_FLUSH_BYTES: Final = 8 * 2**20


class StagedFile:
    """A new file in a staging folder.

    `Store.put_file` takes it from there. Whoever made it calls `discard` in the end, which removes it where it is still
    there.

    Args:
        folder: as `Store.staging_folder` gives it.
        hashed: whether its SHA-256 will be asked for.

    Attributes:
        path: where it lies.
        size_bytes: what was written so far.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, folder: Path, *, hashed: bool = True) -> None:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
        self.path = Path(name)
        self.size_bytes = 0
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._digest = hashlib.sha256() if hashed else None
        self._flushed = 0

    def write(self, data: bytes) -> None:
        """Appends some bytes, all of them."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        if self._digest is not None:
            self._digest.update(data)
        self.size_bytes += len(data)
        if self.size_bytes - self._flushed >= _FLUSH_BYTES:
            start_writeback(self._file.fileno(), self._flushed, self.size_bytes - self._flushed)
            self._flushed = self.size_bytes

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of what was written so far, as hexadecimal digits; None where it is not hashed."""
        return self._digest.hexdigest() if self._digest else None

    def close(self) -> None:
        """Ends the writing. Idempotent."""
        self._file.close()

    def discard(self) -> None:
        """Ends the writing and removes the file, if it is still there. Idempotent."""
        self.close()
        self.path.unlink(missing_ok=True)


def start_writeback(handle: int, start: int, count: int) -> None:
    """Lets the disk begin with bytes that were just written, so that syncing the whole file takes less long.

    To Linux it says that nobody will read them soon; and before it can forget them it has to store them.
    """
    if hasattr(os, "posix_fadvise"):  # macOS has none
        os.posix_fadvise(handle, start, count, os.POSIX_FADV_DONTNEED)


def remove_old_files(folder: Path, older_than_s: float) -> None:
    """Removes what nobody has written to for some time: what a process left that was killed."""
    before = time.time() - older_than_s
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < before:
                path.unlink()
        except FileNotFoundError:
            pass  # taken meanwhile

"""A wall clock that a soak sets: every Python process of its services reads it in the place of the system's."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

_OFFSET: Final = struct.Struct("<d")
_CUSTOMIZE: Final = """
import mmap, struct, time
with open({file!r}, "rb") as file:
    offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
read, system, system_ns = struct.Struct("<d").unpack_from, time.time, time.time_ns
time.time = lambda: system() + read(offset)[0]
time.time_ns = lambda: system_ns() + int(read(offset)[0]) * 1_000_000_000
"""


class SettableClock:
    """The clock of all processes that are started with its environment; others keep theirs.

    Python imports `sitecustomize` at its start, before anybody has read the clock. The monotonic clock is left alone:
    nobody can set it.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self._file.write_bytes(_OFFSET.pack(0))
        (folder / "sitecustomize.py").write_text(_CUSTOMIZE.format(file=str(self._file)), encoding="utf-8")
        self.environment = {"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"}

    def step(self, seconds: float) -> None:
        """Sets the clock this far ahead of the system's, or back where it is less than nothing."""
        with self._file.open("r+b") as file:
            file.write(_OFFSET.pack(seconds))

"""A model that kills its worker while it runs, which no trial before could show: the worker's successor finds out.

Each worker keeps a small file, mapped into memory, that says which versions run at the moment; a run costs two writes
to memory. A worker that finds a run in it that never ended knows what its predecessor may have died of.
"""

from __future__ import annotations

import logging
import mmap
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

DEATHS: Final = 3
"""Workers that die in a run of one version, with no run of it that ended between, before it is called a killer.

Fewer than a message's deliveries: the message that they worked on is answered by another version then."""
_VERSIONS: Final = 8
"""More than are loaded at the same time: champion, challenger and those that messages pin."""
_FIELDS: Final = struct.Struct("<4q")
_LOG = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Entry:
    """What the file says of a version.

    Attributes:
        version: which one; 0 where the entry is free.
        deaths: workers that died in a run of it, since one of its runs ended.
        running: runs under way in this worker.
        ended: runs that have ended in this worker.
    """

    version: int
    deaths: int
    running: int = 0
    ended: int = 0


class RunJournal:
    """The file of one worker, which its successors go on with.

    Args:
        path: of the file; made where it is missing. Where it cannot be, the worker serves without: its successors will
            not know what it died of.

    Attributes:
        left_running: the versions that ran when the worker before this one died.
    """

    def __init__(self, path: Path) -> None:
        size = _FIELDS.size * _VERSIONS
        try:
            with path.open("a+b") as file:
                file.truncate(size)
                self._map = mmap.mmap(file.fileno(), size)
        except OSError as error:
            _LOG.warning("cannot write %s: %s", path, error.strerror)
            self._map = mmap.mmap(-1, size)
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []
        left_running = []
        for version, running, ended, deaths in list(_FIELDS.iter_unpack(self._map)):
            deaths_before = 0 if ended else deaths
            if running > 0:
                left_running.append(version)
            self._entries.append(_Entry(version, deaths_before + (running > 0)))
            self._write(len(self._entries) - 1)
        self.left_running = frozenset(left_running)

    @property
    def killers(self) -> list[int]:
        """The versions that workers died of, one after the other."""
        return [entry.version for entry in self._entries if entry.deaths >= DEATHS]

    def forget(self) -> None:
        """Forgets all deaths, once the killers are refused."""
        with self._lock:
            for index, entry in enumerate(self._entries):
                entry.deaths = 0
                self._write(index)

    def watched(self, version: int, run: Callable[P, T]) -> Callable[P, T]:
        """Returns the same function, whose calls are written down."""

        def watched_run(*args: P.args, **kwargs: P.kwargs) -> T:
            self._note(version, begun=1)
            try:
                return run(*args, **kwargs)
            finally:
                self._note(version, begun=-1, ended=1)

        return watched_run

    def _note(self, version: int, *, begun: int, ended: int = 0) -> None:
        with self._lock:
            index = self._find(version)
            self._entries[index].running += begun
            self._entries[index].ended += ended
            self._write(index)

    def _find(self, version: int) -> int:
        """Returns which entry is the version's; a new version gets that of which least is known."""
        for index, entry in enumerate(self._entries):
            if entry.version == version:
                return index
        index = min(range(_VERSIONS), key=lambda each: self._worth(self._entries[each]))
        self._entries[index] = _Entry(version, 0)
        return index

    @staticmethod
    def _worth(entry: _Entry) -> tuple[int, int, int]:
        return entry.running, entry.deaths, entry.ended

    def _write(self, index: int) -> None:
        entry = self._entries[index]
        fields = entry.version, entry.running, entry.ended, entry.deaths
        _FIELDS.pack_into(self._map, index * _FIELDS.size, *fields)

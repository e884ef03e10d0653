"""A model that kills its worker while it runs, which no trial before could show: the worker's successor finds out.

Each worker keeps a small file, mapped into memory, that says which version runs at the moment; a run costs two writes
to memory. A worker that finds a run in it that never ended knows what its predecessor died of.
"""

from __future__ import annotations

import logging
import mmap
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

DEATHS: Final = 3
"""Workers in a row that die in a run of one version, with no run that ended between, before it is called a killer.

Fewer than a message's deliveries: the message that they worked on is answered by another version then."""
_FIELDS: Final = struct.Struct("<4q")
_LOG = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class RunJournal:
    """The file of one worker, which its successors go on with.

    Args:
        path: of the file; made where it is missing. Where it cannot be, the worker serves without: its successors will
            not know what it died of.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("a+b") as file:
                file.truncate(_FIELDS.size)
                self._map = mmap.mmap(file.fileno(), _FIELDS.size)
        except OSError as error:
            _LOG.warning("cannot write %s: %s", path, error.strerror)
            self._map = mmap.mmap(-1, _FIELDS.size)
        self._lock = threading.Lock()
        version, running, self._ended, deaths = _FIELDS.unpack(self._map)
        if running > 0:
            deaths = 1 if self._ended else deaths + 1
        elif self._ended:
            deaths = 0
        self._died_of, self._deaths = version, deaths
        self._running = self._ended = 0
        self._write(version)

    @property
    def killer(self) -> int | None:
        """The version that the last workers died of, one after the other; None where there is none."""
        return self._died_of if self._deaths >= DEATHS else None

    def forget(self) -> None:
        """Forgets the deaths, once the version is refused."""
        self._deaths = 0
        self._write(self._died_of)

    def watched(self, version: int, run: Callable[P, T]) -> Callable[P, T]:
        """Returns the same function, whose calls are written down."""

        def watched_run(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._lock:
                self._running += 1
                self._write(version)
            try:
                return run(*args, **kwargs)
            finally:
                with self._lock:
                    self._running -= 1
                    self._ended += 1
                    self._write(version)

        return watched_run

    def _write(self, version: int) -> None:
        deaths = self._deaths if version == self._died_of else 0
        _FIELDS.pack_into(self._map, 0, version, self._running, self._ended, deaths)

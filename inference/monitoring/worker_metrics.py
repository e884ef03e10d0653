"""The metrics of all workers together, those of the dead included."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

_Counts: Any = MmapedDict  # which has no types
_THE_DEAD: Final = "dead"
"""Stands in a file's name where those of the living have a process id."""


class WorkersCollector(Collector):
    """Adds up the metrics that worker processes write to files.

    Counts of the dead stay in the sums; what the dead were doing does not. Their files go at the next scrape: however
    many workers have died, there is one file of each kind for all of them.

    Args:
        folder: their `PROMETHEUS_MULTIPROC_DIR`.
        living: returns the process ids of the workers there are.
    """

    def __init__(self, folder: Path, living: Callable[[], set[int]]) -> None:
        self._folder = folder
        self._living = living
        self._lock = threading.Lock()
        self._files: Collector = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        """Yields the sums."""
        with self._lock:  # whoever scrapes at the same time must not count what is just being moved
            self._clear_up()
            metrics = list(self._files.collect())
        yield from metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing up front: which metrics there are shows in the files."""
        return []

    def _clear_up(self) -> None:
        """Removes the files of the dead, and keeps their counts."""
        # First the files, then who lives: a worker that starts in between is not taken for dead.
        found = [(file, file.stem.rpartition("_")[2]) for file in self._folder.glob("*.db")]
        living = {str(pid) for pid in self._living()}
        for file, pid in found:
            if pid not in living and pid != _THE_DEAD:
                kind = file.stem.partition("_")[0]
                if kind != "gauge" and file.stat().st_size:  # killed at its very start, a worker leaves an empty one
                    self._add(file, self._folder / f"{kind}_{_THE_DEAD}.db")
                file.unlink()

    @staticmethod
    def _add(file: Path, total: Path) -> None:
        """Adds the counts in one file to those in another."""
        counts = [(key, value) for key, value, *_ in _Counts.read_all_values_from_file(file)]
        sums = _Counts(total)
        try:
            for key, value in counts:
                sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
        finally:
            sums.close()

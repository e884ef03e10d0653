"""Trying a message that may kill its worker while nothing else is at hand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

_PATIENCE_S: Final = 10.0


class Turns:
    """Keeps work on jobs apart from messages that came before, within one process.

    What is worked on when the process dies counts as tried once more, and is buried in the end. An image that kills
    every worker must not take a shard along that happens to be at hand each time.

    Args:
        patience_s: how long a trial waits for work at hand: opening a large archive may take minutes.
    """

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._trying = False
        self._working = False

    def begin_trials(self) -> None:
        """Waits for work at hand; none is begun until `end_trials`. Within trials there is nothing to wait for."""
        with self._changed:
            if not self._trying:
                self._trying = True
                self._changed.wait_for(lambda: not self._working, self._patience_s)

    def end_trials(self) -> None:
        """Lets work on jobs go on. Harmless where there were no trials."""
        with self._changed:
            self._trying = False
            self._changed.notify_all()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Work on a job, begun once nothing is being tried."""
        with self._changed:
            self._changed.wait_for(lambda: not self._trying)
            self._working = True
        try:
            yield
        finally:
            with self._changed:
                self._working = False
                self._changed.notify_all()

"""Trying a message that may kill its worker while nothing else is at hand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

_TRIALS_WAIT_S: Final = 3.0
_WORK_WAITS_S: Final = 2.0


class Turns:
    """Keeps work on jobs apart from messages that came before, within one process.

    What is worked on when the process dies counts as tried once more, and is buried in the end. An image that kills
    every worker must not take a shard along that happens to be at hand each time. Such an image kills at once, so
    neither side waits for the other for long: opening a large archive may take minutes, and messages may come again
    and again for other reasons.

    Args:
        trials_wait_s: the longest that trials wait for one piece of work.
        work_waits_s: the longest that a piece of work waits for trials.
    """

    def __init__(self, trials_wait_s: float = _TRIALS_WAIT_S, work_waits_s: float = _WORK_WAITS_S) -> None:
        self._trials_wait_s = trials_wait_s
        self._work_waits_s = work_waits_s
        self._changed = threading.Condition()
        self._trying = False
        self._working = False
        self._outwaited = False  # the work at hand was waited for in vain

    def begin_trials(self) -> None:
        """Waits for work at hand; none is begun until `end_trials`. Within trials there is nothing to wait for."""
        with self._changed:
            if self._trying:
                return
            self._trying = True
            if not self._outwaited:
                self._outwaited = not self._changed.wait_for(lambda: not self._working, self._trials_wait_s)

    def end_trials(self) -> None:
        """Lets work on jobs go on. Harmless where there were no trials."""
        with self._changed:
            self._trying = False
            self._changed.notify_all()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """A piece of work on a job, begun once nothing is being tried."""
        with self._changed:
            self._changed.wait_for(lambda: not self._trying, self._work_waits_s)
            self._working = True
        try:
            yield
        finally:
            with self._changed:
                self._working = self._outwaited = False
                self._changed.notify_all()

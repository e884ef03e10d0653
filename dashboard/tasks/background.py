"""Work that outlasts a request: one task at a time, in a thread of its own, whose progress every page can show."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from shared.errors import Cancelled, Conflict, GenderlineError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskState:
    """How far a task is.

    Attributes:
        running: whether it goes on.
        done: items done.
        total: items to do.
        error: why it ended early.
    """

    running: bool = False
    done: int = 0
    total: int = 0
    error: str | None = None


_S = TypeVar("_S", bound=TaskState)


class BackgroundTask(Generic[_S]):
    """Runs one task at a time, and keeps the state of the last one.

    Args:
        name: of the thread, and in the log.
        idle: the state before the first task.
    """

    def __init__(self, name: str, idle: _S) -> None:
        self._name = name
        self._state = idle
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> _S:
        """How far the present task is, or how the last one ended."""
        return self._state

    def start(self, state: _S, work: Callable[[], None], busy: str) -> None:
        """Starts `work` and returns at once.

        Args:
            state: the first one.
            work: calls `update` as it goes on and `raise_if_closed` now and then.
            busy: what `Conflict` says while a task is running.

        Raises:
            Conflict: a task is running.
        """
        with self._lock:
            if self._state.running:
                raise Conflict(busy)
            self._state = replace(state, running=True)
            self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
            self._thread.start()

    def update(self, **changes: Any) -> None:
        """Changes some fields of the state; only the running task calls this."""
        self._state = replace(self._state, **changes)

    def raise_if_closed(self) -> None:
        """Raises `Cancelled` once the dashboard stops."""
        if self._stop.is_set():
            raise Cancelled("the dashboard stopped before this was done; start it again")

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until no task is running."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def close(self) -> None:
        """Cancels the running task and waits for its end."""
        self._stop.set()
        self.wait()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (GenderlineError, OSError) as error:
            _LOG.warning("%s ended early: %s", self._name, error)
            self.update(running=False, error=str(error))
        except Exception:
            _LOG.exception("a bug in %s", self._name)
            self.update(running=False, error="Internal error; see the dashboard's log.")
        else:
            self.update(running=False)

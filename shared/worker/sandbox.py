"""Work that may kill its process, done in a child process: who is at fault is found out, and costs its own item alone.

Where a child dies of some items, each of them is tried once more by itself. The one whose child dies again is at fault:
the first time may be the kernel's choice, where memory is short; the second time, alone, is not.
"""

from __future__ import annotations

import abc
import logging
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from shared.errors import Retryable
from shared.worker.child import Child, ChildDied

Request = TypeVar("Request")
"""One or more items to work on together."""
Result = TypeVar("Result")
"""What came of one item."""

_LOG = logging.getLogger(__name__)


class Sandbox(abc.ABC, Generic[Request, Result]):
    """One child process that works on requests, in order, and is replaced when it dies. Used by one thread."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._pending: deque[Request] = deque()

    @property
    def pipe(self) -> Connection:
        """There is something to read once `receive` need not wait."""
        return self._living().pipe

    def submit(self, request: Request) -> None:
        """Hands a request to the child; a later `receive` returns its results."""
        self._pending.append(request)
        try:
            self._send(self._living(), request)
        except ChildDied:
            if len(self._pending) > 1:
                return  # `receive` finds out, when it comes to the request that the child was at
            self._drop()  # it was idle, so no request is to blame
            self._send(self._living(), request)

    def receive(self) -> list[Result]:
        """Returns the results of the oldest unanswered request, one an item; waits for them.

        Raises:
            Retryable: no child can be started.
            Exception: what the work failed of that is none of its items' fault, such as a full disk.
        """
        request = self._pending.popleft()
        try:
            return self._receive(self._living(), request)
        except ChildDied:
            self._drop()
        except Retryable:
            self.close()
            raise
        singles = self._split(request)
        _LOG.warning("a child process died of one of %d items; each is tried by itself", len(singles))
        others = list(self._pending)
        self._pending.clear()
        results = [self._try_alone(single) for single in singles]
        for other in others:
            self.submit(other)
        return results

    def close(self) -> None:
        """Lets go of the child and forgets what is unanswered. May be used again afterwards."""
        self._drop()
        self._pending.clear()

    def _try_alone(self, single: Request) -> Result:
        try:
            self._send(self._living(), single)
            (result,) = self._receive(self._living(), single)
        except ChildDied:
            self._drop()
            return self._blame(single)
        return result

    def _living(self) -> Child:
        if self._child is None:
            self._child = self._fork()
        return self._child

    def _drop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    @abc.abstractmethod
    def _fork(self) -> Child:
        """Returns a new child, told what it needs to know before its first request."""

    @abc.abstractmethod
    def _send(self, child: Child, request: Request) -> None:
        """Sends a request to the child."""

    @abc.abstractmethod
    def _receive(self, child: Child, request: Request) -> list[Result]:
        """Returns the child's results of a request that was sent to it."""

    @abc.abstractmethod
    def _split(self, request: Request) -> Sequence[Request]:
        """Returns a request for each item."""

    @abc.abstractmethod
    def _blame(self, single: Request) -> Result:
        """Returns the result of an item that killed two children."""

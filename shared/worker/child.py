"""Risky work in a process of its own: it may die of what it works on, and only its pipe tells.

A `ForkServer` is a process that has loaded the code of the work and does nothing but fork: a child that died has a
successor within a few milliseconds, where a new interpreter would take a third of a second.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self

from shared.errors import Retryable
from shared.runtime.environment import SINGLE_CORE_ENV

Target = Callable[..., None]
"""Serves a child's pipe until `recv` raises EOFError; its further arguments are the descriptors that were passed on."""

_NOT_ITS_OWN: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that neither the server nor its children end by: they are meant for the parent, which ends them in time."""


class ChildDied(Exception):
    """The child ended before it answered."""


class Child:
    """A process at the other end of a pipe.

    Attributes:
        pipe: there is something to read once the child has answered, or died.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self._greeted = False

    def send(self, message: object) -> None:
        """Sends a message; it is pickled, as its answer is.

        Raises:
            ChildDied: nobody is there to take it.
        """
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChildDied("the child ended before it was asked") from error

    def receive(self) -> Any:
        """Returns the next answer; waits for it.

        Raises:
            ChildDied: there will be none.
            Retryable: the child never began to work: its machine has no room for it, say.
        """
        try:
            if not self._greeted:
                self.pipe.recv()
                self._greeted = True
            return self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            if not self._greeted:
                raise Retryable("a child process ended before it began to work") from error
            raise ChildDied("the child ended before it answered") from error

    def close(self) -> None:
        """Lets go of the child, which ends once it has done what it is at."""
        self.pipe.close()


class ForkServer:
    """Forks children that run one function; a context manager, at whose end all of them are killed.

    May be used by several threads.

    Args:
        target: the function, as `module:name`; the server imports its module once, and children have it.

    Raises:
        Retryable: the machine has no room for another process.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._start()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def fork(self, *descriptors: int) -> Child:
        """Returns a new child, to whose function the descriptors are passed on.

        Raises:
            Retryable: the machine has no room for another process.
        """
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                socket.send_fds(self._control, [b"+"], [theirs.fileno(), *descriptors])
            except OSError:  # the server was killed
                self._stop()
                self._start()
                socket.send_fds(self._control, [b"+"], [theirs.fileno(), *descriptors])
        return Child(Connection(ours.detach()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the server and its children: they are done, or in the midst of what nobody wants. Idempotent."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "shared.worker.child", self._target, str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own
                    command,
                    env=SINGLE_CORE_ENV | os.environ,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C in a terminal is not for it, and its children can be ended with it
                )
            except OSError as error:
                self._control.close()
                raise Retryable(f"cannot start a child process: {error.strerror}") from error

    def _stop(self) -> None:
        self._control.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _serve(target: Target, control: socket.socket) -> None:
    """Forks a child for each message on the socket, until its other end is closed."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 16)
        if not descriptors:
            return
        if os.fork() == 0:
            control.close()
            os._exit(_run(target, descriptors))
        for descriptor in descriptors:
            os.close(descriptor)


def _run(target: Target, descriptors: Sequence[int]) -> int:
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), Connection(descriptors[0]) as pipe:
        pipe.send(None)  # the greeting: from now on, a death is the work's
        target(pipe, *descriptors[1:])
    return 0


def main() -> int:
    """Runs a fork server until its parent is gone."""
    for number in _NOT_ITS_OWN:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no dead child is left for anybody to look after
    faulthandler.enable()  # of a crash in C, the log has where it was
    module, _, name = sys.argv[1].partition(":")
    _serve(getattr(importlib.import_module(module), name), socket.socket(fileno=int(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())

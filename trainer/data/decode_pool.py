"""Several processes that decode one archive side by side, of which the trainer is one.

Threads would fight for the interpreter: a small image takes as long to be handed over as to be decoded.

Run as a module it is one of the others. It is given its work by a pipe, and its end too: whatever becomes of the
trainer, the pipe closes, and that is that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shared.faces.decode import ImageLimits, configure_opencv
from shared.runtime.environment import SINGLE_CORE_ENV
from trainer.data.decode import Chunk, Decoder, Outcomes

WORTH_PROCESSES: Final = 8 * 2**20
"""The bytes of an archive from which on processes are worth the part of a second that they take to start."""

_AHEAD: Final = 3
"""Chunks that a process is given ahead: enough to not wait for a trainer that decodes one itself, few enough for the
pipe to hold their outcomes."""

_NOT_ITS_OWN: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that a process never ends by: they are meant for the trainer, which knows when its work may end."""


@dataclass
class _Task:
    """A chunk, and what became of it once that is known."""

    chunk: Chunk
    outcomes: Outcomes | None = None


class Decoders:
    """What decodes an archive: this process, and others beside it, where it is large enough for that.

    A context manager.

    Args:
        archive: as for `Decoder`, and so the rest; not looked at before something is decoded.
        faces: likewise.
        first_byte: likewise.
        limits: likewise.
        processes: how many, this one included; the others are started at once.
    """

    def __init__(self, archive: Path, faces: Path, first_byte: int, limits: ImageLimits, *, processes: int) -> None:
        self._work = (archive, faces, first_byte, limits)
        self._others: list[_Process] = []
        self._stack = ExitStack()
        if archive.stat().st_size >= WORTH_PROCESSES:
            with self._stack:
                self._others = [self._stack.enter_context(_Process(*self._work)) for _ in range(processes - 1)]
                self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def decode(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Outcomes]]:
        """Yields every chunk with its outcomes, in order.

        This process decodes whenever no other one wants anything from it; all of them are done at about the same time.
        """
        waiting: deque[_Task] = deque()

        def tasks() -> Iterator[_Task]:
            for chunk in chunks:
                waiting.append(_Task(chunk))
                yield waiting[-1]

        remaining = tasks()
        with Decoder(*self._work) as decoder:
            while True:
                for process in self._others:
                    process.supply(remaining)
                if not self._heard():
                    if own := next(remaining, None):
                        own.outcomes = decoder.decode(own.chunk)
                    elif not self._heard(patiently=True):
                        return
                while waiting and (outcomes := waiting[0].outcomes) is not None:
                    yield waiting.popleft().chunk, outcomes

    def _heard(self, *, patiently: bool = False) -> bool:
        """Takes what the others have answered, or waits until one has; False where there was nothing to take."""
        busy = [process for process in self._others if process.given]
        speaking = wait([process.pipe for process in busy], None if patiently else 0) if busy else []
        for process in busy:
            if process.pipe in speaking:
                process.listen()
        return bool(speaking)


class _Process:
    """A process that decodes what it is given, in order; a context manager.

    Args:
        work: the arguments of its `Decoder`.

    Attributes:
        pipe: to it; there is something to read once it has answered, or ended.
        given: what it has not answered yet.
    """

    def __init__(self, *work: object) -> None:
        self.pipe, theirs = Pipe()
        self.given: deque[_Task] = deque()
        with theirs, _blocked(_NOT_ITS_OWN):
            handle = theirs.fileno()
            self._process = subprocess.Popen(  # noqa: S603 - our own
                [sys.executable, "-m", "trainer.data.decode_pool", str(handle)],
                env=SINGLE_CORE_ENV | os.environ,
                stdin=subprocess.DEVNULL,
                pass_fds=[handle],
            )
        self._send(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.pipe.close()
        self._process.kill()  # done, or in the midst of what nobody wants any more
        self._process.wait()

    def supply(self, tasks: Iterator[_Task]) -> None:
        """Gives it tasks, so many that it has enough to do; fewer where no more are left."""
        for task in islice(tasks, _AHEAD - len(self.given)):
            self._send(task.chunk)
            self.given.append(task)

    def listen(self) -> None:
        """Notes the outcomes of the first task that is still unanswered; waits for them, if need be."""
        try:
            answer: Outcomes | Exception = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None
        if isinstance(answer, Exception):
            raise answer
        self.given.popleft().outcomes = answer

    def _send(self, message: object) -> None:
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"a decoding process ended with {self._process.wait()}, expected outcomes")


@contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Holds signals back from this thread, and from a process that it starts meanwhile until that one ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> int:
    """Answers chunks with their outcomes until the other end of the pipe is closed."""
    for number in _NOT_ITS_OWN:
        signal.signal(number, signal.SIG_IGN)
    configure_opencv()
    try:
        with Connection(int(sys.argv[1])) as trainer, Decoder(*trainer.recv()) as decoder:
            while True:
                trainer.send(_answer(decoder, trainer.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0


def _answer(decoder: Decoder, chunk: Chunk) -> Outcomes | Exception:
    try:
        return decoder.decode(chunk)
    except Exception as error:  # a full disk, say: the trainer is to raise it
        return error


if __name__ == "__main__":
    sys.exit(main())

"""Several processes that decode one archive side by side.

Threads would fight for the interpreter: a small image takes as long to be handed over as to be decoded.

Run as a module it is one of the processes. It is given its work by a pipe, and its end too: whatever becomes of the
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
from itertools import cycle
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shared.image import ImageLimits, configure_opencv
from shared.rejects import Reject
from trainer.decode import Chunk, Decoder, Traits

WORTH_PROCESSES: Final = 8 * 2**20
"""The bytes of an archive from which on processes are worth the part of a second that they take to start."""

_AHEAD: Final = 3
"""Chunks that a process is given ahead: enough to never wait, few enough for the pipe to hold their outcomes."""

_NOT_ITS_OWN: Final = (signal.SIGINT, signal.SIGTERM)
"""Signals that a process never ends by: they are meant for the trainer, which knows when its work may end."""

_KEEPS_MEMORY: Final = {
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}
"""Lets glibc keep what is freed: by default it gives a chunk's memory back, to ask for the same again a moment later,
page by page, which takes a sixth of all the time."""


class Decoders:
    """What decodes an archive: this process, or others, where it is large enough for that; a context manager.

    Args:
        archive: as for `Decoder`, and so the rest; not looked at before something is decoded.
        faces: likewise.
        first_byte: likewise.
        limits: likewise.
        processes: how many to start; 1 is this one.
    """

    def __init__(self, archive: Path, faces: Path, first_byte: int, limits: ImageLimits, *, processes: int) -> None:
        self._work = (archive, faces, first_byte, limits)
        self._started: list[_Process] = []
        self._stack = ExitStack()
        if processes > 1 and archive.stat().st_size >= WORTH_PROCESSES:
            with self._stack:
                self._started = [self._stack.enter_context(_Process(*self._work)) for _ in range(processes)]
                self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def decode(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Traits | Reject]]]:
        """Yields every chunk with its outcomes, in order; a bounded number of them is under way at any time."""
        if not self._started:
            with Decoder(*self._work) as decoder:
                for chunk in chunks:
                    yield chunk, decoder.decode(chunk)
            return
        under_way: deque[tuple[Chunk, _Process]] = deque()
        for chunk, process in zip(chunks, cycle(self._started), strict=False):
            process.ask(chunk)
            under_way.append((chunk, process))
            if len(under_way) == _AHEAD * len(self._started):
                yield _answered(*under_way.popleft())
        while under_way:
            yield _answered(*under_way.popleft())


class _Process:
    """A process that decodes what it is asked to, in order; a context manager.

    Args:
        work: the arguments of its `Decoder`.
    """

    def __init__(self, *work: object) -> None:
        self._pipe, theirs = Pipe()
        with theirs, _blocked(_NOT_ITS_OWN):
            handle = theirs.fileno()
            self._process = subprocess.Popen(  # noqa: S603 - our own
                [sys.executable, "-m", "trainer.decoders", str(handle)],
                env=_KEEPS_MEMORY | os.environ,
                stdin=subprocess.DEVNULL,
                pass_fds=[handle],
            )
        self.ask(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.kill()  # done, or in the midst of what nobody wants any more
        self._process.wait()

    def ask(self, work: object) -> None:
        """Gives it something to do: a chunk, once it has the arguments of its `Decoder`."""
        try:
            self._pipe.send(work)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None

    def answer(self) -> list[Traits | Reject]:
        """Waits for the outcomes of the first chunk that is still unanswered."""
        try:
            answer: list[Traits | Reject] | Exception = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

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


def _answered(chunk: Chunk, process: _Process) -> tuple[Chunk, list[Traits | Reject]]:
    return chunk, process.answer()


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


def _answer(decoder: Decoder, chunk: Chunk) -> list[Traits | Reject] | Exception:
    try:
        return decoder.decode(chunk)
    except Exception as error:  # a full disk, say: the trainer is to raise it
        return error


if __name__ == "__main__":
    sys.exit(main())

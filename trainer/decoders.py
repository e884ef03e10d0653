"""Several processes that decode one archive side by side.

Threads would fight for the interpreter: a small image takes as long to be handed over as to be decoded.

Run as a module it is one of the processes. It is given its work by a pipe, and its end too: whatever becomes of the
trainer, the pipe closes, and that is that.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import ExitStack
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


def decode_all(
    chunks: Iterable[Chunk], archive: Path, faces: Path, first_byte: int, limits: ImageLimits, *, processes: int
) -> Generator[tuple[Chunk, list[Traits | Reject]]]:
    """Yields every chunk with its outcomes, in order; a bounded number of them is under way at any time.

    Args:
        chunks: what to decode.
        archive: as for `Decoder`, and so the rest.
        faces: likewise.
        first_byte: likewise.
        limits: likewise.
        processes: that decode, where the archive is large enough for more than this one.
    """
    if processes == 1 or archive.stat().st_size < WORTH_PROCESSES:
        with Decoder(archive, faces, first_byte, limits) as decoder:
            for chunk in chunks:
                yield chunk, decoder.decode(chunk)
        return
    with ExitStack() as stack:
        started = [stack.enter_context(_Process(archive, faces, first_byte, limits)) for _ in range(processes)]
        under_way: deque[tuple[Chunk, _Process]] = deque()
        for chunk, process in zip(chunks, cycle(started), strict=False):
            process.ask(chunk)
            under_way.append((chunk, process))
            if len(under_way) == _AHEAD * processes:
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
        with theirs:
            handle = theirs.fileno()
            self._process = subprocess.Popen(  # noqa: S603 - our own
                [sys.executable, "-m", "trainer.decoders", str(handle)], stdin=subprocess.DEVNULL, pass_fds=[handle]
            )
        self._pipe.send(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.kill()  # done, or in the midst of what nobody wants any more
        self._process.wait()

    def ask(self, chunk: Chunk) -> None:
        """Gives it something to do."""
        self._pipe.send(chunk)

    def answer(self) -> list[Traits | Reject]:
        """Waits for the outcomes of the first chunk that is still unanswered."""
        try:
            answer: list[Traits | Reject] | Exception = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"a decoding process ended with {self._process.wait()}, expected outcomes") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _answered(chunk: Chunk, process: _Process) -> tuple[Chunk, list[Traits | Reject]]:
    return chunk, process.answer()


def main() -> int:
    """Answers chunks with their outcomes until the other end of the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the trainer, which knows when its work may end
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

"""Child processes that decode one archive side by side.

The trainer itself decodes nothing: foreign bytes meet code in C there, which may crash. An entry that kills two
children becomes a reject. Threads would fight for the interpreter: a small image takes as long to be handed over as to
be decoded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shared.faces.decode import ImageLimits
from shared.faces.rejects import Reject
from shared.worker.child import Child, ForkServer
from shared.worker.sandbox import Sandbox
from trainer.data.decode import Chunk, DecodedFace, Outcomes

WORTH_PROCESSES: Final = 2**20
"""The bytes of an archive from which on more than one child is worth its start."""

_AHEAD: Final = 3
"""Chunks that a child is given ahead: enough to not wait for the trainer, few enough for the pipe to hold their
outcomes."""
_LOG = logging.getLogger(__name__)


@dataclass
class _Task:
    """A chunk, and what became of it once that is known."""

    chunk: Chunk
    outcomes: Outcomes | None = None


class DecodePool:
    """Decodes an archive in child processes; a context manager.

    Args:
        archive: as for `Decoder`, like the rest; not looked at before something is decoded.
        faces: exists.
        first_byte: of the file's row 0.
        limits: on one image.
        processes: how many children, fewer where the archive is small; the process that forks them is started at once.
    """

    def __init__(self, archive: Path, faces: Path, first_byte: int, limits: ImageLimits, *, processes: int) -> None:
        self._server = ForkServer("trainer.data.decode:serve")
        count = processes if archive.stat().st_size >= WORTH_PROCESSES else 1
        self._children = [_DecodingChild(self._server, archive, faces, first_byte, limits) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self._children:
            child.close()
        self._server.close()  # what is still at work does what nobody wants any more

    def decode(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Outcomes]]:
        """Yields every chunk with its outcomes, in order.

        Raises:
            Retryable: the machine has no room for a child.
            OSError: it has no room for faces, say.
        """
        waiting: deque[_Task] = deque()
        given: dict[_DecodingChild, deque[_Task]] = {child: deque() for child in self._children}

        def tasks() -> Iterator[_Task]:
            for chunk in chunks:
                waiting.append(_Task(chunk))
                yield waiting[-1]

        remaining = tasks()
        while True:
            for child, its_tasks in given.items():
                while len(its_tasks) < _AHEAD and (task := next(remaining, None)):
                    its_tasks.append(task)
                    child.submit(task.chunk)
            busy = [child for child, its_tasks in given.items() if its_tasks]
            if not busy:
                return
            ready = wait([child.pipe for child in busy])
            for child in busy:
                if child.pipe in ready:
                    given[child].popleft().outcomes = child.receive()
            while waiting and (outcomes := waiting[0].outcomes) is not None:
                yield waiting.popleft().chunk, outcomes


class _DecodingChild(Sandbox[Chunk, DecodedFace | Reject | None]):
    """A child that runs a `Decoder` of these arguments."""

    def __init__(self, server: ForkServer, *arguments: object) -> None:
        super().__init__()
        self._server = server
        self._arguments = arguments

    def _fork(self) -> Child:
        child = self._server.fork()
        child.send(self._arguments)
        return child

    def _send(self, child: Child, request: Chunk) -> None:
        child.send(request)

    def _receive(self, child: Child, request: Chunk) -> Outcomes:  # noqa: ARG002
        answer: Outcomes | Exception = child.receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _split(self, request: Chunk) -> Sequence[Chunk]:
        return [Chunk(row, [entry]) for row, entry in enumerate(request.entries, request.row)]

    def _blame(self, single: Chunk) -> Reject:
        _LOG.error("the entry in row %d killed two processes that decoded it", single.row)
        return Reject("killed_worker", "decoding this image killed the process that did it, twice")

"""Decoding images in child processes, since foreign bytes meet code in C there, which may crash.

Always, and not only once an image has killed something: then no worker dies, whatever is sent to it. It costs little,
since images and faces lie in memory that both processes share. An image that comes alone waits until the child wakes.
A child that died is replaced by a fork, not by a new interpreter.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import GenderlineError, InvalidImage, internal_error
from shared.faces.decode import SIZE, ImageLimits, PixelBudget, configure_opencv, decode_face
from shared.worker.batches import batch_by_size
from shared.worker.child import Child, ForkServer
from shared.worker.sandbox import Sandbox

_Owned = tuple[bytes, int]
"""An image, and the message that it belongs to."""
Decoded = NDArray[np.uint8] | GenderlineError
"""A face, uint8 (128, 128), or why there is none."""

_FACE_BYTES: Final = SIZE * SIZE
_REQUEST_BYTES: Final = 32 * 2**20
"""The most bytes of images that are handed over at once, unless a single one has more."""
_KEPT_BYTES: Final = 64 * 2**20
"""Shared memory beyond this goes back to the machine after use."""
_WORTH_A_CHILD: Final = 4
"""Images from which on a child more pays for being asked."""
_LOG = logging.getLogger(__name__)


class Decoder:
    """Decodes images side by side; a context manager. Threads that share it take turns.

    Args:
        server: forks the children; made for `serve`.
        limits: bounds on each image.
        processes: children, each forked when there is first enough for it to do.
        niceness: of the children, as of `nice`.
    """

    TARGET: Final = "inference.model.decoder:serve"
    """For the server."""

    def __init__(self, server: ForkServer, limits: ImageLimits, processes: int = 1, niceness: int = 0) -> None:
        self._children = [_DecodingChild(server, limits, niceness) for _ in range(processes)]
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decode(self, images: Sequence[bytes], owners: Sequence[int] | None = None) -> list[Decoded]:
        """Returns what each image is, in order.

        An image that kills a child twice has the error `killed_worker`, one that provokes a bug `internal`.

        Args:
            images: encoded images.
            owners: the message that each image belongs to, by any number; those of one message share a `PixelBudget`.
                None where all of them belong together.

        Raises:
            Retryable: the machine has no room for a child.
        """
        parts = max(1, min(len(self._children), len(images) // _WORTH_A_CHILD))
        share = -(-len(images) // parts)
        owned = list(zip(images, owners or [0] * len(images), strict=True))
        requests = [
            request
            for start in range(0, len(owned), max(1, share))
            for request in batch_by_size(owned[start : start + share], lambda image: len(image[0]), _REQUEST_BYTES)
        ]
        decoded: list[Decoded] = []
        with self._lock:
            try:
                while requests:
                    at_work = list(zip(self._children, requests, strict=False))
                    del requests[: len(at_work)]
                    for child, request in at_work:
                        child.submit(request)
                    for child, _ in at_work:
                        decoded += child.receive()
            except BaseException:
                self.close()  # what is unanswered must not be taken for an answer to the next request
                raise
        return decoded

    def close(self) -> None:
        """Lets go of the children. Idempotent; decoding again forks new ones."""
        for child in self._children:
            child.close()


class _DecodingChild(Sandbox[Sequence[_Owned], Decoded]):
    """A child and the memory shared with it: the faces of a request first, and then its images, one after the other.

    No two children share memory: one that was let go may still be at work, and write what it makes of its request.
    """

    def __init__(self, server: ForkServer, limits: ImageLimits, niceness: int) -> None:
        super().__init__()
        self._server = server
        self._start = (limits, niceness)
        self._file = -1
        self._memory = mmap.mmap(-1, 1)

    def _drop(self) -> None:
        super()._drop()
        self._memory.close()
        self._memory = mmap.mmap(-1, 1)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _fork(self) -> Child:
        self._drop()  # what a fork that failed has left
        self._file = _memory_file()
        child = self._server.fork(self._file)
        child.send(self._start)
        return child

    def _send(self, child: Child, request: Sequence[_Owned]) -> None:
        needed = len(request) * _FACE_BYTES + sum(len(image) for image, _ in request)
        if needed > len(self._memory) or len(self._memory) > _KEPT_BYTES:
            self._resize(max(needed, 2**20))
        position = len(request) * _FACE_BYTES
        for image, _ in request:
            self._memory[position : position + len(image)] = image
            position += len(image)
        child.send((len(self._memory), [(len(image), owner) for image, owner in request]))

    def _receive(self, child: Child, request: Sequence[_Owned]) -> list[Decoded]:
        answers: list[InvalidImage | str | None] = child.receive()
        faces = np.frombuffer(self._memory, np.uint8, len(request) * _FACE_BYTES).reshape(-1, SIZE, SIZE).copy()
        return [face if answer is None else _error(answer) for face, answer in zip(faces, answers, strict=True)]

    def _split(self, request: Sequence[_Owned]) -> Sequence[Sequence[_Owned]]:
        return [[image] for image in request]

    def _blame(self, single: Sequence[_Owned]) -> Decoded:
        _LOG.error("an image of %d bytes killed two processes that decoded it", len(single[0][0]))
        return GenderlineError("decoding this image killed the process that did it, twice", code="killed_worker")

    def _resize(self, size: int) -> None:
        self._memory.close()
        os.ftruncate(self._file, size)
        self._memory = mmap.mmap(self._file, size)


def _memory_file() -> int:
    """Returns a descriptor of memory that can be passed to another process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("images")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _error(answer: InvalidImage | str) -> GenderlineError:
    if isinstance(answer, InvalidImage):
        return answer
    _LOG.error("a bug in decoding an image:\n%s", answer)
    return internal_error()


def serve(pipe: Connection, file: int) -> None:
    """Decodes what is asked for by `_DecodingChild`; the work of a child."""
    configure_opencv()
    limits, niceness = pipe.recv()
    os.nice(niceness)
    memory = mmap.mmap(-1, 1)
    while True:
        size, lengths_and_owners = pipe.recv()
        if len(memory) != size:
            memory = mmap.mmap(file, size)
        pipe.send(list(_decode_all(memory, lengths_and_owners, limits)))


def _decode_all(
    memory: mmap.mmap, lengths_and_owners: Sequence[tuple[int, int]], limits: ImageLimits
) -> Iterator[InvalidImage | str | None]:
    """Yields None for each image that has become a face; else what is wrong with it, or a bug's traceback."""
    count = len(lengths_and_owners)
    faces = np.frombuffer(memory, np.uint8, count * _FACE_BYTES).reshape(-1, SIZE, SIZE)
    images = memoryview(memory)[count * _FACE_BYTES :]
    total_bytes: Counter[int] = Counter()
    for length, owner in lengths_and_owners:
        total_bytes[owner] += length
    budgets = {owner: PixelBudget(limits, total) for owner, total in total_bytes.items()}
    for face, (length, owner) in zip(faces, lengths_and_owners, strict=True):
        try:
            face[:] = decode_face(images[:length], limits, budgets[owner]).pixels
            yield None
        except InvalidImage as error:
            yield error
        except Exception:
            yield traceback.format_exc()
        images = images[length:]

"""From entries of an archive to faces, and what is to be remembered of them: one chunk after the other."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.archives.entry import Entry, EntryReader
from shared.errors import InvalidImage
from shared.faces.decode import SIZE, Face, ImageLimits, PixelBudget, configure_opencv, decode_face, luma_stats
from shared.faces.rejects import Reject, reject_for
from trainer.data.near_duplicates import dhash_mirrored


class DecodedFace(NamedTuple):
    """What is remembered of a face once its pixels are written.

    Attributes:
        digest: of the pixels; equal files give equal pixels, so it finds both kinds of exact duplicate.
        phash: an item of `dhash_mirrored`, as bytes.
        luma_mean: as of `luma_stats`.
        luma_std: as above.
    """

    width: int
    height: int
    digest: bytes
    phash: bytes
    luma_mean: float
    luma_std: float


Outcomes: TypeAlias = list[DecodedFace | Reject | None]
"""What became of a chunk's entries, in order; None of those that there were none to decode for."""


@dataclass(frozen=True)
class Chunk:
    """Entries that are decoded together.

    Attributes:
        row: of the first of them in the file of faces; the others follow.
        entries: of the archive; None in the place of one that is not to be decoded.
    """

    row: int
    entries: Sequence[Entry | None]


class Decoder:
    """Decodes chunks of an archive into rows of a file; a context manager.

    Args:
        archive: to read from; its directory has been looked through.
        faces: exists; rows are put where they belong, and others left alone, which may leave holes.
        first_byte: of the file's row 0.
        limits: on one image.
    """

    def __init__(self, archive: Path, faces: Path, first_byte: int, limits: ImageLimits) -> None:
        self._archive = archive.open("rb")
        self._faces = faces.open("r+b")
        self._first_byte = first_byte
        self._reader = EntryReader(self._archive)
        self._limits = limits
        self._pixels = np.empty((0, SIZE, SIZE), np.uint8)  # kept, for memory that is new has to be made first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()
        self._faces.close()

    def decode(self, chunk: Chunk) -> Outcomes:
        """Writes the faces, each to its entry's row, and returns what is to be known of them, in order.

        The rows of rejects are left out: nobody reads them, and an archive of nothing else is not to fill the disk.
        """
        entries = [entry for entry in chunk.entries if entry is not None]
        if not entries:
            return [None] * len(chunk.entries)
        reader = self._reader.prefetched(entries)
        budget = PixelBudget(self._limits, sum(entry.size_bytes for entry in entries))
        outcomes = [entry and self._decode(reader, entry, budget) for entry in chunk.entries]
        decoded = [(row, outcome) for row, outcome in enumerate(outcomes, chunk.row) if isinstance(outcome, Face)]
        if not decoded:
            return [outcome for outcome in outcomes if not isinstance(outcome, Face)]
        if len(self._pixels) < len(decoded):
            self._pixels = np.empty((len(chunk.entries), SIZE, SIZE), np.uint8)
        pixels = self._pixels[: len(decoded)]
        for index, (_, face) in enumerate(decoded):
            pixels[index] = face.pixels
        self._write(pixels, [row for row, _ in decoded])
        phashes = iter(dhash_mirrored(pixels))  # of all at once: that is quicker than one by one
        return [_traits(outcome, next(phashes)) if isinstance(outcome, Face) else outcome for outcome in outcomes]

    def _write(self, pixels: NDArray[np.uint8], rows: Sequence[int]) -> None:
        """Writes faces to their rows, those that follow one another at once: usually all of them."""
        start = 0
        for stop in range(1, len(rows) + 1):
            if stop == len(rows) or rows[stop] > rows[stop - 1] + 1:
                self._faces.seek(self._first_byte + rows[start] * pixels[0].nbytes)
                self._faces.write(pixels[start:stop].data)
                start = stop
        self._faces.flush()

    def _decode(self, reader: EntryReader, entry: Entry, budget: PixelBudget) -> Face | Reject:
        try:
            return decode_face(reader.read(entry), self._limits, budget)
        except InvalidImage as error:
            return reject_for(error)
        except (OSError, MemoryError):
            raise  # of the machine: no entry is at fault
        except Exception:
            traceback.print_exc()  # where the log goes
            return Reject(
                "internal", "decoding this image failed with an internal error; the trainer's log has the traceback"
            )


def _traits(face: Face, phash: NDArray[np.uint64]) -> DecodedFace:
    digest = hashlib.sha256(face.pixels.data).digest()
    return DecodedFace(face.width, face.height, digest, phash.tobytes(), *luma_stats(face.pixels))


def serve(pipe: Connection) -> None:
    """Answers chunks with their outcomes; the work of a child of `DecodePool`.

    The first message has the arguments of the `Decoder`.
    """
    configure_opencv()
    with Decoder(*pipe.recv()) as decoder:
        while True:
            chunk = pipe.recv()
            try:
                answer: Outcomes | Exception = decoder.decode(chunk)
            except Exception as error:  # a full disk, say: the trainer is to raise it
                answer = error
            pipe.send(answer)

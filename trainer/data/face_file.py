"""Files that get their names only when they are whole; `faces.npy` among them, whose rows several processes write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from shared.faces.decode import SIZE

_MOVED_ROWS: Final = 256  # at once: 4 MiB
_BEGUN_ROWS: Final = 2048  # at once: 32 MiB


class FacesWriter:
    """A `faces.npy` under another name, whose rows others write at their places, until it is finished.

    Args:
        path: of the finished file.

    Attributes:
        temp_path: where it lies until then.
        first_byte: of row 0; a row takes 128x128 bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.temp_path = _temp_path(path)
        self._file = self.temp_path.open("w+b")
        self._disk = ThreadPoolExecutor(1, "faces")
        self._begun: list[Future[None]] = []
        self._begun_rows = 0
        self.first_byte = self._write_header(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._disk.shutdown(cancel_futures=True)  # finished, all of it is done
        self._file.close()
        self.temp_path.unlink(missing_ok=True)  # finished, it has its own name by now

    def flush_async(self, rows: int) -> None:
        """Lets the disk begin with what others wrote, of which there are `rows` so far, while they go on.

        A disk that is idle while faces are decoded, and has all of them to write at the end, would be waited for.
        """
        if rows - self._begun_rows >= _BEGUN_ROWS:
            self._begun_rows = rows
            self._begun.append(self._disk.submit(os.fsync, self._file.fileno()))

    def finish(self, rows: Sequence[int]) -> None:
        """Keeps only `rows`, ascending, one or more and all of them written, and publishes the file."""
        for begun in self._begun:
            begun.result()  # Linux tells of a failed write once: to whoever asked first
        gaps = np.flatnonzero(np.asarray(rows) != np.arange(len(rows)))
        if len(gaps):
            faces = np.memmap(self._file, np.uint8, "r", self.first_byte, (rows[-1] + 1, SIZE, SIZE))
            self._file.seek(self.first_byte + int(gaps[0]) * SIZE * SIZE)
            for start in range(int(gaps[0]), len(rows), _MOVED_ROWS):
                # Moves rows forward only, so none is lost. Written as files are, for they may go where nothing was
                # written yet, and a full disk would kill a process that finds it out by the map.
                self._file.write(faces[rows[start : start + _MOVED_ROWS]].data)
        self._file.truncate(self.first_byte + len(rows) * SIZE * SIZE)
        self._file.seek(0)
        self._write_header(len(rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.temp_path.replace(self._path)

    def _write_header(self, rows: int) -> int:
        # NumPy pads the header so that its length does not change as the first axis grows.
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, SIZE, SIZE)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.flush()
        return self._file.tell()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives another path to write to, which takes this one's place once it is whole."""
    temp_path = _temp_path(path)
    try:
        yield temp_path
        temp_path.replace(path)
    finally:
        temp_path.unlink(missing_ok=True)


def _temp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")

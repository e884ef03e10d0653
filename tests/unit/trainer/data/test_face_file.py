from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from trainer.data.face_file import FacesWriter

ROWS = 5000


def written(face_file: FacesWriter) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Fills all rows as another process would, and returns them."""
    faces = np.random.default_rng(0).integers(0, 256, (ROWS, 128, 128), np.uint8)
    with face_file.temp_path.open("r+b") as file:
        file.seek(face_file.first_byte)
        file.write(faces.data)
    return faces


def test_the_disk_begins_while_rows_are_still_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: begun.set())
    with FacesWriter(tmp_path / "faces.npy") as face_file:
        faces = written(face_file)
        face_file.flush_async(1)
        assert not begun.wait(0.05)
        face_file.flush_async(ROWS)
        assert begun.wait(5)
        face_file.finish(range(1, ROWS))
    assert np.array_equal(np.load(tmp_path / "faces.npy"), faces[1:])


def test_rows_move_up_over_rows_that_were_never_written(tmp_path: Path) -> None:
    with FacesWriter(tmp_path / "faces.npy") as face_file:
        faces = np.random.default_rng(0).integers(0, 256, (600, 128, 128), np.uint8)
        with face_file.temp_path.open("r+b") as file:
            file.seek(face_file.first_byte + 1000 * 128 * 128)
            file.write(faces.data)
        face_file.finish(range(1000, 1600))
    assert np.array_equal(np.load(tmp_path / "faces.npy"), faces)


def test_a_disk_that_fills_up_while_rows_move_up_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with FacesWriter(tmp_path / "faces.npy") as face_file:
        with face_file.temp_path.open("r+b") as file:
            file.seek(face_file.first_byte + 1000 * 128 * 128)
            file.write(bytes(600 * 128 * 128))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (face_file.first_byte + 500 * 128 * 128, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                face_file.finish(range(1000, 1600))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_failed_meanwhile_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails_once(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(os, "fsync", fails_once)
    with FacesWriter(tmp_path / "faces.npy") as face_file:
        written(face_file)
        face_file.flush_async(ROWS)
        with pytest.raises(OSError, match="the disk failed"):
            face_file.finish(range(ROWS))
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from shared.archives.archive import Archive, ArchiveLimits
from shared.errors import Cancelled
from shared.faces.decode import ImageLimits
from shared.faces.labels import parse_label
from shared.runtime.settings import Settings
from tests.archives import labelled_faces, zipped
from trainer.data.decode import Chunk, DecodedFace
from trainer.data.decode_pool import WORTH_PROCESSES, Decoders
from trainer.data.ingest import ingest

ARCHIVE_LIMITS = ArchiveLimits.from_settings(Settings())
IMAGE_LIMITS = ImageLimits.from_settings(Settings())

INGEST_AND_WAIT = """
import sys
from pathlib import Path
from tests.unit.trainer.data.test_decode_pool import ARCHIVE_LIMITS, IMAGE_LIMITS, decoders
from trainer.data.ingest import ingest

def wait(done, total):
    print(*decoders(), flush=True)
    sys.stdin.read()

ingest(Path(sys.argv[1]), Path(sys.argv[2]), ARCHIVE_LIMITS, IMAGE_LIMITS, threads=3, on_progress=wait)
"""


def children() -> list[int]:
    """Returns the ids of this process's children."""
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def decoders() -> list[int]:
    """Returns the ids of those that decode, and have got so far that one sees it."""
    return [child for child in children() if b"trainer.data.decode_pool" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.fixture
def large_archive(tmp_path: Path) -> Path:
    """A zip of 400 faces that is worth processes, by what else is in it."""
    path = tmp_path / "faces.zip"
    path.write_bytes(zipped([*labelled_faces(400), ("notes.txt", bytes(WORTH_PROCESSES))]))
    return path


def test_processes_write_what_one_alone_writes(tmp_path: Path, large_archive: Path) -> None:
    seen: list[int] = []
    written = []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        ingest(
            large_archive,
            folder,
            ARCHIVE_LIMITS,
            IMAGE_LIMITS,
            threads=threads,
            on_progress=lambda _done, _total: seen.append(len(decoders())),
        )
        written.append([(folder / name).read_bytes() for name in ("faces.npy", "faces.csv", "rejects.csv")])
    assert written[0] == written[1]
    assert seen == [0] * 13 + [2] * 13
    assert decoders() == []


def test_a_cancelled_ingest_leaves_neither_process_nor_file(tmp_path: Path, large_archive: Path) -> None:
    def cancel(_done: int, _total: int) -> None:
        assert len(decoders()) == 2
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        ingest(large_archive, tmp_path / "d", ARCHIVE_LIMITS, IMAGE_LIMITS, threads=3, on_progress=cancel)
    assert decoders() == []
    assert list((tmp_path / "d").iterdir()) == []


def chunk_of(archive: Archive, start: int, stop: int) -> Chunk:
    entries = archive.entries[start:stop]
    return Chunk(start, entries, [parse_label(entry.name) for entry in entries])


def test_a_decoding_process_that_dies_at_its_work_says_so(tmp_path: Path, large_archive: Path) -> None:
    faces = tmp_path / "faces"
    faces.touch()
    answered = 0
    before = children()
    with (
        Decoders(large_archive, faces, 0, IMAGE_LIMITS, processes=3) as processes,
        Archive(large_archive, ARCHIVE_LIMITS) as archive,
    ):
        chunks = (chunk_of(archive, start, min(start + 32, 400)) for start in range(0, 400, 32))
        *_, victim = (child for child in children() if child not in before)
        os.kill(victim, signal.SIGSTOP)  # so that it cannot be done before it is killed
        with pytest.raises(RuntimeError, match="a decoding process ended with -9"):  # noqa: PT012
            for _ in processes.decode(chunks):
                answered += 1
                os.kill(victim, signal.SIGKILL)
    assert 0 < answered < 13
    assert decoders() == []


def test_a_decoding_process_that_died_before_it_was_asked_says_so(tmp_path: Path, large_archive: Path) -> None:
    faces = tmp_path / "faces"
    faces.touch()
    before = children()
    with Decoders(large_archive, faces, 0, IMAGE_LIMITS, processes=2) as processes:
        for pid in set(children()) - set(before):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(RuntimeError, match="a decoding process ended with -9"):
            list(processes.decode([Chunk(0, [], [])]))


def test_no_decoding_process_outlives_a_killed_trainer(tmp_path: Path, large_archive: Path) -> None:
    command = [sys.executable, "-c", INGEST_AND_WAIT, str(large_archive), str(tmp_path / "d")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert len(trainer.stdout.readline().split()) == 2
        trainer.kill()
        trainer.communicate(timeout=10)  # returns when nobody holds its output any more; they inherited it


def test_signals_meant_for_the_trainer_do_not_end_its_decoding_processes(tmp_path: Path, large_archive: Path) -> None:
    def stop(pids: Iterable[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)

    done = ingest(
        large_archive,
        tmp_path / "d",
        ARCHIVE_LIMITS,
        IMAGE_LIMITS,
        threads=2,
        on_progress=lambda _done, _total: stop(decoders()),
    )
    assert done.faces == 400
    faces = tmp_path / "faces"
    faces.touch()
    before = children()
    with (
        Decoders(large_archive, faces, 0, IMAGE_LIMITS, processes=2) as processes,
        Archive(large_archive, ARCHIVE_LIMITS) as archive,
    ):
        stop(set(children()) - set(before))  # before they can have said that they ignore it
        ((_, outcomes),) = processes.decode([chunk_of(archive, 0, 1)])
    assert isinstance(outcomes[0], DecodedFace)

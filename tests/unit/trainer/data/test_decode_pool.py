from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from shared.archives.archive import ArchiveLimits
from shared.errors import Cancelled
from shared.faces.decode import ImageLimits
from shared.runtime.settings import Settings
from tests.support.builders.archives import labelled_faces, zipped
from tests.support.killers import BUGGY, KILLER, killing_environment
from trainer.data.decode_pool import WORTH_PROCESSES
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


def decoders() -> list[int]:
    """Returns the ids of the processes that decode for this one: children of the one that forks them."""
    return [pid for server in _children("self") if _forks(server) for pid in _children(server)]


def _forks(pid: int) -> bool:
    """Returns whether a process is a fork server: this one may have others, such as a broker for the tests."""
    try:
        return b"shared.worker.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children(pid: int | str) -> list[int]:
    task = os.getpid() if pid == "self" else pid
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.fixture
def large_archive(tmp_path: Path) -> Path:
    """A zip of 800 faces that is worth processes, by what else is in it."""
    path = tmp_path / "faces.zip"
    path.write_bytes(zipped([*labelled_faces(800), ("notes.txt", bytes(WORTH_PROCESSES))]))
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
    assert seen == [1] * 13 + [3] * 13
    assert decoders() == []


def test_a_cancelled_ingest_leaves_neither_process_nor_file(tmp_path: Path, large_archive: Path) -> None:
    def cancel(_done: int, _total: int) -> None:
        assert len(decoders()) == 3
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        ingest(large_archive, tmp_path / "d", ARCHIVE_LIMITS, IMAGE_LIMITS, threads=3, on_progress=cancel)
    assert decoders() == []
    assert list((tmp_path / "d").iterdir()) == []


def test_a_decoding_process_that_is_killed_at_its_work_costs_nothing(tmp_path: Path, large_archive: Path) -> None:
    killed: set[int] = set()

    def kill(done: int, _total: int) -> None:
        if done % 256 == 0:
            victim = decoders()[0]
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)

    summary = ingest(large_archive, tmp_path / "d", ARCHIVE_LIMITS, IMAGE_LIMITS, threads=2, on_progress=kill)
    assert len(killed) == 3
    assert (summary.faces, summary.rejects) == (800, {"no_label": 1})
    assert decoders() == []


@pytest.mark.parametrize(("image", "reason"), [(KILLER, "killed_worker"), (BUGGY, "internal")], ids=["killer", "bug"])
@pytest.mark.parametrize("threads", [1, 2])
def test_in_a_dataset_of_300_an_entry_that_kills_or_provokes_a_bug_is_the_only_reject(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    image: bytes,
    reason: str,
    threads: int,
) -> None:
    for name, value in killing_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    entries = labelled_faces(300)
    entries[123] = ("30_1_0_culprit.png", image)
    archive = tmp_path / "faces.zip"
    archive.write_bytes(zipped(entries))
    summary = ingest(archive, tmp_path / "d", ARCHIVE_LIMITS, IMAGE_LIMITS, threads=threads)
    assert (summary.faces, summary.rejects) == (299, {reason: 1})
    with (tmp_path / "d" / "rejects.csv").open(newline="") as file:
        (reject,) = csv.DictReader(file)
    assert (reject["name"], reject["reason"]) == ("30_1_0_culprit.png", reason)
    deaths = caplog.text.count("a child process died") + caplog.text.count("killed two processes")
    assert deaths == (2 if image is KILLER else 0)


@pytest.mark.slow
def test_no_decoding_process_outlives_a_killed_trainer(tmp_path: Path, large_archive: Path) -> None:
    command = [sys.executable, "-c", INGEST_AND_WAIT, str(large_archive), str(tmp_path / "d")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert len(trainer.stdout.readline().split()) == 3
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
    assert done.faces == 800

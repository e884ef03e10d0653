"""A million faces in 8 GiB: `python -m tests.bench.model.million [--faces N] [--folder DIR]`.

Faces are generated, and one run of the trainer's pipeline goes over them, from archive to registered model, in a
process that may not have more than 8 GiB of writable memory of its own: the kernel refuses more (RLIMIT_DATA). Memory
maps of files do not count there, as the kernel takes their pages back whenever it needs them; what was resident of them
is shown beside it. The network is the smallest, and sees every face once: what it learns is not the question here.

Takes some 25 kB of disk a face, and at a million of them the better part of an hour on two idle cores. An archive made
in a folder of the caller's stays there for the next time.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from shared.faces.decode import configure_opencv
from shared.faces.labels import Label
from shared.faces.synthetic import draw_face
from shared.records.runs import EpochRow, Progress, Runs, RunState
from shared.runtime.settings import Settings

MEMORY_BYTES: Final = 8 * 2**30
PARAMS: Final[dict[str, Any]] = {"network": "small", "epochs": 1, "augment": False}
DRAWN: Final = 300
"""Faces that are drawn by each process that generates; the others are those, turned."""
_BATCH: Final = 2_000
_MIB: Final = 2**20


def main() -> int:
    """Generates, trains, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one otherwise")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        return _train(arguments.train)
    with tempfile.TemporaryDirectory(prefix="million-", dir=arguments.folder) as name:
        folder = Path(name)
        archive = (arguments.folder or folder) / f"faces-{arguments.faces}.zip"
        if not archive.exists():
            started = time.monotonic()
            write_archive(archive.with_suffix(".part"), arguments.faces)
            archive.with_suffix(".part").replace(archive)
            seconds = time.monotonic() - started
            _say(f"generated {arguments.faces:,} faces, {arguments.faces / seconds:,.0f} a second")
        (folder / "archive.zip").hardlink_to(archive)
        command = [sys.executable, "-m", "tests.bench.model.million", "--train", str(folder / "archive.zip")]
        environment = {**os.environ, "TMPDIR": name}  # the store is there too, so that files are moved, not copied
        with subprocess.Popen(command, env=environment) as process, _Watch(process.pid) as watch:
            failed = process.wait()
        _say(f"most memory of their own: {watch.own / _MIB:,.0f} MiB of {MEMORY_BYTES / _MIB:,.0f}")
        _say(f"most pages of files, meanwhile: {watch.files / _MIB:,.0f} MiB")
    return failed


def write_archive(path: Path, faces: int) -> None:
    """Writes a zip of 128x128 JPEGs with labels in their names, no two the same."""
    processes = Settings().cores
    with (
        zipfile.ZipFile(path, "w") as archive,
        ProcessPoolExecutor(processes, get_context("spawn"), configure_opencv) as pool,
    ):
        batches = iter(range(0, faces, _BATCH))
        while now := list(islice(batches, 4 * processes)):  # no more at once: they are held in memory
            for batch in pool.map(_faces, now, [min(_BATCH, faces - start) for start in now]):
                for name, data in batch:
                    archive.writestr(zipfile.ZipInfo(name), data)


_drawn: list[tuple[Label, Any]] = []


def _faces(start: int, count: int) -> list[tuple[str, bytes]]:
    if not _drawn:
        rng = np.random.default_rng(7)
        for _ in range(DRAWN):
            label = Label(int(np.clip(rng.gamma(4.0, 8.5), 1, 95)), int(rng.random() < 0.5), int(rng.integers(5)))
            _drawn.append((label, cv2.resize(draw_face(label, rng), (128, 128), interpolation=cv2.INTER_AREA)))
    rng = np.random.default_rng((7, start))
    files = []
    for index in range(start, start + count):
        label, face = _drawn[index % DRAWN]
        turn = cv2.getRotationMatrix2D((64, 64), rng.uniform(-30, 30), rng.uniform(0.8, 1.6))
        turn = turn + np.array([[0, 0, rng.uniform(-24, 24)], [0, 0, rng.uniform(-24, 24)]])
        pixels = cv2.warpAffine(face, turn, (128, 128), borderMode=cv2.BORDER_REFLECT)
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(68, 83))])[1].tobytes()
        files.append((f"{label.age}_{label.gender}_{label.ethnicity}_{20170101000000000 + index}.jpg", data))
    return files


def _train(archive: Path) -> int:
    """Runs the pipeline on the archive, in this process, whose memory is limited first."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    import torch
    from prometheus_client import CollectorRegistry

    from shared.params import TrainingParams
    from shared.store.base import sha256_of
    from shared.store.files import FileStore
    from shared.telemetry.metrics import TrainerMetrics
    from trainer.pipeline import Pipeline
    from trainer.run_monitor import Monitor

    settings = Settings()
    configure_opencv()
    torch.set_num_threads(settings.cores)
    store = FileStore(archive.parent / "store")
    sha256 = sha256_of(archive)
    store.put_file(f"datasets/{sha256}/archive.zip", archive)
    params = TrainingParams.parse(PARAMS)
    Runs(store).create("run-million", message_id="bench", name="drawn faces", params=params, state=RunState.TRAINING)
    told = _Told()
    monitor = Monitor()
    monitor.on_state, monitor.on_progress = told.state, told.progress  # type: ignore[method-assign]
    monitor.on_epoch = told.epoch  # type: ignore[method-assign]
    pipeline = Pipeline(store, settings, TrainerMetrics(CollectorRegistry()), torch.device("cpu"))
    card = pipeline.run("run-million", "drawn faces", sha256, params, monitor)
    told.state("")
    _say(
        f"registered version {card.version}, accuracy {card.evaluation.accuracy:.3f} on {card.evaluation.count:,} faces"
    )
    return 0


class _Told:
    """Prints how long each state of the run took, and how fast its stages were."""

    def __init__(self) -> None:
        self._state = ""
        self._since = self._decoded = time.monotonic()

    def state(self, state: str) -> None:
        now = time.monotonic()
        if self._state == RunState.INGESTING:
            _say(f"near-duplicates, split and files: {now - self._decoded:,.1f} s")
        if self._state:
            _say(f"{self._state}: {now - self._since:,.1f} s in all")
        self._state, self._since = state, now

    def progress(self, progress: Progress) -> None:
        if progress.stage in {RunState.INGESTING, RunState.EVALUATING} and progress.done == progress.total:
            _say(f"{progress.stage}: {progress.total:,} faces, {progress.rate:,.0f} a second")
            self._decoded = time.monotonic()

    def epoch(self, row: EpochRow) -> None:
        _say(f"training: {row.images_per_second:,.0f} faces a second, without validation")


class _Watch:
    """Looks at the memory of a process and those it started, four times a second; a context manager.

    Attributes:
        own: the most bytes of memory that were theirs alone to hold: anonymous and shared.
        files: the most bytes of mapped files that were resident.
    """

    def __init__(self, pid: int) -> None:
        self.own = self.files = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.25):
            found = [_memory(pid) for pid in _family(self._pid)]
            self.own = max(self.own, sum(own for own, _ in found))
            self.files = max(self.files, sum(files for _, files in found))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            yield from _family(int(child))


def _memory(pid: int) -> tuple[int, int]:
    sizes = dict(line.split(":") for line in _read(Path(f"/proc/{pid}/status")).splitlines())
    own, shared, files = (1024 * int(sizes.get(f"Rss{kind}", "0 kB").split()[0]) for kind in ("Anon", "Shmem", "File"))
    return own + shared, files


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

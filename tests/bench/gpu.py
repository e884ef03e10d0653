"""What a GPU adds: models batch by batch, jobs through the service, training, and how busy it is with each."""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inference.model import gpu as cuda
from inference.worker_layout import plan
from shared.faces.decode import SIZE
from shared.params import TrainingParams
from shared.records.model_card import ServedPrecision
from shared.records.registry import Registry
from tests.bench import lifetime, training
from tests.bench.bare import BareLoops
from tests.bench.rows import Pairs, Row
from tests.bench.stage import Stage
from tests.bench.throughput import job_archive, run_job

BATCHES = (1, 8, 64, 256)
COMPARED = 64
JOB_IMAGES = 100_000
EPOCH_STEPS = 512
"""Enough that an epoch lasts for a second: the GPU is asked every tenth of one whether it is busy."""


def name() -> str | None:
    """Returns what the GPU is called; None where there is none for ONNX Runtime to use."""
    if not cuda.available():
        return None
    try:
        return _asked("name")
    except (OSError, subprocess.CalledProcessError):
        return None


def batches(stage: Stage) -> list[Row]:
    """Models on the GPU by the size of a batch, from bytes in main memory to probabilities there."""
    rows = []
    models: list[tuple[str, ServedPrecision]] = [
        ("default", "float32"),
        ("default", "float16"),
        ("reference", "float32"),
    ]
    for model, precision in models:
        data = (stage.material.store(model) / Registry.model_key(1, precision)).read_bytes()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        run = cuda.GpuRun(cuda.open_session(data, options), "image", "probability_female", SIZE)
        plain = ort.InferenceSession(data, options, providers=[cuda.PROVIDER])
        took = {size: _median_s(run, size, stage.quick) for size in BATCHES}
        figure = ", ".join(f"{size}: {1e3 * s:.2f} ms, {size / s:,.0f} images/s" for size, s in took.items())
        rows.append(Row(f"{model}, {precision}, batches of", figure, None, "", None))
        by_itself = _median_s(functools.partial(_run_plainly, plain), COMPARED, stage.quick)
        figure = f"{1e3 * took[COMPARED]:.2f} ms, as ONNX Runtime does by itself {1e3 * by_itself:.2f}"
        what = f"{model}, {precision}, batches of {COMPARED}: bound and recorded"
        rows.append(Row(what, figure, by_itself / took[COMPARED], "", None))
    return rows


def jobs(stage: Stage) -> list[Row]:
    """A job by a worker a core that share the GPU, against bare loops that do, and against decoding alone."""
    cores = len(os.sched_getaffinity(0))
    archive = job_archive(stage, JOB_IMAGES // 4 if stage.quick else JOB_IMAGES)
    seconds = 1 if stage.quick else 3
    with BareLoops(None, stage.material.archive, processes=cores) as decoding:
        decoding.run(0.5)
        decoded = decoding.run(seconds).rate
    with (
        stage.served("embedded", "default", workers=cores, provider="cuda") as served,
        BareLoops(stage.material.store("default"), stage.material.archive, processes=cores, provider="cuda") as bare,
    ):
        run_job(served, archive)
        bare.run(0.5)
        pairs, busy_bare, busy_ours = Pairs([], []), Busy(), Busy()
        for _ in range(1 if stage.quick else 3):
            with busy_bare:
                pairs.bare.append(bare.run(seconds))
            with busy_ours:
                pairs.ours.append(run_job(served, archive)[0])
        workers_us = statistics.median(lap.cpu_us for lap in pairs.ours)
        bare_us = statistics.median(lap.cpu_us for lap in pairs.bare)
    what = f"champion in {bare.precision}, jobs, embedded, {cores} workers"
    return [
        Row(what, pairs.figure, pairs.ratio, "", None),
        Row("the same: CPU time an image", f"{workers_us:,.0f} µs, bare loop {bare_us:,.0f}", None, "", None),
        Row("the same: decoding alone on these cores", f"{decoded:,.0f} images/s", None, "", None),
        Row("the same: how long the GPU is busy", f"{busy_ours}, bare loop {busy_bare}", None, "", None),
    ]


def layouts(stage: Stage) -> list[Row]:
    """The same job by fewer workers that decode in threads: each has a core, and a session on the GPU, or several."""
    cores = len(os.sched_getaffinity(0))
    archive = job_archive(stage, JOB_IMAGES // 4)
    rows = []
    for workers in sorted({cores, -(-cores // 2), -(-cores // 4)}, reverse=True):
        with stage.served("embedded", "default", workers=workers, provider="cuda") as served:
            run_job(served, archive)
            rate = statistics.median(run_job(served, archive)[0].rate for _ in range(1 if stage.quick else 3))
        threads = plan(cores, wanted=workers, gpu_bytes=None).decode_processes
        what = f"champion, jobs, embedded, {workers} workers that decode in {threads} threads each"
        rows.append(Row(what, f"{rate:,.0f} images/s", None, "", None))
    return rows


def learning(stage: Stage) -> list[Row]:
    """Epochs as the trainer does them, against the same steps on resident tensors, kernel by kernel."""
    rows = []
    for network, batch_size in (("compact", 64), ("compact", 256), ("large", 256)):
        busy = Busy()
        faces = EPOCH_STEPS // (8 if stage.quick else 1) * batch_size
        params = TrainingParams(epochs=1, network=network, batch_size=batch_size)
        row = training.measured(params, faces=faces, laps=2, while_training=busy)
        rows += [row, Row("the same: how long the GPU is busy", f"{busy}", None, "", None)]
    return rows


def swaps(stage: Stage) -> list[Row]:
    """Two models by turns on the GPU, under load."""
    return [lifetime.swapping(stage, "embedded", count=2 if stage.quick else 20, provider="cuda")]


class Busy:
    """The share of time in which the GPU runs anything, and the memory it has in use; a context manager."""

    def __init__(self) -> None:
        self._samples: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        command = [*_QUERY.split(), "--query-gpu=utilization.gpu,memory.used", "--loop-ms=100"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            busy, memory = line.split(",")
            self._samples.append((int(busy), int(memory)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()

    def __str__(self) -> str:
        if not self._samples:
            return "too short to tell"
        share = statistics.mean(busy for busy, _ in self._samples)
        return f"{share:.0f} % of the time, {max(memory for _, memory in self._samples) / 1024:.1f} GB in use"


_QUERY = "nvidia-smi --format=csv,noheader,nounits --id=0"


def _asked(what: str) -> str:
    command = [*_QUERY.split(), f"--query-gpu={what}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _run_plainly(session: ort.InferenceSession, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    (probabilities,) = session.run(None, {"image": images})
    return np.asarray(probabilities, np.float32)


def _median_s(run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], size: int, quick: bool) -> float:
    images = np.random.default_rng(size).integers(0, 256, (size, 1, SIZE, SIZE), dtype=np.uint8)
    for _ in range(5):
        run(images)
    took = []
    for _ in range(20 if quick else 100):
        started = time.perf_counter()
        run(images)
        took.append(time.perf_counter() - started)
    return statistics.median(took)

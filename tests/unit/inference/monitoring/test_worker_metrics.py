"""The figures of several worker processes, of which some have died."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from inference.monitoring.worker_metrics import WorkersCollector

WORKER = """
import sys
from prometheus_client import CollectorRegistry
from shared.telemetry.metrics import InferenceMetrics

metrics = InferenceMetrics(CollectorRegistry())
metrics.predictions.labels("ok").inc(3)
metrics.batch_size.observe(4)
metrics.model_info.labels("1", "cpu").set(1)
print("counted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def living() -> set[int]:
    return set()


@pytest.fixture
def figures(tmp_path: Path, living: set[int]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(WorkersCollector(tmp_path, lambda: living))
    return registry


@contextlib.contextmanager
def worker(folder: Path, living: set[int]) -> Iterator[None]:
    """Runs a worker that has counted three images in one batch; kills it in the end."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"counted\n"
        living.add(process.pid)
        yield
        process.kill()
    living.remove(process.pid)


def test_counts_of_dead_workers_stay_and_their_files_go(
    figures: CollectorRegistry, tmp_path: Path, living: set[int]
) -> None:
    def value(name: str, **labels: str) -> float | None:
        return figures.get_sample_value(name, labels)

    files = []
    for dead in range(3):
        with worker(tmp_path, living), worker(tmp_path, living):
            assert value("genderline_predictions_total", outcome="ok") == 3 * (2 * dead + 2)
            assert value("genderline_model_info", version="1", provider="cpu") == 2
        for _ in range(2):
            assert value("genderline_predictions_total", outcome="ok") == 3 * (2 * dead + 2)
            assert value("genderline_batch_size_count") == 2 * dead + 2
            assert value("genderline_batch_size_bucket", le="2.0") == 0
            assert value("genderline_batch_size_bucket", le="4.0") == 2 * dead + 2
            assert value("genderline_batch_size_sum") == 4 * (2 * dead + 2)
            assert value("genderline_model_info", version="1", provider="cpu") is None
        files.append(sorted(file.name for file in tmp_path.iterdir()))
    assert files == [["counter_dead.db", "histogram_dead.db"]] * 3


def test_a_worker_that_died_before_it_wrote_anything_does_no_harm(figures: CollectorRegistry, tmp_path: Path) -> None:
    (tmp_path / "counter_4711.db").write_bytes(b"")
    assert list(figures.collect()) == []
    assert list(tmp_path.iterdir()) == []

"""What watching the answers costs an image: `python -m tests.bench.parts.observers`."""

from __future__ import annotations

import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from inference.monitoring.drift import Drift
from shared.faces.synthetic import draw_sample
from tests.support.inference_loops import open_loops
from trainer.release.export import export_onnx
from trainer.training.model import build_network

IMAGES = 1024
ROUNDS = 7
LIMIT = 0.01


def best_us(work: Callable[[], object]) -> float:
    """Returns the least time of a few rounds over all images, in microseconds an image."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) / IMAGES * 1e6


def built_model(folder: Path) -> bytes:
    """Returns the ONNX file of the lightest network, untrained: beside it, whatever else is done costs the most."""
    export_onnx(build_network("small", dropout=0.4).eval(), 1.0, folder / "model.onnx", {})
    return (folder / "model.onnx").read_bytes()


def drawn_faces(folder: Path, count: int) -> list[bytes]:
    """Returns drawn faces as files."""
    draw_sample(folder / "faces.zip", count, seed=0)
    with zipfile.ZipFile(folder / "faces.zip") as archive:
        return [archive.read(entry) for entry in archive.namelist()[:count]]


def main() -> int:
    """Prints each observer's time beside that of decoding and predicting; returns 1 where a share is over the limit."""
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as name,
        open_loops(Path(name), f"sqlite:///{name}/broker.db", shadow_share=1.0) as loops,
    ):
        folder = Path(name)
        images = drawn_faces(folder, IMAGES)
        random = np.random.default_rng(0)
        loops.builder.register(
            built_model(folder),
            faces=random.integers(0, 256, (200, 128, 128), dtype=np.uint8),
            probability=random.random(200, np.float32),
        )
        loops.models.refresh()
        model = loops.models.champion
        assert model is not None
        faces = np.stack([face for face in loops.predictor.decoder.decode(images) if isinstance(face, np.ndarray)])
        answers = model.predict(faces).tolist()
        drift, shadow = Drift(loops.metrics, lambda: model), loops.shadow
        predictor = replace(loops.predictor, observers=[])
        shadow._challenger = model

        def into_an_empty_queue(batch: slice) -> None:
            shadow._queue, shadow._waiting = SimpleQueue(), 0
            shadow.observe(model, faces[batch], answers[batch])

        def in_batches(size: int, work: Callable[[slice], object]) -> float:
            batches = [slice(start, start + size) for start in range(0, IMAGES, size)]
            return best_us(lambda: [work(batch) for batch in batches])

        slow = 0
        sys.stdout.write("microseconds an image\n")
        sys.stdout.write(f"{'images a batch':>14}{'decode and predict':>20}{'drift':>10}{'share':>9}")
        sys.stdout.write(f"{'all shadowed':>16}{'share':>9}\n")
        for size in (1, 8, 64):
            whole = in_batches(size, lambda batch: predictor.predict(model, images[batch]))
            watched = in_batches(size, lambda batch: drift.observe(model, faces[batch], answers[batch]))
            shadowed = in_batches(size, into_an_empty_queue)
            slow += watched > LIMIT * whole
            sys.stdout.write(f"{size:>14}{whole:>20.1f}{watched:>10.2f}{watched / whole:>9.2%}")
            sys.stdout.write(f"{shadowed:>16.2f}{shadowed / whole:>9.2%}\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

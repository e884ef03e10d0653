"""`python -m tests.bench.model.runtimes`: the champion on one core, by precision and runtime, with and without mirror.

The model alone: no decoding, no queue. The network is the starter; its int8 variant is calibrated on drawn faces, which
its speed does not depend on. All rows take turns in one run, so that what else the machine does is the same for all.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.model import openvino_run
from inference.model.loader import open_file
from inference.model.run import Run
from shared.faces.labels import Label
from shared.faces.synthetic import draw_face
from trainer.release.export import export_onnx, quantize_int8
from trainer.training.model import build_network, measure_cost
from trainer.training.starter import STARTER_NETWORK, load_starter

BATCH: Final = 64
TURNS: Final = 15


def main() -> None:
    """Measures and prints a table in Markdown; ratios are to the first row."""
    faces = _draw(BATCH)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        for mirror in (True, False):
            network = build_network(STARTER_NETWORK, dropout=0.0, mirror=mirror)
            network.load_state_dict(load_starter().weights)
            name = f"{measure_cost(network).multiply_adds / 1e6:.0f} M{', mirror image' if mirror else ''}"
            float32, int8 = Path(folder) / f"{mirror}.onnx", Path(folder) / f"{mirror}_int8.onnx"
            export_onnx(network, 1.0, float32, {})
            quantize_int8(float32, int8, faces[:, 0])
            for precision, path in (("int8", int8), ("float32", float32)):
                runs[f"{name}, {precision}, ONNX Runtime"] = open_file(path.read_bytes(), "cpu", name)[1]
                if openvino_run.available():
                    runs[f"{name}, {precision}, OpenVINO"] = openvino_run.open_run(path.read_bytes())
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(TURNS + 1):  # the first warms up
            for name, run in runs.items():
                started = time.thread_time()
                run(faces)
                rates[name].append(BATCH / max(time.thread_time() - started, 1e-9))
    first = statistics.median(next(iter(rates.values()))[1:])
    print("| champion on one core | images/s of processor time | ratio |\n| --- | ---: | ---: |")  # noqa: T201
    for name, found in rates.items():
        rate = statistics.median(found[1:])
        print(f"| {name} | {rate:,.0f} | {rate / first:.2f} |")  # noqa: T201


def _draw(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    drawn = [draw_face(Label(30, index % 2, 0), rng) for index in range(count)]
    grey = [cv2.resize(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), (128, 128)) for face in drawn]
    return np.stack(grey).astype(np.uint8)[:, None]


if __name__ == "__main__":
    main()

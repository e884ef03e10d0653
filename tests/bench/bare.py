"""The bare loop: what is left without a service. Processes that decode and predict JPEGs from their own memory, one
plain loop each, with the same decoder, the same ONNX file, session options and batch size. No queue, no replies.

Run as a module it is one such process, told by lines on its standard input how long to run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from shared.faces.decode import SIZE, ImageLimits, configure_opencv, decode_face
from shared.runtime.settings import Settings
from shared.store.files import FileStore


@dataclass(frozen=True)
class Lap:
    """What some processes did in a while.

    Attributes:
        images: in all of them together.
        seconds: on the clock.
        cpu_s: processor time, of all of them together.
    """

    images: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def cpu_us(self) -> float:
        """Processor time an image, in microseconds."""
        return 1e6 * self.cpu_s / max(self.images, 1)


class BareLoops:
    """Some processes with a bare loop each; a context manager.

    Args:
        store: a store's folder; its version 1 is the model. None decodes only.
        archive: a zip of images.
        processes: how many.
        batch_size: images in one run of the model.
        like_peers: the loops are of what the peers serve, `tests.bench.peers.serving`, as this environment says.
        provider: where the model runs.

    Attributes:
        precision: of the model as it was chosen.
    """

    def __init__(
        self,
        store: Path | None,
        archive: Path,
        *,
        processes: int = 2,
        batch_size: int = 64,
        like_peers: Mapping[str, str] | None = None,
        provider: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        command = [sys.executable, "-m", "tests.bench.bare", str(archive), "--batch", str(batch_size)]
        command += ["--provider", provider]
        command += ["--store", str(store)] if store else []
        command += ["--like-peers"] if like_peers else []
        environment = {**os.environ, **(like_peers or {})}
        self._processes = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        ready = [self._answer(process) for process in self._processes]
        self.precision: str | None = ready[0]["precision"]

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [process.pid for process in self._processes]

    def run(self, seconds: float) -> Lap:
        """Lets all of them run for a while, at once."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        rate = sum(answer["images"] / answer["seconds"] for answer in answers)
        longest = max(answer["seconds"] for answer in answers)
        # Each stops at the end of a batch of its own, so their speeds add up, not their counts.
        images = round(rate * longest)
        share = images / max(sum(answer["images"] for answer in answers), 1)
        return Lap(images, longest, share * sum(answer["cpu_s"] for answer in answers))

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a bare loop ended with {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


def main() -> int:
    """One process: says when it is ready, then runs for as many seconds as each line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--like-peers", action="store_true")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.archive) as archive:
        images = [archive.read(member) for member in archive.infolist()[:4096]]
    precision, step = _step_like_peers() if arguments.like_peers else _step(arguments.store, arguments.provider)
    _say(ready=True, precision=precision)
    endless = itertools.cycle(images)
    for line in sys.stdin:
        done, cpu, started = 0, time.process_time(), time.perf_counter()
        while (took := time.perf_counter() - started) < float(line):
            step([next(endless) for _ in range(arguments.batch)])
            done += arguments.batch
        _say(images=done, seconds=took, cpu_s=time.process_time() - cpu)
    return 0


def _step(store: Path | None, provider: Literal["cpu", "cuda"]) -> tuple[str | None, Callable[[list[bytes]], object]]:
    """Returns the model's precision, and what decodes a batch and predicts it; without a store, decodes only."""
    configure_opencv()
    limits = ImageLimits.from_settings(Settings())

    def decode(images: list[bytes]) -> NDArray[np.uint8]:
        faces = np.empty((len(images), SIZE, SIZE), np.uint8)
        for row, data in enumerate(images):
            faces[row] = decode_face(data, limits).pixels
        return faces

    if store is None:
        return None, decode
    from inference.model.loader import load_model

    model = load_model(FileStore(store), 1, provider)
    return model.precision, lambda images: model.predict(decode(images))


def _step_like_peers() -> tuple[None, Callable[[list[bytes]], object]]:
    from tests.bench.peers.serving import Served

    served = Served()
    return None, lambda images: served.predict([served.decode(data) for data in images])


def _say(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())

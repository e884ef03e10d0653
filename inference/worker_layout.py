"""How many worker processes a machine runs, and how many decoding processes each has."""

from __future__ import annotations

import importlib.metadata
from typing import Final, NamedTuple

from shared.runtime.settings import Settings

GPU_BYTES: Final = 2**30
"""GPU memory for each worker: CUDA itself, a model, and another one loaded beside it take 0.8 GB."""


class WorkerLayout(NamedTuple):
    """How the cores are used.

    Attributes:
    workers: number of processes.
        decode_processes: number of children of each that decode images.
    """

    workers: int
    decode_processes: int


def plan_for(settings: Settings) -> WorkerLayout:
    """Returns the layout of this machine, as the settings want it."""
    gpu_bytes = gpu_memory_bytes() if settings.provider != "cpu" else None
    return plan(settings.cores, wanted=settings.workers, gpu_bytes=gpu_bytes)


def plan(cores: int, *, wanted: int, gpu_bytes: int | None) -> WorkerLayout:
    """Plans a worker for each core, but no more than the GPU's memory has room for; the cores left over decode.

    One share of that memory is kept free for the process that new models are tried in.


    Args:
        cores: of the machine.
        wanted: workers that the settings ask for; 0 chooses.
        gpu_bytes: memory of the GPU that the workers share; None without a GPU.
    """
    workers = wanted or (cores if gpu_bytes is None else max(1, min(cores, gpu_bytes // GPU_BYTES - 1)))
    return WorkerLayout(workers, max(1, cores // workers))


def gpu_memory_bytes() -> int | None:
    """Returns the memory of the smallest GPU; None where there is none, or ONNX Runtime is not the build for one."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
        import pynvml  # noqa: PLC0415 - comes with the extra `inference-gpu` only
    except ImportError:  # of which a package that is not found is one
        return None
    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=None)
    except pynvml.NVMLError:
        return None

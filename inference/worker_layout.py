"""How many worker processes a machine runs, and how many decoding processes each has."""

from __future__ import annotations

import importlib.metadata
from typing import Final, NamedTuple

from shared.runtime.resources import memory_limit_bytes
from shared.runtime.settings import Settings

GPU_BYTES: Final = 2**30
"""GPU memory for each worker: CUDA itself, a model, and another one loaded beside it take 0.8 GB."""
MEMORY_BYTES: Final = 2**29
"""Memory for each worker on a CPU: itself, a process that decodes, and the messages that it holds."""
MEMORY_WITH_GPU_BYTES: Final = 2 * 2**30
"""The same with a GPU, whose libraries take 1.2 GB of every process."""


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
    return plan(settings.cores, wanted=settings.workers, gpu_bytes=gpu_bytes, memory_bytes=memory_limit_bytes())


def plan(cores: int, *, wanted: int, gpu_bytes: int | None, memory_bytes: int | None = None) -> WorkerLayout:
    """Plans a worker for each core, but no more than memory has room for; the cores left over decode.

    One share of the memory, and of the GPU's, is kept free for the process that new models are tried in.

    Args:
        cores: that this process may use.
        wanted: workers that the settings ask for; 0 chooses.
        gpu_bytes: memory of the GPU that the workers share; None without a GPU.
        memory_bytes: memory that all of them may use together; None without a limit.
    """
    most = [cores]
    if gpu_bytes is not None:
        most.append(gpu_bytes // GPU_BYTES - 1)
    if memory_bytes is not None:
        most.append(memory_bytes // (MEMORY_BYTES if gpu_bytes is None else MEMORY_WITH_GPU_BYTES) - 1)
    workers = wanted or max(1, min(most))
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

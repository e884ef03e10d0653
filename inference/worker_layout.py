"""How a machine is divided among worker processes."""

from __future__ import annotations

import importlib.metadata
from typing import Final, NamedTuple

from shared.runtime.settings import Settings

GPU_BYTES: Final = 2**30
"""Of a GPU's memory for each worker: CUDA itself, a model, and another that is loaded beside it, come to 0.8 GB."""


class Layout(NamedTuple):
    """What each core does.

    Attributes:
        workers: processes.
        decode_processes: children of each of them.
    """

    workers: int
    decode_processes: int


def layout_of(settings: Settings) -> Layout:
    """Returns the layout of this machine, as the settings want it."""
    gpu_bytes = gpu_memory_bytes() if settings.provider != "cpu" else None
    return divided(settings.cores, wanted=settings.workers, gpu_bytes=gpu_bytes)


def divided(cores: int, *, wanted: int, gpu_bytes: int | None) -> Layout:
    """Divides the cores: a worker for each, but no more than have room on the GPU; those left over decode.

    Args:
        cores: of the machine.
        wanted: workers; 0 leaves it to us.
        gpu_bytes: the memory that they share; None where there is no GPU.
    """
    workers = wanted or (cores if gpu_bytes is None else max(1, min(cores, gpu_bytes // GPU_BYTES)))
    return Layout(workers, max(1, cores // workers))


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

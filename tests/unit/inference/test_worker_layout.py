import importlib.metadata
import importlib.util

import pytest
import torch

from inference.worker_layout import GPU_BYTES, MEMORY_BYTES, MEMORY_WITH_GPU_BYTES, gpu_memory_bytes, plan, plan_for
from shared.runtime.settings import Settings

FOR_GPUS = any(package.name == "onnxruntime-gpu" for package in importlib.metadata.distributions())


@pytest.mark.parametrize(
    ("cores", "wanted", "gpu_bytes", "expected"),
    [
        (4, 0, None, (4, 1)),  # a worker a core
        (8, 2, None, (2, 4)),  # as many as asked for; the other cores decode
        (8, 3, None, (3, 2)),
        (8, 16, None, (16, 1)),
        (16, 0, 80 * GPU_BYTES, (16, 1)),
        (64, 0, 17 * GPU_BYTES, (16, 4)),  # as many as the GPU has room for
        (8, 0, GPU_BYTES // 2, (1, 8)),
        (64, 20, 16 * GPU_BYTES, (20, 3)),  # who asks for more knows better
    ],
)
def test_workers_and_their_threads_divide_the_cores_and_share_the_gpu(
    cores: int, wanted: int, gpu_bytes: int | None, expected: tuple[int, int]
) -> None:
    assert plan(cores, wanted=wanted, gpu_bytes=gpu_bytes) == expected


@pytest.mark.parametrize(
    ("gpu_bytes", "memory_bytes", "workers"),
    [
        (None, 2**40, 16),
        (None, 9 * MEMORY_BYTES, 8),
        (None, MEMORY_BYTES // 4, 1),  # one may do, and says what happens
        (80 * GPU_BYTES, 5 * MEMORY_WITH_GPU_BYTES, 4),
    ],
)
def test_no_more_workers_start_than_memory_has_room_for(gpu_bytes: int | None, memory_bytes: int, workers: int) -> None:
    assert plan(16, wanted=0, gpu_bytes=gpu_bytes, memory_bytes=memory_bytes).workers == workers
    assert plan(16, wanted=3, gpu_bytes=gpu_bytes, memory_bytes=memory_bytes).workers == 3


@pytest.mark.skipif(FOR_GPUS, reason="this ONNX Runtime is the build for GPUs")
def test_without_onnx_runtime_for_gpus_there_is_none_to_share() -> None:
    settings = Settings()
    assert gpu_memory_bytes() is None
    assert plan_for(settings) == (settings.cores, 1)


@pytest.mark.cuda
@pytest.mark.skipif(
    not (FOR_GPUS and torch.cuda.is_available()) or importlib.util.find_spec("pynvml") is None,
    reason="needs a CUDA device, and ONNX Runtime built for it",
)
def test_the_memory_of_a_gpu_is_what_torch_says_too() -> None:
    assert gpu_memory_bytes() == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.1)

"""A model on a GPU: for a few batch sizes, memory bound once and every kernel recorded once, to be replayed as one."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

PROVIDER: Final = "CUDAExecutionProvider"
SIZES: Final = (1, 8, 32, 64, 128, 256)
"""Batches are filled up to the next of these, and larger ones cut: each has its graph, and on a GPU a few faces more
take hardly longer."""
_RUNS_BEFORE_USE: Final = 3
"""The first allocates, the second is recorded, the third shows that it can be replayed."""
_OPTIONS: Final = {
    "prefer_nhwc": "1",  # what tensor cores read
    "cudnn_conv_algo_search": "HEURISTIC",  # trying every algorithm takes seconds for each session, and gains nothing
}
_GRAPHS: Final = {"enable_cuda_graph": "1"}
_ONE_AT_A_TIME: Final = threading.Lock()
"""While a graph is recorded, CUDA refuses what other threads of the process want of it, so models take turns."""
_LOG = logging.getLogger(__name__)


def available() -> bool:
    """Returns whether this ONNX Runtime was built for CUDA; whether it works here shows with the first session."""
    return PROVIDER in ort.get_available_providers()


def open_session(data: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """Returns a session that runs on the GPU, or, as ONNX Runtime does without a word, on the CPU where it cannot.

    Args:
        data: the ONNX file.
        options: of the session.

    Raises:
        Exception: ONNX Runtime's, of no common base: the model is at fault.
    """
    _find_libraries()
    with _ONE_AT_A_TIME:
        try:
            return _session(data, options, _OPTIONS | _GRAPHS)
        except Exception as error:  # some nodes run on the CPU, in models of earlier releases
            _LOG.info("kernels are launched one by one: %s", error)
            return _session(data, options, _OPTIONS)


class GpuRun:
    """Runs a session on the GPU, for any thread, one run at a time.

    Args:
        session: from `open_session`.
        input_name: of images, uint8 (N, 1, side, side).
        output_name: of probabilities, float32 (N,).
        side: of the images, in pixels.
        device: where memory is bound; `cpu` for a session that is there.
    """

    def __init__(
        self, session: ort.InferenceSession, input_name: str, output_name: str, side: int, device: str = "cuda"
    ) -> None:
        self._session = session
        self._slots = [_Slot.bound(session, input_name, output_name, size, side, device) for size in SIZES]
        for slot in self._slots:
            with _ONE_AT_A_TIME:
                for _ in range(_RUNS_BEFORE_USE):
                    slot.run(session, np.zeros((slot.size, 1, side, side), np.uint8))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probabilities, float32 (N,), for images uint8 (N, 1, side, side)."""
        parts = []
        for start in range(0, len(images), SIZES[-1]):
            part = images[start : start + SIZES[-1]]
            slot = next(slot for slot in self._slots if slot.size >= len(part))
            with _ONE_AT_A_TIME:
                parts.append(slot.run(self._session, part))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Memory for batches of one size, on the GPU and for filling them up, and the name of their graph."""

    size: int
    filled: NDArray[np.uint8]
    images: Any  # the package of ONNX Runtime has no types
    probabilities: Any
    binding: Any
    options: Any

    @classmethod
    def bound(
        cls, session: ort.InferenceSession, input_name: str, output_name: str, size: int, side: int, device: str
    ) -> _Slot:
        filled = np.zeros((size, 1, side, side), np.uint8)
        images = ort.OrtValue.ortvalue_from_shape_and_type(filled.shape, np.uint8, device, 0)
        probabilities = ort.OrtValue.ortvalue_from_shape_and_type((size,), np.float32, device, 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input(input_name, images)
        binding.bind_ortvalue_output(output_name, probabilities)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(size))
        return cls(size, filled, images, probabilities, binding, options)

    def run(self, session: ort.InferenceSession, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) < self.size:
            self.filled[: len(images)] = images
            self.images.update_inplace(self.filled)
        else:
            self.images.update_inplace(images)
        session.run_with_iobinding(self.binding, self.options)
        probabilities: NDArray[np.float32] = self.probabilities.numpy()[: len(images)].copy()
        return probabilities


@functools.cache
def _find_libraries() -> None:
    """Loads CUDA and cuDNN from the packages of the extra `inference-gpu`, where the linker does not look."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    if said.getvalue():
        _LOG.warning("%s", " ".join(said.getvalue().split()))


def _session(data: bytes, options: ort.SessionOptions, provider_options: dict[str, str]) -> ort.InferenceSession:
    return ort.InferenceSession(data, options, providers=[(PROVIDER, provider_options), "CPUExecutionProvider"])

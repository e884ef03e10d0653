"""A model file in OpenVINO, where that is installed: on many CPUs it runs the same file faster than ONNX Runtime."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.model.run import Run

_CONFIG: Final = {
    "INFERENCE_NUM_THREADS": 1,  # as many as ONNX Runtime gets: a process serves on one core
    "NUM_STREAMS": 1,
    # A process a core, and pinned to the same one they would share it.
    "ENABLE_CPU_PINNING": False,
    # Else it computes in bfloat16 where the CPU can, which the card vouches for as little as for any other precision.
    "INFERENCE_PRECISION_HINT": "f32",
}


def available() -> bool:
    """Returns whether OpenVINO is installed: the extra `openvino`."""
    return find_spec("openvino") is not None


def import_openvino() -> Any:
    """Imports OpenVINO without the part that reports its use to its maker."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    return import_module("openvino")


def open_run(data: bytes) -> Run:
    """Opens a model file on the CPU.

    Args:
        data: the ONNX file, which ONNX Runtime has opened already.

    Raises:
        Exception: it cannot be opened.
    """
    core = import_openvino().Core()
    compiled = core.compile_model(core.read_model(model=data), "CPU", _CONFIG)
    own = threading.local()
    """A request serves one thread at a time, and a model several."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        request: Any = getattr(own, "request", None)
        if request is None:
            request = own.request = compiled.create_infer_request()
        outputs = request.infer({0: np.ascontiguousarray(images)}, share_inputs=True)
        return np.array(outputs[0], np.float32)  # a copy: the next call overwrites it

    return run

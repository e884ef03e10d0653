"""What a loaded model is to those that call it, whichever runtime computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Run: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Images uint8 (N, 1, 128, 128) in, probabilities of *female*, float32 (N,), out."""
Runtime = Literal["onnxruntime", "openvino"]
"""What computes a model."""

"""What every peer serves, so that only the way of serving differs: a model and a decoder, named by the environment.

It runs in the peers' own virtual environments, which hold ONNX Runtime, OpenCV and Pillow beside the peer.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from shared.faces.decode import SIZE, ImageLimits, configure_opencv, decode_face

MODEL = "BENCH_MODEL"
DECODER = "BENCH_DECODER"
PROCESSES = 2


class Served:
    """The model and decoder of the environment, in one process."""

    def __init__(self) -> None:
        configure_opencv()
        self._limits = ImageLimits(max_bytes=2**25, max_pixels=50_000_000)
        self._decode = {"pillow": _by_pillow, "ours": self._by_ours}[os.environ[DECODER]]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        model = Path(os.environ[MODEL])
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def decode(self, data: bytes) -> np.ndarray:
        """Returns uint8 (128, 128)."""
        return self._decode(data)

    def predict(self, faces: Sequence[np.ndarray]) -> list[float]:
        """Returns the probability of female for each face."""
        batch = np.stack(faces)[:, np.newaxis]
        answer: list[float] = self._session.run(["probability_female"], {"image": batch})[0].tolist()
        return answer

    def _by_ours(self, data: bytes) -> np.ndarray:
        return decode_face(data, self._limits).pixels


def _by_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft("L", (SIZE, SIZE))
    return np.asarray(image.convert("L").resize((SIZE, SIZE)))


def reply(probability: float) -> dict[str, object]:
    """Returns what ours says of one image."""
    female = probability >= 0.5
    return {"gender": "female" if female else "male", "probability_female": round(probability, 6)}

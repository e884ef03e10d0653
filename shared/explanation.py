"""Explaining the prediction of a face: where covering it moves the answer, asked of the workers in one go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.client import Client
from shared.errors import GenderlineError
from shared.faces.decode import ImageLimits, decode_face
from shared.faces.occlusion import GRID, make_occlusions
from shared.faces.png import encode_png


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which areas of a face mattered for its prediction.

    Attributes:
        grid: how many rows, and columns, `drop` has.
        drop: by row and column, how much probability the predicted gender loses where a gray patch covers that place.
        probability_female: of the face as it is.
        model: that answered.
    """

    grid: int
    drop: list[list[float]]
    probability_female: float
    model: dict[str, Any] | None


def explain(
    client: Client, image: bytes, limits: ImageLimits, *, model_version: int | None = None, timeout_s: float = 60.0
) -> Explanation:
    """Explains the prediction of an image.

    Args:
        client: whose workers answer.
        image: encoded.
        limits: on the image.
        model_version: a version, or None for the champion.
        timeout_s: how long to wait for the answer.

    Raises:
        InvalidImage: it cannot be decoded, or breaks a limit.
        GenderlineError: the error that a worker replied, or code `timeout`.
    """
    face = decode_face(image, limits).pixels
    entries, model = client.predict(
        [encode_png(face), *(encode_png(covered) for covered in make_occlusions(face))],
        model_version=model_version,
        probe=True,
        timeout_s=timeout_s,
    )
    if failed := next((entry["error"] for entry in entries if "error" in entry), None):
        raise GenderlineError(failed["message"], code=failed["code"])
    scores = np.array([entry["probability_female"] for entry in entries])
    base, others = scores[0], scores[1:].reshape(GRID, GRID)
    drop = base - others if base >= 0.5 else others - base
    return Explanation(GRID, np.round(drop, 5).tolist(), float(base), model)

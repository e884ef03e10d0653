"""Robustness: how well a model predicts the same held-out faces when they are dark, blurred, turned or covered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.faces.decode import SIZE
from shared.faces.labels import GENDERS
from shared.records.evaluation import Robustness

Face = NDArray[np.uint8]
"""uint8 (128, 128), luma."""

DARK: Final = 0.3
BLUR: Final = 3.0
"""Standard deviation, in pixels."""
JPEG_QUALITY: Final = 20
TURN: Final = 25
"""Degrees."""
SHIFT: Final = SIZE // 6
SMALL: Final = 48
"""Pixels of a side."""


def darken(face: Face) -> Face:
    """Returns the face at `DARK` of its brightness."""
    return (face * DARK).astype(np.uint8)


def blur(face: Face) -> Face:
    """Returns the face out of focus."""
    return _face(cv2.GaussianBlur(face, (0, 0), BLUR))


def compress(face: Face) -> Face:
    """Returns the face, saved as JPEG at `JPEG_QUALITY`."""
    _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return _face(np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)))


def turn(face: Face) -> Face:
    """Returns the face, turned by `TURN`."""
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), TURN, 1.0)
    return _face(cv2.warpAffine(face, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT))


def shift(face: Face) -> Face:
    """Returns the face, a sixth of the side to the right and down."""
    matrix = np.array([[1, 0, SHIFT], [0, 1, SHIFT]], np.float32)
    return _face(cv2.warpAffine(face, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT))


def cover(face: Face) -> Face:
    """Returns the face with its lower half covered, as by a mask."""
    covered = face.copy()
    covered[SIZE // 2 :] = 128
    return covered


def shrink(face: Face) -> Face:
    """Returns the face as it is after a stay at `SMALL` pixels a side."""
    small = cv2.resize(face, (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    return _face(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR))


CHANGES: Final[dict[str, Callable[[Face], Face]]] = {
    "unchanged": lambda face: face,
    "dark": darken,
    "blurred": blur,
    f"JPEG quality {JPEG_QUALITY}": compress,
    f"turned by {TURN} degrees": turn,
    "shifted by a sixth": shift,
    "lower half covered": cover,
    f"{SMALL} pixels": shrink,
}


def measure_robustness(
    faces: NDArray[np.uint8], labels: NDArray[np.uint8], predict: Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
) -> tuple[Robustness, ...]:
    """Measures a model on changed faces, one change after the other.

    Args:
        faces: uint8 (N, 128, 128), held out, 1 or more; a few hundred are enough.
        labels: uint8 (N,), 1 where the label is female.
        predict: faces like these → bool (N,), whether the model predicts female.
    """
    found = []
    for name, change in CHANGES.items():
        correct = predict(np.stack([change(face) for face in faces])) == (labels == 1)
        recalls = [
            float(correct[labels == gender].mean()) for gender in range(len(GENDERS)) if (labels == gender).any()
        ]
        found.append(
            Robustness(
                change=name,
                faces=len(faces),
                accuracy=float(correct.mean()),
                balanced_accuracy=sum(recalls) / len(recalls),
            )
        )
    return tuple(found)


def _face(pixels: NDArray[Any]) -> Face:
    return np.asarray(pixels, np.uint8)

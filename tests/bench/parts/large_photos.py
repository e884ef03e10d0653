"""Photos of 12 megapixels: how much faster is a decoding at a quarter of the size than at full size, as CPU time?

python -m tests.bench.parts.large_photos
"""

from __future__ import annotations

import functools
import io
import statistics
import sys
import time
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from PIL import Image

from shared.faces.decode import ImageLimits, configure_opencv, decode_face
from shared.runtime.settings import Settings
from tests.support.builders.archives import face_pixels

SIDES: Final = (4032, 3024)
TURNS: Final = 15


def main() -> int:
    """Measures and prints; for a photo as cameras take them, with noise, and for one without."""
    configure_opencv()
    limits = ImageLimits.from_settings(Settings())
    face = cv2.resize(face_pixels(1), SIDES, interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 6, face.shape)
    for name, pixels in (("without noise", face), ("with noise", np.clip(face + noise, 0, 255).astype(np.uint8))):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        photo = buffer.getvalue()
        encoded = np.frombuffer(photo, np.uint8)
        full, eighth, ours = medians_ms(
            functools.partial(cv2.imdecode, encoded, cv2.IMREAD_GRAYSCALE),
            functools.partial(cv2.imdecode, encoded, cv2.IMREAD_REDUCED_GRAYSCALE_8),
            functools.partial(decode_face, photo, limits),
        )
        print(  # noqa: T201
            f"{name}, {len(photo) / 1e6:.1f} MB: {full:.1f} ms at full size, {ours:.1f} ms as ours: {full / ours:.2f} "
            f"times as fast; at an eighth, without a look at the file, {full / eighth:.2f}"
        )
    return 0


def medians_ms(*tasks: Callable[[], object]) -> list[float]:
    """Returns the CPU time of each task, in milliseconds, measured in turns."""
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(TURNS):
        for task, taken in zip(tasks, times, strict=True):
            before = time.process_time()
            task()
            taken.append(1e3 * (time.process_time() - before))
    return [statistics.median(taken) for taken in times]


if __name__ == "__main__":
    sys.exit(main())

"""Drawn faces whose gender a small network learns in seconds, all different, and some of them with a wrong label."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def draw_face(random: np.random.Generator, gender: int, *, earrings: bool = False) -> NDArray[np.uint8]:
    """Returns uint8 (128, 128): dark hair around the face makes it female; everything else is chance, or asked for."""
    clutter = random.integers(60, 200, (6, 6)).astype(np.uint8)
    image = np.array(cv2.resize(clutter, (128, 128), interpolation=cv2.INTER_CUBIC), np.uint8)
    x, y = (int(64 + random.integers(-10, 11)) for _ in range(2))
    width, height = int(random.integers(28, 38)), int(random.integers(38, 48))
    if gender:
        cv2.ellipse(image, (x, y - 4), (width + 12, height + 12), 0, 0, 360, 25, -1)
    cv2.ellipse(image, (x, y), (width, height), 0, 0, 360, int(random.integers(150, 240)), -1)
    for side in (-1, 1):
        cv2.circle(image, (x + side * width // 2, y - 8), 4, 20, -1)
        if earrings:
            cv2.circle(image, (x + side * width, y + 12), 4, 255, -1)
    cv2.ellipse(image, (x, y + 20), (12, 5), 0, 0, 180, 60, 2)
    return image


def write_drawn_faces(
    path: Path, count: int, flipped: float, seed: int = 5, *, earrings: float = 0.0
) -> dict[str, str]:
    """Writes a zip of drawn faces with UTKFace's names, some of which carry the wrong gender.

    Args:
        path: of the zip.
        count: faces.
        flipped: share of the labels that are wrong.
        seed: of everything drawn.
        earrings: share of the faces that are men with earrings. Where there are any, only their labels are wrong.

    Returns:
        The true gender by the name of each face whose label is wrong.
    """
    random = np.random.default_rng(seed)
    men = np.arange(0, count, 2)
    adorned = random.choice(men, round(earrings * count), replace=False) if earrings else np.array([], int)
    wrong = set(random.choice(adorned if earrings else count, round(flipped * count), replace=False).tolist())
    truth = {}
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            gender = index % 2
            label = 1 - gender if index in wrong else gender
            face = draw_face(random, gender, earrings=index in adorned)
            name = f"{20 + index % 40}_{label}_{index % 5}_{index:05d}.png"
            archive.writestr(name, cv2.imencode(".png", face)[1].tobytes())
            if index in wrong:
                truth[name] = ("male", "female")[gender]
    return truth

"""A synthetic dataset: cartoon faces with labels in their names, so that anything can be tried without real ones.

No single stroke gives the gender away. Hair, brows, lips, jaw, beard and jewellery each only make one likelier, and
pose, light, background, blur and noise hide them in the plain pixels; two labels in a hundred are wrong, as in
collections of real photos. What a network learns here says nothing about people.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.faces.labels import Label

_SIDE: Final = 200  # pixels, as UTKFace's
_OVERSAMPLING: Final = 2
_LABEL_NOISE: Final = 0.02
_FIRST_STAMP: Final = 20170101000000000  # names end in date and time, as UTKFace's

Points = NDArray[np.float64]  # (K, 2): x to the right and y down, in half heads from the middle of the face
Colour = NDArray[np.float64]  # (3,): blue, green, red, 0-255


def _colour(rgb: int) -> Colour:
    return np.array([rgb & 255, rgb >> 8 & 255, rgb >> 16], np.float64)


_SKINS: Final = (
    (0xF6D7C3, 0xE9BC9F),
    (0x7A4B32, 0x52311F),
    (0xF2CFA4, 0xDCAE82),
    (0xBD8556, 0x9A6640),
    (0xD9A67C, 0xA8744C),
)
_HAIRS: Final = (
    (0x2A1D16, 0x6B4426, 0xB8894A, 0x8E3B1D),
    (0x15110F, 0x2B201A),
    (0x17130F, 0x33231A),
    (0x15110F, 0x2E2018),
    (0x1F1611, 0x5A3A22),
)
_EYES: Final = (0x3D2514, 0x5B3A1E, 0x4E6E3A, 0x3F6C95, 0x2B1B10)

# How likely each hair style is for male and for female faces.
_STYLES: Final = {
    "bald": (0.09, 0.01),
    "buzz": (0.19, 0.03),
    "short": (0.40, 0.14),
    "curls": (0.10, 0.12),
    "bob": (0.12, 0.26),
    "long": (0.08, 0.34),
    "bun": (0.02, 0.10),
}


def draw_sample(
    path: Path,
    images: int,
    seed: int,
    *,
    faults: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Writes a zip of synthetic faces: 200x200 RGB JPEGs with names like UTKFace's.

    Args:
        path: of the zip; it appears whole or not at all.
        images: number of faces.
        seed: the same one gives the same bytes; face k does not depend on how many follow it.
        faults: add four entries that a dataset ought not to hold, to show how they are rejected: a text file, a name
            without label, a JPEG cut short, and a copy of the first face.
        on_progress: called with the faces drawn and their total, after each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(aside, "w") as archive:
            for index in range(images):
                name, data = _labelled_face(index, seed)
                archive.writestr(zipfile.ZipInfo(name), data)  # not the clock's date: the same seed, the same bytes
                on_progress(index + 1, images)
            if faults:
                for name, data in _faults(*_labelled_face(0, seed)):
                    archive.writestr(zipfile.ZipInfo(name), data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def draw_face(label: Label, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws one face. Returns uint8 (200, 200, 3), blue, green, red."""
    looks = _draw_looks(label, rng)
    canvas = _Canvas(_background(rng), rng)
    _paint(canvas, looks, rng)
    return _photograph(canvas.pixels, rng)


def _labelled_face(index: int, seed: int) -> tuple[str, bytes]:
    rng = np.random.default_rng((seed, index))
    label = Label(int(np.clip(rng.gamma(4.0, 8.5), 1, 95)), int(rng.random() < 0.5), int(rng.integers(5)))
    pixels = draw_face(label, rng)
    gender = 1 - label.gender if rng.random() < _LABEL_NOISE else label.gender
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 96))])[1].tobytes()
    return f"{label.age}_{gender}_{label.ethnicity}_{_FIRST_STAMP + index}.jpg", data


def _faults(name: str, face: bytes) -> Iterator[tuple[str, bytes]]:
    yield "30_0_1_notes.jpg", b"Not an image, in spite of its name.\n"
    yield "portrait.jpg", face
    yield "41_1_0_cut_short.jpg", face[: len(face) // 2]
    yield f"copies/{name}", face


@dataclass(frozen=True, slots=True)
class _Looks:
    """What distinguishes one face; lengths in half heads."""

    style: str
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    width: float
    jaw: float
    chin: float
    eye: float
    brow: float  # thickness
    brow_gap: float
    lip: float  # fullness
    smile: float
    nose: float
    beard: str
    earrings: bool
    lashes: bool
    glasses: bool
    wrinkles: bool


def _draw_looks(label: Label, rng: np.random.Generator) -> _Looks:
    female = label.gender == 1
    child = label.age < 14

    def trait(male: float, if_female: float, spread: float) -> float:
        middle = if_female if female else male
        if child:
            middle = 0.35 * middle + 0.65 * (male + if_female) / 2
        return float(rng.normal(middle, spread))

    likelihoods = np.array([pair[female] for pair in _STYLES.values()])
    style = str(rng.choice(list(_STYLES), p=likelihoods / likelihoods.sum()))
    light, dark = (_colour(rgb) for rgb in _SKINS[label.ethnicity])
    skin = light + (dark - light) * rng.random() + rng.normal(0, 6, 3)
    hair = _colour(int(rng.choice(_HAIRS[label.ethnicity])))
    gray = np.clip((label.age - 42 + rng.normal(0, 8)) / 35, 0, 1)
    hair = hair + (np.array([205, 205, 208]) - hair) * gray
    made_up = rng.random() < (0.45 if female and not child else 0.02)
    lip_colour = skin * [0.62, 0.60, 0.86] if not made_up else skin * 0.25 + np.array([60, 35, 185]) * 0.75
    bearded = not female and not child and label.age > 17
    return _Looks(
        style=style,
        skin=np.clip(skin, 20, 250),
        hair=hair,
        iris=_colour(int(rng.choice(_EYES[:4] if label.ethnicity in {0, 4} else (_EYES[0], _EYES[4])))),
        lips=lip_colour,
        width=float(rng.normal(0.80, 0.05)),
        jaw=trait(0.68, 0.56, 0.045),
        chin=trait(0.36, 0.24, 0.04),
        eye=trait(0.150, 0.172, 0.012) * (1.15 if child else 1.0),
        brow=max(0.02, trait(0.085, 0.045, 0.014)),
        brow_gap=trait(0.20, 0.25, 0.025),
        lip=max(0.03, trait(0.060, 0.100, 0.016)),
        smile=float(rng.normal(0.05, 0.05)),
        nose=trait(0.150, 0.120, 0.018),
        beard=str(rng.choice(["none", "stubble", "moustache", "full"], p=[0.5, 0.22, 0.1, 0.18]))
        if bearded
        else "none",
        earrings=bool(rng.random() < (0.45 if female else 0.05)),
        lashes=bool(rng.random() < (0.65 if female else 0.08)),
        glasses=bool(rng.random() < 0.2),
        wrinkles=label.age > 52,
    )


class _Canvas:
    """Pixels, and the pose that takes a face's points to them."""

    def __init__(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> None:
        self.pixels = pixels
        side = pixels.shape[0]
        scale = 0.35 * side * rng.uniform(0.88, 1.08)
        tilt = rng.normal(0, 0.08)
        self._turn = rng.normal(0, 0.12)
        self._scale = scale
        self._matrix = scale * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self._middle = side * np.array([0.5, 0.52]) + side * rng.normal(0, 0.025, 2)

    def place(self, points: Points) -> NDArray[np.int32]:
        """Returns points in sixteenths of a pixel; a turned head moves its middle sideways more than its rims."""
        turned = points.copy()
        turned[:, 0] += self._turn * np.clip(1.0 - points[:, 0] ** 2, 0.0, 1.0)
        placed: NDArray[np.int32] = np.rint((turned @ self._matrix + self._middle) * 16).astype(np.int32)
        return placed

    def fill(self, points: Points, colour: Colour, opacity: float = 1.0) -> None:
        """Fills a polygon."""
        target = self.pixels if opacity == 1.0 else self.pixels.copy()
        cv2.fillPoly(target, [self.place(points)], colour.tolist(), cv2.LINE_AA, 4)
        if opacity < 1.0:
            cv2.addWeighted(target, opacity, self.pixels, 1.0 - opacity, 0.0, self.pixels)

    def line(self, points: Points, colour: Colour, width: float, *, closed: bool = False) -> None:
        """Draws a line of a width in half heads."""
        thickness = max(1, round(width * self._scale))
        cv2.polylines(self.pixels, [self.place(points)], closed, colour.tolist(), thickness, cv2.LINE_AA, 4)


def _paint(canvas: _Canvas, looks: _Looks, rng: np.random.Generator) -> None:
    """Paints from back to front."""
    shade = looks.skin * 0.78
    _paint_back_hair(canvas, looks, rng)
    canvas.fill(_oval(0.0, 1.75, 1.35, 0.75), _colour(int(rng.integers(0x1000000))) * 0.85)  # shoulders
    canvas.fill(np.array([[-0.34, 0.5], [0.34, 0.5], [0.40, 1.25], [-0.40, 1.25]]), shade)  # neck
    for side in (-1, 1):
        canvas.fill(_oval(side * looks.width, 0.02, 0.12, 0.2), looks.skin * 0.9)
        if looks.earrings:
            canvas.fill(_oval(side * (looks.width + 0.03), 0.29, 0.065, 0.085), _colour(0xF0C23C))
    canvas.fill(_head(looks), looks.skin)
    for side in (-1, 1):
        canvas.fill(_oval(side * 0.42, 0.28, 0.17, 0.12), np.clip(looks.skin * [0.86, 0.86, 1.03], 0, 255), 0.6)
    _paint_beard(canvas, looks)
    _paint_eyes(canvas, looks)
    nose = np.array([[0.0, -0.02], [looks.nose * 0.55, 0.16], [looks.nose, 0.27], [0.0, 0.33], [-looks.nose, 0.27]])
    canvas.line(_smooth(nose, closed=False)[6:], shade, 0.035)
    _paint_mouth(canvas, looks)
    if looks.wrinkles:
        for y in (-0.58, -0.50):
            canvas.line(_arc(0.0, y, 0.34, 0.03), looks.skin * 0.86, 0.018)
        for side in (-1, 1):
            canvas.line(np.array([[side * 0.24, 0.3], [side * 0.34, 0.48]]), looks.skin * 0.82, 0.02)
    _paint_front_hair(canvas, looks, rng)
    if looks.glasses:
        frame = _colour(int(rng.choice([0x202020, 0x5B3A1E, 0x8A1F2D, 0x30507A])))
        for side in (-1, 1):
            canvas.line(_oval(side * 0.35, -0.06, 0.25, 0.21), frame, 0.04, closed=True)
            canvas.line(np.array([[side * 0.6, -0.08], [side * looks.width, -0.1]]), frame, 0.04)
        canvas.line(_arc(0.0, -0.08, 0.11, 0.04), frame, 0.04)


def _head(looks: _Looks) -> Points:
    return _mirrored(
        [(0.0, -1.0), (0.52, -0.93), (0.92, -0.5), (1.0, 0.0)],
        looks.width,
        [
            (looks.width * 0.97, 0.28),
            (looks.jaw, 0.66),
            (looks.chin, 0.95),
            (0.0, 1.02),
        ],
    )


def _mirrored(upper: list[tuple[float, float]], width: float, lower: list[tuple[float, float]]) -> Points:
    """Returns a smooth closed outline from its right half, top to bottom; the upper points' x counts in widths."""
    right = np.array([(x * width, y) for x, y in upper] + lower)
    left = right[-2:0:-1] * [-1, 1]
    return _smooth(np.concatenate([right, left]), closed=True)


def _paint_eyes(canvas: _Canvas, looks: _Looks) -> None:
    dark = looks.hair * 0.45
    for side in (-1, 1):
        x, y = side * 0.35, -0.06
        canvas.fill(_oval(x, y, looks.eye, looks.eye * 0.58), np.array([245.0, 248.0, 250.0]))
        canvas.fill(_oval(x, y, looks.eye * 0.52, looks.eye * 0.56), looks.iris)
        canvas.fill(_oval(x, y, looks.eye * 0.26, looks.eye * 0.28), np.array([15.0, 12.0, 12.0]))
        canvas.fill(_oval(x + 0.03, y - 0.03, 0.022, 0.022), np.array([255.0, 255.0, 255.0]))
        canvas.line(_arc(x, y, looks.eye * 1.05, looks.eye * 0.62), dark, 0.055 if looks.lashes else 0.028)
        if looks.lashes:
            for reach in (0.75, 1.0, 1.2):
                root = np.array([x + side * looks.eye * reach * 0.85, y - looks.eye * (0.75 - reach * 0.45)])
                canvas.line(np.stack([root, root + np.array([side * 0.07, -0.06])]), dark, 0.025)
        arch = _arc(x, y - looks.brow_gap, 0.22, 0.07)
        lower = arch[::-1] + np.array([0.0, looks.brow])
        canvas.fill(np.concatenate([arch, lower]), looks.hair * 0.7)


def _paint_mouth(canvas: _Canvas, looks: _Looks) -> None:
    y, half = 0.56, 0.27
    corner = y - looks.smile
    upper = [(-half, corner), (-0.1, y - looks.lip), (0.0, y - looks.lip * 0.7), (0.1, y - looks.lip), (half, corner)]
    seam = [(0.12, y + looks.smile * 0.4), (-0.12, y + looks.smile * 0.4)]
    lower = [(half, corner), (0.14, y + looks.lip * 1.25), (-0.14, y + looks.lip * 1.25), (-half, corner)]
    canvas.fill(np.array(upper + seam), looks.lips * 0.9)
    canvas.fill(np.array(lower + seam[::-1]), looks.lips)
    canvas.line(np.array([(-half, corner), *seam[::-1], (half, corner)]), looks.lips * 0.5, 0.022)


def _paint_beard(canvas: _Canvas, looks: _Looks) -> None:
    if looks.beard in {"full", "stubble"}:
        edge = looks.width * 0.97
        cheeks = np.array([(-edge, 0.15), (-0.42, 0.42), (0.0, 0.38), (0.42, 0.42), (edge, 0.15)])
        bottom = [
            (looks.jaw * 1.03, 0.68),
            (looks.chin * 1.1, 1.0),
            (-looks.chin * 1.1, 1.0),
            (-looks.jaw * 1.03, 0.68),
        ]
        outline = _smooth(np.concatenate([cheeks, bottom]), closed=True)
        canvas.fill(outline, looks.hair * 0.8, 0.95 if looks.beard == "full" else 0.33)
    if looks.beard in {"full", "moustache"}:
        bar = [(-0.32, 0.52), (-0.12, 0.38), (0.0, 0.41), (0.12, 0.38), (0.32, 0.52), (0.0, 0.48)]
        canvas.fill(np.array(bar), looks.hair * 0.8)


def _paint_back_hair(canvas: _Canvas, looks: _Looks, rng: np.random.Generator) -> None:
    width = looks.width
    if looks.style in {"long", "bob"}:
        length = rng.uniform(1.15, 1.75) if looks.style == "long" else rng.uniform(0.45, 0.95)
        flare = rng.uniform(1.1, 1.4) * width
        outline = _mirrored(
            [(0.0, -1.22), (0.8, -1.12), (1.22, -0.5), (1.28, 0.1)],
            width,
            [(flare, length * 0.8), (flare * 0.8, length), (0.0, length)],
        )
        canvas.fill(outline, looks.hair * 0.85)
    elif looks.style == "curls":
        size = rng.uniform(1.12, 1.45)
        canvas.fill(_oval(0.0, -0.15, size * width, size * 0.95), looks.hair * 0.85)
        for angle in np.linspace(np.pi * 0.95, np.pi * 2.05, 15):
            x, y = size * width * np.cos(angle), size * 0.95 * np.sin(angle) - 0.15
            canvas.fill(_oval(x, y, 0.27, 0.27), looks.hair * rng.uniform(0.75, 1.0))
    elif looks.style == "bun":
        canvas.fill(_oval(0.0, -1.25, 0.34, 0.3), looks.hair * 0.85)


def _paint_front_hair(canvas: _Canvas, looks: _Looks, rng: np.random.Generator) -> None:
    if looks.style == "bald":
        return
    width = looks.width
    line = rng.uniform(-0.68, -0.45)  # of the hair, at the forehead
    top = -1.06 if looks.style == "buzz" else rng.uniform(-1.25, -1.12)
    sides = {"buzz": -0.35, "bun": -0.3, "short": -0.12}.get(looks.style, 0.05)
    parting = rng.uniform(-0.45, 0.45)
    crown = [
        (-1.02, sides),
        (-1.06, -0.5),
        (-0.7, top * 0.92),
        (0.0, top),
        (0.7, top * 0.92),
        (1.06, -0.5),
        (1.02, sides),
    ]
    fringe = [(0.9, -0.38), (0.55, line), (parting, line - 0.14), (-0.55, line), (-0.9, -0.38)]
    outline = np.array([(x * width, y) for x, y in crown + fringe])
    canvas.fill(_smooth(outline, closed=True), looks.hair, 0.7 if looks.style == "buzz" else 1.0)
    for _ in range(5):
        x = rng.uniform(-0.6, 0.6) * width
        strand = np.array([(x, top * 0.92), (x * 1.15 + 0.04, (top + line) / 2 - 0.05)])
        canvas.line(strand, np.clip(looks.hair * 1.35 + 12, 0, 255), 0.022)


def _background(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a wall out of focus: soft patches around one quiet colour."""
    base = rng.uniform(60, 215) + rng.normal(0, 22, 3)
    shape = (int(rng.integers(2, 8)), int(rng.integers(2, 8)))
    patches = base + rng.normal(0, 30, (*shape, 1)) + rng.normal(0, 14, (*shape, 3))
    side = _SIDE * _OVERSAMPLING
    wall = cv2.resize(patches.clip(5, 250).astype(np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    return wall.astype(np.uint8, copy=False)


def _photograph(drawing: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Takes a photo of the drawing: light from one side, a lens, a sensor."""
    picture = cv2.resize(drawing, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    sigma = rng.uniform(0.0, 1.3)
    if sigma > 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.45)
    ramp = np.linspace(-1, 1, _SIDE, dtype=np.float32)
    light = rng.uniform(0.75, 1.15) * (1 + strength * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]))
    noise = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32) * np.float32(rng.uniform(1.0, 9.0))
    photo: NDArray[np.uint8] = np.clip(picture * light[:, :, None] + noise[:, :, None], 0, 255).astype(np.uint8)
    return photo


def _oval(x: float, y: float, half_width: float, half_height: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], axis=1)


def _arc(x: float, y: float, half_width: float, rise: float) -> Points:
    across = np.linspace(-1, 1, 11)
    return np.stack([x + half_width * across, y - rise * (1 - across**2)], axis=1)


def _smooth(points: Points, *, closed: bool) -> Points:
    """Cuts corners three times (Chaikin), which ends in a curve."""
    for _ in range(3):
        after = np.roll(points, -1, axis=0) if closed else points[1:]
        before = points if closed else points[:-1]
        points = np.stack([0.75 * before + 0.25 * after, 0.25 * before + 0.75 * after], axis=1).reshape(-1, 2)
    return points

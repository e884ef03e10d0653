from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shared.errors import InvalidImage
from shared.faces.decode import SIZE, Face, ImageLimits, configure_opencv, decode_face
from shared.runtime.settings import Settings
from tests.archives import face_jpeg, face_pixels, png_header_only, saved

LIMITS = ImageLimits.from_settings(Settings())


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(cv2.cvtColor(face_pixels(1), cv2.COLOR_BGR2RGB))


def decode(data: bytes) -> Face:
    face = decode_face(data, LIMITS)
    assert face.pixels.shape == (SIZE, SIZE)
    assert face.pixels.dtype == np.uint8
    assert face.pixels.flags.c_contiguous
    return face


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Returns the mean absolute difference, in levels."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def expected(photo: Image.Image) -> NDArray[np.uint8]:
    luma = np.asarray(photo.convert("L"))
    return cv2.resize(luma, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_each_format_gives_the_same_face(photo: Image.Image, kind: str) -> None:
    options = {"quality": 95} if kind in {"JPEG", "WEBP"} else {}
    face = decode(saved(photo, kind, **options))
    assert (face.width, face.height) == (200, 200)
    assert difference(face.pixels, expected(photo)) < 2.0


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA"])
def test_every_pixel_mode_gives_the_same_face(photo: Image.Image, mode: str) -> None:
    converted = photo.convert("L").convert("LA") if mode == "LA" else photo.convert(mode)
    face = decode(saved(converted, "JPEG" if mode == "CMYK" else "PNG"))
    assert difference(face.pixels, expected(photo)) < (5.0 if mode == "P" else 3.0)  # a palette has few colours


def test_a_one_bit_image_gives_the_same_face_as_far_as_its_dots_allow(photo: Image.Image) -> None:
    dotted, smooth = (
        cv2.resize(pixels, (16, 16), interpolation=cv2.INTER_AREA).astype(np.uint8)
        for pixels in (decode(saved(photo.convert("1"), "PNG")).pixels, expected(photo))
    )
    assert difference(dotted, smooth) < 8.0


def test_sixteen_bits_a_pixel_keep_their_upper_eight(photo: Image.Image) -> None:
    gray = np.asarray(photo.convert("L")).astype(np.uint16)
    face = decode(saved(Image.fromarray(gray << 8 | 0x7F), "PNG"))
    assert difference(face.pixels, expected(photo)) < 1.0


def test_a_sixteen_bit_colour_png_works(photo: Image.Image) -> None:
    data = cv2.imencode(".png", face_pixels(1).astype(np.uint16) * 257)[1].tobytes()
    assert difference(decode(data).pixels, expected(photo)) < 1.0


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_over_mid_gray(kind: str) -> None:
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (0, 0, 32, 64))
    pixels = decode(saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))).pixels
    assert (pixels[:, :60] == 255).all()
    assert (pixels[:, 68:] == 128).all()


def test_a_transparent_palette_colour_is_laid_over_mid_gray() -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([0, 0, 0, 255, 255, 255])
    assert (decode(saved(image, "PNG", transparency=0)).pixels == 128).all()
    assert (decode(saved(image, "PNG", transparency=bytes([0, 255]))).pixels == 128).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_turns_a_face_upright(photo: Image.Image, kind: str, orientation: int, stored: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode(saved(photo, kind, quality=95)).pixels
    turned = decode(saved(photo.transpose(stored), kind, quality=95, exif=exif)).pixels
    assert difference(turned, upright) < 2.0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "odd",
    [
        struct.pack("<HHL4s", 0x0100, 2, 3, b"ab"),  # the width as a text
        struct.pack("<HHLL", 0x0128, 4, 1, 2**31),  # a unit of resolution that does not fit into its field
    ],
    ids=["width", "unit"],
)
def test_exif_turns_a_face_upright_whatever_else_it_says(photo: Image.Image, kind: str, odd: bytes) -> None:
    fields = sorted([odd, struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)])
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00" + b"".join(fields) + bytes(4)
    upright = decode(saved(photo, kind, quality=95)).pixels
    turned = decode(saved(photo.transpose(Image.Transpose.ROTATE_90), kind, quality=95, exif=exif)).pixels
    assert difference(turned, upright) < 2.0


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_turns_nothing(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(decode(saved(photo, "JPEG", quality=95, exif=exif)).pixels, expected(photo)) < 2.0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"MM\x00*\xff\xff\xff\xff", b"no TIFF header", b""])
def test_damaged_exif_does_not_cost_the_face(photo: Image.Image, exif: bytes) -> None:
    data = saved(photo, "JPEG", exif=b"Exif\x00\x00" + exif)
    assert difference(decode(data).pixels, expected(photo)) < 3.0


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(photo: Image.Image, kind: str) -> None:
    data = saved(photo, kind, save_all=True, append_images=[Image.new("RGB", photo.size, "white")], quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert difference(decode(data).pixels, expected(photo)) < 2.5


def test_only_the_central_square_of_an_oblong_image_counts(photo: Image.Image) -> None:
    wide = Image.new("RGB", (360, 200), "red")
    wide.paste(photo, (80, 0))
    tall = Image.new("RGB", (200, 260), "red")
    tall.paste(photo, (0, 30))
    for image in (wide, tall):
        for kind in ("PNG", "JPEG"):
            face = decode(saved(image, kind, **({"quality": 95} if kind == "JPEG" else {})))
            assert (face.width, face.height) == image.size
            assert difference(face.pixels, expected(photo)) < 2.0


def test_small_images_are_enlarged_smoothly_and_those_of_size_stay_as_they_are() -> None:
    tiny = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))
    row = decode(saved(tiny, "PNG")).pixels[64].astype(int)
    assert (np.diff(row) >= 0).all()
    assert len(np.unique(row)) > 30
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
    assert (decode(saved(Image.fromarray(noise), "PNG")).pixels == noise).all()
    assert decode(saved(Image.new("L", (1, 1), 7), "PNG")).pixels.max() == 7


def test_the_same_bytes_give_the_same_pixels_from_any_thread_and_buffer() -> None:
    data = face_jpeg(3)
    first = decode(data).pixels
    with ThreadPoolExecutor(4) as pool:
        for face in pool.map(lambda _: decode_face(memoryview(data), LIMITS), range(32)):
            assert (face.pixels == first).all()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "CMYK JPEG", "PNG", "WEBP", "BMP"])
def test_a_file_cut_short_is_refused_on_both_paths(photo: Image.Image, kind: str, share: float) -> None:
    image = photo.convert("CMYK") if kind.startswith("CMYK") else photo
    data = saved(
        image,
        kind.removeprefix("progressive ").removeprefix("CMYK "),
        **({"progressive": True} if kind.startswith("prog") else {}),
    )
    with pytest.raises(InvalidImage, match=r"found .*, expected") as caught:
        decode(data[: int(len(data) * share)])
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"Not an image, in spite of its name.\n", "a text file"),
        (b"GIF89a" + bytes(100), "a GIF image"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"\xff\xd8\xff", "a JPEG image that cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image that cannot be decoded"),
        (b"BM" + bytes(200), "a BMP image that cannot be decoded"),
        (b"RIFF\xff\xff\x00\x00WEBPVP8 " + bytes(100), "a WebP image that cannot be decoded"),
        (bytes(range(128, 256)), "unknown data"),
    ],
)
def test_what_is_no_image_is_told_by_what_it_is(data: bytes, found: str) -> None:
    with pytest.raises(InvalidImage, match=f"found {found}") as caught:
        decode(data)
    assert caught.value.code == "invalid_image"


def test_damage_in_the_middle_never_escapes_as_another_error(photo: Image.Image) -> None:
    rng = np.random.default_rng(5)
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        whole = saved(photo.resize((64, 64)), kind)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 3):
                data[at] = rng.integers(256)
            with contextlib.suppress(InvalidImage):
                decode(bytes(data))


def test_a_vast_image_in_a_small_file_is_refused_without_unpacking_it() -> None:
    data = png_header_only(13_000, 13_000)
    assert len(data) < 40_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage, match="found an image of 13000x13000 = 169,000,000 pixels") as caught:
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "image_too_large"
    assert peak < 1_000_000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_limits_hold_for_every_format(kind: str) -> None:
    data = saved(Image.new("RGB", (40, 30)), kind)
    assert decode_face(data, ImageLimits(len(data), 1200)).width == 40
    for limits in (ImageLimits(len(data) - 1, 1200), ImageLimits(len(data), 1199)):
        with pytest.raises(InvalidImage, match="expected at most") as caught:
            decode_face(data, limits)
        assert caught.value.code == "image_too_large"


def test_a_webp_too_large_for_its_decoder_is_refused() -> None:
    data = bytearray(saved(Image.new("RGB", (16, 16)), "WEBP"))
    at = data.index(b"\x9d\x01\x2a")
    data[at + 3 : at + 7] = (16_383).to_bytes(2, "little") * 2
    with pytest.raises(InvalidImage) as caught:
        decode(bytes(data))
    assert caught.value.code == "image_too_large"


def test_importing_leaves_opencv_as_it_was_and_configuring_sets_it_up() -> None:
    code = """
import cv2
before = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
import shared.faces.decode
assert (cv2.getNumThreads(), cv2.utils.logging.getLogLevel()) == before
shared.faces.decode.configure_opencv(1)
assert (cv2.getNumThreads(), cv2.utils.logging.getLogLevel()) == (1, cv2.utils.logging.LOG_LEVEL_SILENT)
limits = shared.faces.decode.ImageLimits(10**6, 10**6)
for data in (b"\\xff\\xd8\\xff" + bytes(50), open(0, "rb").read()[:3000]):
    try:
        shared.faces.decode.decode_face(data, limits)
    except shared.faces.decode.InvalidImage:
        pass
"""
    done = subprocess.run([sys.executable, "-c", code], input=face_jpeg(0), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    configure_opencv(1)

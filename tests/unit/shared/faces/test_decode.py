from __future__ import annotations

import contextlib
import io
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shared.errors import InvalidImage
from shared.faces.decode import SIZE, Face, ImageLimits, PixelBudget, configure_opencv, decode_face
from shared.runtime.settings import Settings
from tests.support.builders.archives import face_jpeg, face_pixels, png_header_only, saved

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


def test_a_bitmap_whose_alpha_is_empty_shows_its_colours(photo: Image.Image) -> None:
    colours = np.asarray(photo.convert("RGB"))[::-1, :, ::-1]
    pixels = np.dstack([colours, np.zeros(colours.shape[:2], np.uint8)]).tobytes()
    masks = struct.pack("<4L", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<LllHHLLllLL", 108, photo.width, photo.height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    head += masks + bytes(108 - 40 - len(masks))
    data = b"BM" + struct.pack("<LHHL", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    assert (decode(data).pixels == decode(saved(photo, "PNG")).pixels).all()


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


# -- what people really have


def png_chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", crc)


LARGE_TEXT = zlib.compress(b"x" * 1_400_000)


@pytest.mark.parametrize("at", [33, -12], ids=["in front of the pixels", "behind them"])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"Comment\0\0" + LARGE_TEXT),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE_TEXT),
        png_chunk(b"iCCP", b"Profile\0\0" + LARGE_TEXT),
        png_chunk(b"tEXt", b"Comment\0hello", crc=7),
        png_chunk(b"iTXt", b"Comment\0\0\0\0\0hello", crc=7),
        png_chunk(b"pHYs", bytes(9), crc=7),
    ],
    ids=["large zTXt", "large iTXt", "large iCCP", "damaged tEXt", "damaged iTXt", "damaged pHYs"],
)
def test_a_png_is_whole_if_its_pixels_are(photo: Image.Image, chunk: bytes, at: int) -> None:
    data = saved(photo, "PNG")
    with_chunk = data[:at] + chunk + data[at:]
    np.testing.assert_array_equal(decode(with_chunk).pixels, decode(data).pixels)
    damaged = bytearray(with_chunk)
    damaged[with_chunk.index(b"IDAT") + 100] ^= 0xFF
    with pytest.raises(InvalidImage, match="found a PNG image that cannot be decoded"):
        decode(bytes(damaged))


GAPS = pytest.mark.parametrize(
    "gap",
    [b"", b"\xff", b"\xff" * 300, b"\x00", b"\xff\x00", b"\xff\xd0"],
    ids=["none", "fill", "much fill", "junk", "stuffed", "marker alone"],
)
"""What may stand between a JPEG's segments: decoders skip it."""


def with_gap(jpeg: bytes, gap: bytes) -> bytes:
    """Returns a JPEG with something in front of its first table."""
    at = jpeg.index(b"\xff\xdb")
    return jpeg[:at] + gap + jpeg[at:]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}])
@pytest.mark.parametrize("missing", [1, 2])
@GAPS
def test_a_jpeg_that_lacks_only_its_end_marker_is_taken(
    photo: Image.Image, options: dict[str, object], missing: int, gap: bytes
) -> None:
    for image in (photo, photo.resize((97, 131)), photo.convert("L")):
        data = with_gap(saved(image, "JPEG", quality=90, **options), gap)
        assert difference(decode(data[:-missing]).pixels, decode(data).pixels) < 1.0


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.3, 0.6])
@GAPS
def test_a_jpeg_that_ends_properly_but_lacks_rows_is_refused(
    photo: Image.Image, share: float, progressive: bool, gap: bytes
) -> None:
    data = with_gap(saved(photo, "JPEG", quality=90, progressive=progressive), gap)
    if progressive:  # its first scan holds the rough picture of all rows
        first, second = (found.start() for found in list(re.finditer(b"\xff\xda", data))[:2])
        cut = first + int((second - first) * share)
    else:
        cut = int(len(data) * share)
    with pytest.raises(InvalidImage, match="cut short"):
        decode(data[:cut] + b"\xff\xd9")


def test_a_jpeg_whose_last_rows_are_mid_gray_is_taken(photo: Image.Image) -> None:
    framed = Image.new("RGB", (240, 240), (128, 128, 128))
    framed.paste(photo.resize((200, 200)), (20, 20))
    data = saved(framed, "JPEG", quality=90)
    assert (decode(data).pixels[-1] == 128).all()


@GAPS
def test_a_few_hundred_bytes_that_claim_a_large_jpeg_are_refused_before_they_are_decoded(gap: bytes) -> None:
    data = bytearray(with_gap(saved(Image.new("L", (8, 8), 77), "JPEG"), gap))
    struct.pack_into(">2H", data, data.index(b"\xff\xc0") + 5, 7100, 7000)
    started = time.process_time()
    with pytest.raises(InvalidImage, match=r"a JPEG image of 7000x7100 pixels in \d+ bytes, which cannot fill it"):
        decode(bytes(data))
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("unit", [b"\xff", b"\xff\x00", b"\xff\xfe\x00\x02"], ids=bytes.hex)
def test_a_jpeg_with_millions_of_bytes_or_segments_in_front_of_its_pixels_is_refused_at_once(unit: bytes) -> None:
    data = face_jpeg(0)
    started = time.process_time()
    with pytest.raises(InvalidImage, match=r"found a JPEG image with more than [\d,]+ (bytes|segments)"):
        decode(data[:2] + unit * (20_000_000 // len(unit)) + data[2 : len(data) // 2] + b"\xff\xd9")
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("junk", [b"", b"\xff\xff\xff"], ids=["plain", "filled between segments"])
def test_a_jpeg_with_thousands_of_scans_is_refused_before_they_are_decoded(photo: Image.Image, junk: bytes) -> None:
    data = saved(photo, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    bomb = data[:2] + junk + data[2:-2] + last * 3000 + b"\xff\xd9"
    with pytest.raises(InvalidImage, match=r"found a JPEG image of 3,0\d\d scans, expected at most 100") as caught:
        decode(bomb)
    assert caught.value.code == "image_too_large"
    assert decode(data[:-2] + last + b"\xff\xd9").pixels.shape == (128, 128)


def vast_webp(side: int) -> bytes:
    """Returns 34 bytes that are a whole WebP image of one colour."""
    size = struct.pack("<L", (side - 1) | (side - 1) << 14)
    return b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/" + size + bytes.fromhex("071011fd0f4444ff03")


def vast_bmp(side: int) -> bytes:
    """Returns 180 bytes that claim a run-length encoded image, of which nothing is there but the end."""
    data = bytes(124) + b"\x00\x01"
    info = struct.pack("<L2l2H6L", 40, side, side, 1, 8, 1, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<L2HL", 14 + 40 + len(data), 0, 0, 54) + info + data


@pytest.mark.parametrize(
    "data", [png_header_only(7000, 7000, transparent=True), vast_webp(7000), vast_bmp(7000)], ids=["PNG", "WebP", "BMP"]
)
def test_a_few_bytes_that_claim_a_large_image_are_refused_before_they_are_decoded(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InvalidImage, match=r"found an image of .* pixels, expected at most") as caught:
        decode(data)
    assert caught.value.code == "image_too_large"
    assert time.process_time() - started < 0.1


def test_a_few_bytes_that_are_an_image_of_moderate_size_are_decoded() -> None:
    for data in (png_header_only(700, 700, transparent=True), vast_webp(700)):
        assert decode(data).width == 700


@pytest.mark.parametrize(("side", "padding"), [(3900, 0), (7000, 600_000)])
def test_the_largest_image_with_transparency_takes_three_bytes_a_pixel(side: int, padding: int) -> None:
    code = """
import resource, sys
from shared.faces.decode import ImageLimits, decode_face
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(decode_face(data, ImageLimits(10**7, 50_000_000)).pixels.max())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    data = png_header_only(side, side, transparent=True, padding=padding)
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    luma, grown = map(int, done.stdout.split())
    assert luma == 128
    assert grown < 3 * side * side + 30_000_000


@pytest.mark.parametrize(("kind", "size"), [("JPEG", (7000, 7000)), ("PNG", (5000, 4000)), ("WEBP", (4300, 3900))])
def test_photos_of_many_megapixels_are_decoded(kind: str, size: tuple[int, int]) -> None:
    small = cv2.resize(face_pixels(1), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    photo = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    options = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 75}, "WEBP": {"quality": 30, "method": 0}}[kind]
    assert decode(saved(photo, kind, **options)).width == size[0]


def test_images_of_one_message_share_their_pixels() -> None:
    limits = ImageLimits(10**7, 1_000_000)
    claims = [saved(Image.new("1", (1000, 1000)), "PNG")] * 8
    budget = PixelBudget(limits, sum(map(len, claims)))
    outcomes = []
    for data in claims:
        try:
            outcomes.append(decode_face(data, limits, budget).width)
        except InvalidImage as error:
            outcomes.append(error.code)  # type: ignore[arg-type]
    assert outcomes == [1000, 1000] + ["image_too_large"] * 6
    photos = [face_jpeg(seed) for seed in range(256)]
    budget = PixelBudget(limits, sum(map(len, photos)))
    assert all(decode_face(data, limits, budget).width == 200 for data in photos)


@pytest.mark.parametrize(
    ("size", "orientation"), [((4032, 3024), 1), ((3024, 4032), 3), ((4001, 3003), 6), ((3003, 4001), 8)]
)
def test_a_large_photo_is_decoded_at_a_quarter_with_the_same_pixels(size: tuple[int, int], orientation: int) -> None:
    pixels = cv2.resize(face_pixels(1), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    large = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    face = decode(saved(large, "JPEG", quality=90, exif=exif.tobytes()))
    assert (face.width, face.height) == size
    whole = decode(
        saved(large.rotate({1: 0, 3: 180, 6: -90, 8: 90}[orientation], expand=True), "PNG", compress_level=1)
    )
    apart = np.abs(face.pixels.astype(int) - whole.pixels.astype(int))
    assert apart.mean() < 1.0
    assert np.percentile(apart, 99) <= 2.0


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_photos_of_phones_are_decoded(photo: Image.Image, kind: str) -> None:
    pillow_heif = pytest.importorskip("pillow_heif") if kind == "HEIF" else None
    if pillow_heif:
        pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo, kind, quality=90)
    turned = saved(photo.transpose(Image.Transpose.ROTATE_90), kind, quality=90, exif=exif.tobytes())
    for image in (data, turned):
        assert difference(decode(image).pixels, expected(photo)) < 4.0
    for share in (0.3, 0.9):
        with pytest.raises(InvalidImage):
            decode(data[: int(len(data) * share)])


def test_without_its_extra_heic_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys
import time
sys.modules["pillow_heif"] = None
from shared.faces.decode import ImageLimits, decode_face, reads_heic
assert not reads_heic()
try:
    decode_face(bytes.fromhex("0000001c") + b"ftypheic" + bytes(40), ImageLimits(1000, 1000))
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "found a HEIC image, which needs the extra `heic` of the services; expected a JPEG, say\n"

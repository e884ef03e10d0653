"""From a file's bytes to the network's input: the one preprocessing function, used for training and for serving.

A face is turned upright (EXIF), laid over mid-gray where it is transparent, cut to its central square, made
luma (ITU-R 601), and resized to 128x128: linearly to the next multiple of 128, and from there by averaging whole blocks
of pixels. The central square keeps the face's proportions, which stretching would not.

Plain JPEGs, nearly all there are, take a fast path: their headers are looked through here, and OpenCV decodes them;
everything else goes through Pillow, which knows more kinds. Both release the GIL while they decode, so threads scale.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shared.errors import InvalidImage
from shared.faces.file_type import describe

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from shared.runtime.settings import Settings

SIZE: Final = 128
"""Side of the network's input, in pixels."""

_JPEG_START: Final = b"\xff\xd8"
_JPEG_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, all with Huffman codes
_JPEG_SCAN: Final = 0xDA
_JPEG_PLAIN: Final = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xE2, 0xFE})
"""Segments that change nothing here: tables, restart interval, JFIF, colour profile and comment."""

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""

_BACKDROP: Final = 128  # mid-gray, near the mean of faces: a cut-out face gains neither a bright nor a dark frame


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on one image, checked before anything is decoded."""

    max_bytes: int
    max_pixels: int

    @classmethod
    def from_settings(cls, settings: Settings) -> ImageLimits:
        """Returns the limits that the settings name."""
        return cls(settings.max_image_bytes, settings.max_image_pixels)


class Face(NamedTuple):
    """A decoded face.

    Attributes:
        pixels: uint8 (128, 128), luma, C-contiguous.
        width: of the image as stored in the file, in pixels.
        height: likewise.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int


def configure_opencv(threads: int = 1) -> None:
    """Sets OpenCV up for a whole process; a service's `__main__` calls it once.

    Args:
        threads: OpenCV's own threads within one call. 1 is right wherever images are decoded side by side: the
            images are small, and its pool would fight with ours.
    """
    cv2.setNumThreads(threads)
    # A broken image is reported as an `InvalidImage`; OpenCV's warning about it would only add noise to the log.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode_face(data: bytes | memoryview, limits: ImageLimits) -> Face:
    """Decodes an image file to the network's input. The same bytes always give the same pixels.

    Args:
        data: a whole JPEG, PNG, WebP or BMP file, told apart by content; of an animation, the first frame counts.
        limits: bounds that the header is held to before any pixel is decoded.

    Raises:
        InvalidImage: code `image_too_large` where it breaks a limit, `invalid_image` where it is of another kind,
            damaged or cut short.
    """
    if len(data) > limits.max_bytes:
        raise InvalidImage(
            f"found an image file of {len(data):,} bytes, expected at most {limits.max_bytes:,}", code="image_too_large"
        )
    if (size := _plain_jpeg_size(data)) is not None and size[0] * size[1] <= limits.max_pixels:
        luma = _decode_jpeg(data, size)
        if luma is not None:
            return Face(_fit(luma), *size)
    # Unusual, too large or damaged: Pillow has the last word, and words for what is wrong.
    image = _open(data)
    width, height = image.size
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"found an image of {width}x{height} = {width * height:,} pixels, expected at most {limits.max_pixels:,}",
            code="image_too_large",
        )
    luma = None
    if isinstance(image, JpegImageFile) and image.mode in {"L", "RGB"} and _orientation(image) == 1:
        luma = _decode_jpeg(data, image.size)
    return Face(_fit(_decode_any(image) if luma is None else luma), width, height)


def _plain_jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Returns width and height of an upright gray or colour JPEG; None where its headers hold anything unusual.

    In particular EXIF, which may turn the image, is left to Pillow: parsing it costs more than decoding does.
    """
    if bytes(data[:2]) != _JPEG_START:
        return None
    size: tuple[int, int] | None = None
    position, end = 2, len(data) - 10
    while position < end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _JPEG_SCAN:
            return size
        if marker in _JPEG_FRAMES:
            bits, components = data[position + 4], data[position + 9]
            if bits != 8 or components not in {1, 3}:
                return None
            height = data[position + 5] << 8 | data[position + 6]
            width = data[position + 7] << 8 | data[position + 8]
            size = width, height
        elif marker not in _JPEG_PLAIN:
            return None
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def luma_stats(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Returns the mean and the standard deviation of a face's luma: how bright it is, and how rich in contrast.

    Args:
        pixels: uint8 (height, width), luma.
    """
    mean, deviation = cv2.meanStdDev(pixels)
    return float(mean[0, 0]), float(deviation[0, 0])


def _open(data: bytes | memoryview) -> ImageFile:
    """Reads the header only. The classes are called directly: `Image.open` takes longer and warns about sizes."""
    head = bytes(data[:512])
    kinds: dict[str, type[ImageFile]] = {
        "a JPEG image": JpegImageFile,
        "a PNG image": PngImageFile,
        "a WebP image": WebPImageFile,
        "a BMP image": BmpImageFile,
    }
    found = describe(head)
    if found not in kinds:
        raise InvalidImage(f"found {found}, expected a JPEG, PNG, WebP or BMP image")
    try:
        return kinds[found](io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"found {found} too large to open: {error}", code="image_too_large") from None
    except Exception as error:  # decoders fed with damaged bytes raise whatever they stumble over
        raise _damaged(found, error) from None


def _decode_jpeg(data: bytes | memoryview, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Returns the luma of an upright gray or RGB JPEG of that width and height; None for a damaged one.

    libjpeg hands out the Y component as it is, so the colours are never computed.
    """
    try:
        luma = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    # OpenCV answers None for a file cut short.
    return None if luma is None or luma.shape != size[::-1] else luma.astype(np.uint8, copy=False)


def _decode_any(image: ImageFile) -> NDArray[np.uint8]:
    """Returns the luma of the central square of any image that Pillow can open."""
    try:
        image.load()
        return _luma(_central_square(_upright(image)))
    except MemoryError:
        raise
    except Exception as error:  # as in `_open`
        raise _damaged(f"a {image.format} image", error) from None


def _upright(image: ImageFile) -> Image.Image:
    """Turns the pixels only: `ImageOps.exif_transpose` writes the EXIF anew as well, and fails where that is odd."""
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: ImageFile) -> int:
    """Returns the EXIF orientation, 1-8 as a rule; 1, upright, where there is none or it cannot be read."""
    if "exif" not in image.info and "xmp" not in image.info and "Raw profile type exif" not in image.info:
        return 1  # reading EXIF costs more than the rest of the header
    try:
        return int(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # damaged EXIF is common, and no reason to refuse a good face
        return 1


def _central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image if image.width == image.height else image.crop((left, top, left + side, top + side))


def _luma(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits a pixel: the upper eight
        return (np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_BACKDROP,) * 3 + (255,)), image)
    return np.asarray(image.convert("L"))


def _fit(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cuts to the central square and resizes. Shape in: (height, width); out: (128, 128)."""
    height, width = luma.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = luma[top : top + side, left : left + side]
    # Averaging by a whole factor, and linear interpolation, are several times as fast as averaging by any other factor,
    # and the pixels come out the same but for a level or so.
    if side % SIZE:
        whole = -(-side // SIZE) * SIZE
        square = cv2.resize(square, (whole, whole), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    if len(square) != SIZE:
        square = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return np.ascontiguousarray(square)


def _damaged(found: str, error: Exception) -> InvalidImage:
    return InvalidImage(f"found {found} that cannot be decoded ({error or type(error).__name__}), expected a whole one")

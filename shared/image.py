"""From a file's bytes to the network's input: the one preprocessing function, used for training and for serving.

A face is turned upright (EXIF), laid over mid-gray where it is transparent, cut to its central square, made
luma (ITU-R 601), and resized to 128x128: by area averaging when shrinking, linearly when enlarging. The central square
keeps the face's proportions, which stretching would not.

Plain JPEGs, nearly all there are, take a fast path through OpenCV; everything else goes through Pillow, which knows
more kinds. Both release the GIL while they decode, so threads scale.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shared.errors import InvalidImage
from shared.sniff import looks_like

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from shared.settings import Settings

SIZE: Final = 128
"""Side of the network's input, in pixels."""

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
    image = _open(data)
    width, height = image.size
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"found an image of {width}x{height} = {width * height:,} pixels, expected at most {limits.max_pixels:,}",
            code="image_too_large",
        )
    luma = _decode_plain_jpeg(data, image)
    if luma is None:
        luma = _decode_any(image)
    return Face(_fit(luma), width, height)


def light(pixels: NDArray[np.uint8]) -> tuple[float, float]:
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
    found = looks_like(head)
    if found not in kinds:
        raise InvalidImage(f"found {found}, expected a JPEG, PNG, WebP or BMP image")
    try:
        return kinds[found](io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"found {found} too large to open: {error}", code="image_too_large") from None
    except Exception as error:  # decoders fed with damaged bytes raise whatever they stumble over
        raise _damaged(found, error) from None


def _decode_plain_jpeg(data: bytes | memoryview, image: ImageFile) -> NDArray[np.uint8] | None:
    """Returns the luma of an upright gray or RGB JPEG; None for any other image, and for a damaged one.

    libjpeg hands out the Y component as it is, so the colours are never computed.
    """
    if not isinstance(image, JpegImageFile) or image.mode not in {"L", "RGB"} or _orientation(image) != 1:
        return None
    try:
        luma = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    # OpenCV answers None for a file cut short. Pillow then has the last word, and words for what is wrong.
    return None if luma is None or luma.shape != (image.height, image.width) else luma.astype(np.uint8, copy=False)


def _decode_any(image: ImageFile) -> NDArray[np.uint8]:
    """Returns the luma of the central square of any image that Pillow can open."""
    try:
        image.load()
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        return _luma(_central_square(upright))
    except MemoryError:
        raise
    except Exception as error:  # as in `_open`
        raise _damaged(f"a {image.format} image", error) from None


def _orientation(image: ImageFile) -> int:
    """Returns the EXIF orientation, 1-8; 1, upright, where there is none or it cannot be read."""
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
    if side != SIZE:
        interpolation = cv2.INTER_AREA if side > SIZE else cv2.INTER_LINEAR
        square = cv2.resize(square, (SIZE, SIZE), interpolation=interpolation).astype(np.uint8, copy=False)
    return np.ascontiguousarray(square)


def _damaged(found: str, error: Exception) -> InvalidImage:
    return InvalidImage(f"found {found} that cannot be decoded ({error or type(error).__name__}), expected a whole one")

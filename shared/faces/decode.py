"""From a file's bytes to the network's input: the one preprocessing function, used for training and for serving.

A face is turned upright (EXIF), laid over mid-gray where it is transparent, cut to its central square, made
luma (ITU-R 601), and resized to 128x128: linearly to the next multiple of 128, and from there by averaging whole blocks
of pixels. The central square keeps the face's proportions, which stretching would not.

JPEGs, nearly all there are, are decoded by OpenCV once their headers were looked through, the large ones at a quarter
of their size; everything else goes through Pillow, which knows more kinds. Both release the GIL while they decode, so
threads scale.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shared.errors import InvalidImage
from shared.faces import jpeg
from shared.faces.file_type import describe
from shared.faces.jpeg import JpegHeader
from shared.faces.png import strip_ancillary

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from shared.runtime.settings import Settings

SIZE: Final = 128
"""Side of the network's input, in pixels."""

_LARGE_SIDE: Final = 2048
"""From this side of the central square on, a JPEG is decoded at a quarter of its size."""
_REDUCTION: Final = 4
_FREE_PIXELS: Final = 16_000_000
"""Pixels that the images of a message may have whatever their bytes."""
_PIXELS_A_BYTE: Final = 64
"""Pixels that images may have for each of their bytes; photos have some four, drawings up to about sixty."""

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

_BAND_PIXELS: Final = 1_000_000
"""Pixels that are converted at once, so that a large image never lies in memory with four bytes a pixel for that."""
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


class PixelBudget:
    """How many pixels the images of one message, or of one part of an archive, may have together.

    A few hundred bytes may claim as many pixels as `ImageLimits` allows. One of them would take half a gigabyte, and
    many would hold a worker for minutes.

    Args:
        limits: on each image.
        total_bytes: of all images, encoded.
    """

    def __init__(self, limits: ImageLimits, total_bytes: int) -> None:
        self._most = self._left = min(2 * limits.max_pixels, _FREE_PIXELS) + _PIXELS_A_BYTE * total_bytes

    def take(self, pixels: int) -> None:
        """Takes an image's pixels off.

        Raises:
            InvalidImage: code `image_too_large`, where so many are not left.
        """
        if pixels > self._left:
            raise InvalidImage(
                f"found an image of {pixels:,} pixels, expected at most {self._left:,}, which are left of the "
                f"{self._most:,} that the bytes of the message allow",
                code="image_too_large",
            )
        self._left -= pixels


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
    AvifImagePlugin.DEFAULT_MAX_THREADS = threads
    # A broken image is reported as an `InvalidImage`; OpenCV's warning about it would only add noise to the log.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode_face(data: bytes | memoryview, limits: ImageLimits, budget: PixelBudget | None = None) -> Face:
    """Decodes an image file to the network's input. The same bytes always give the same pixels.

    Args:
        data: a whole JPEG, PNG, WebP, BMP, AVIF or HEIC file, told apart by content; of an animation, the first frame
            counts.
        limits: bounds that the header is held to before any pixel is decoded.
        budget: shared by the images of one message; None where it is alone.

    Raises:
        InvalidImage: code `image_too_large` where it breaks a limit, `invalid_image` where it is of another kind,
            damaged or cut short.
    """
    if len(data) > limits.max_bytes:
        raise InvalidImage(
            f"found an image file of {len(data):,} bytes, expected at most {limits.max_bytes:,}", code="image_too_large"
        )
    budget = budget or PixelBudget(limits, len(data))
    header = jpeg.read_header(data)
    if header is not None:
        jpeg.check_cost(data, header.width, header.height, header)
        _check_pixels(header.width, header.height, limits, budget)
        if header.is_plain:
            luma = _decode_jpeg(data, header)
            if luma is not None:
                return Face(_fit(luma, header), header.width, header.height)
    # Unusual or damaged: Pillow has the last word, and words for what is wrong.
    image = _open(data)
    width, height = image.size
    if header is None:
        if isinstance(image, JpegImageFile):  # of another order than ours
            jpeg.check_cost(data, width, height)
        _check_pixels(width, height, limits, budget)
    elif isinstance(image, JpegImageFile) and image.mode in {"L", "RGB"}:
        luma = _decode_jpeg(data, header)
        if luma is not None:
            return Face(_turn(_fit(luma, header), _orientation(image)), width, height)
    return Face(_fit(_decode_any(image, data, header)), width, height)


def _check_pixels(width: int, height: int, limits: ImageLimits, budget: PixelBudget) -> None:
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"found an image of {width}x{height} = {width * height:,} pixels, expected at most {limits.max_pixels:,}",
            code="image_too_large",
        )
    budget.take(width * height)


def luma_stats(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Returns the mean and the standard deviation of a face's luma: how bright it is, and how rich in contrast.

    Args:
        pixels: uint8 (height, width), luma.
    """
    mean, deviation = cv2.meanStdDev(pixels)
    return float(mean[0, 0]), float(deviation[0, 0])


@functools.cache
def _image_classes() -> dict[str, type[ImageFile]]:
    """Returns what reads each kind of image, by the words of `describe`."""
    classes: dict[str, type[ImageFile]] = {
        "a JPEG image": JpegImageFile,
        "a PNG image": PngImageFile,
        "a WebP image": WebPImageFile,
        "a BMP image": BmpImageFile,
        "an AVIF image": AvifImageFile,
    }
    with contextlib.suppress(ImportError):  # the extra `heic`
        classes["a HEIC image"] = importlib.import_module("pillow_heif").HeifImageFile
    return classes


def reads_heic() -> bool:
    """Tells whether HEIC images can be read: what phones take needs the extra `heic`."""
    return "a HEIC image" in _image_classes()


def _open(data: bytes | memoryview) -> ImageFile:
    """Reads the header only. The classes are called directly: `Image.open` takes longer and warns about sizes."""
    found = describe(bytes(data[:512]))
    if found == "a HEIC image" and not reads_heic():
        raise InvalidImage("found a HEIC image, which needs the extra `heic` of the services; expected a JPEG, say")
    if found not in _image_classes():
        raise InvalidImage(f"found {found}, expected a JPEG, PNG, WebP, BMP, AVIF or HEIC image")
    try:
        return _image_classes()[found](io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"found {found} too large to open: {error}", code="image_too_large") from None
    except Exception as error:  # decoders fed with damaged bytes raise whatever they stumble over
        if found == "a PNG image":
            return _open_stripped(data, error)
        raise _damaged(found, error) from None


def _open_stripped(data: bytes | memoryview, error: Exception) -> ImageFile:
    """Opens a PNG without its texts and profiles, which are damaged or too large; the pixels may be whole."""
    try:
        return PngImageFile(io.BytesIO(strip_ancillary(data)))
    except Exception:
        raise _damaged("a PNG image", error) from None


def _decode_jpeg(data: bytes | memoryview, header: JpegHeader) -> NDArray[np.uint8] | None:
    """Returns the luma of a gray or RGB JPEG, at a quarter of its size where it is large; None for a damaged one.

    libjpeg hands out the Y component as it is, so the colours are never computed.
    """
    reduction = _reduction(header)
    flag = cv2.IMREAD_GRAYSCALE if reduction == 1 else cv2.IMREAD_REDUCED_GRAYSCALE_4
    try:
        luma = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    # OpenCV answers None for a file cut short; for one that ends too early all the same, it fills the rest with gray.
    if luma is None or luma.shape != (-(-header.height // reduction), -(-header.width // reduction)):
        return None
    pixels: NDArray[np.uint8] = luma.astype(np.uint8, copy=False)
    return None if jpeg.may_lack_data(pixels) else pixels


def _reduction(header: JpegHeader) -> int:
    return _REDUCTION if min(header.width, header.height) >= _LARGE_SIDE else 1


def _decode_any(image: ImageFile, data: bytes | memoryview, header: JpegHeader | None) -> NDArray[np.uint8]:
    """Returns the luma of the central square of any image that Pillow can open."""
    kind = image.format
    try:
        if header is not None and isinstance(image, JpegImageFile):
            image = _load_jpeg(bytes(data), header)
        elif isinstance(image, PngImageFile):
            image = _load_png(image, data)
        else:
            image.load()
        upright = _upright(image)
        if kind == "BMP" and upright.mode == "RGBA" and upright.getchannel("A").getextrema() == (0, 0):
            upright = upright.convert("RGB")  # most writers leave the fourth byte of a pixel empty
        return _luma(upright)
    except (MemoryError, InvalidImage):
        raise
    except Exception as error:  # as in `_open`
        raise _damaged(f"a {kind} image", error) from None


def _load_png(image: PngImageFile, data: bytes | memoryview) -> ImageFile:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # texts may stand behind the pixels, too
        image = PngImageFile(io.BytesIO(strip_ancillary(data)))
        image.load()
    return image


def _load_jpeg(data: bytes, header: JpegHeader) -> ImageFile:
    """Loads a JPEG whose data reaches to its last row, with or without an end marker.

    Raises:
        Exception: whatever the decoder stumbles over.
        InvalidImage: rows are missing.
    """
    image = JpegImageFile(io.BytesIO(jpeg.with_end(data, header.scan_at)))
    filled = JpegImageFile(io.BytesIO(jpeg.with_filler(data, header.scan_at)))
    if image.tobytes() != filled.tobytes():  # it decodes both
        raise InvalidImage("found a JPEG image cut short (its last rows are missing), expected a whole one")
    return image


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


def _luma(image: Image.Image) -> NDArray[np.uint8]:
    """Returns the luma of an image's central square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    luma = np.empty((side, side), np.uint8)
    height = max(1, _BAND_PIXELS // side)
    for start in range(0, side, height):
        stop = min(start + height, side)
        luma[start:stop] = _luma_of_band(image.crop((left, top + start, left + side, top + stop)))
    return luma


def _luma_of_band(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits a pixel: the upper eight
        return (np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_BACKDROP,) * 3 + (255,)), image)
    return np.asarray(image.convert("L"))


def _turn(face: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns a square face upright by its EXIF orientation."""
    if orientation in {5, 6, 7, 8}:
        face = face.T
    if orientation in {2, 3, 6, 7}:
        face = face[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        face = face[::-1]
    return np.ascontiguousarray(face)


def _fit(luma: NDArray[np.uint8], header: JpegHeader | None = None) -> NDArray[np.uint8]:
    """Cuts to the central square and resizes.

    Args:
        luma: uint8 (height, width).
        header: of the JPEG that `luma` was decoded from, perhaps at a quarter of its size.

    Returns:
        uint8 (128, 128).
    """
    height, width = luma.shape
    side = min(height, width)
    if header is not None and (reduction := _reduction(header)) > 1:
        # The square's place in the whole image may be between two pixels of the reduced one.
        whole = min(header.width, header.height)
        left, top = ((length - whole) // 2 for length in (header.width, header.height))
        center = tuple((start + whole / 2) / reduction - 0.5 for start in (left, top))
        square = cv2.getRectSubPix(luma, (side, side), center).astype(np.uint8, copy=False)
    else:
        top, left = (height - side) // 2, (width - side) // 2
        square = luma[top : top + side, left : left + side]
    # Averaging by a whole factor, and linear interpolation, are several times as fast as averaging by any other factor,
    # and the pixels come out the same but for a level or so.
    if side % SIZE:
        multiple = -(-side // SIZE) * SIZE
        square = cv2.resize(square, (multiple, multiple), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    if len(square) != SIZE:
        square = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return np.ascontiguousarray(square)


def _damaged(found: str, error: Exception) -> InvalidImage:
    return InvalidImage(f"found {found} that cannot be decoded ({error or type(error).__name__}), expected a whole one")

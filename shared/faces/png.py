"""Writing a PNG, and a PNG without what is not needed to show it."""

from __future__ import annotations

import struct
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHUNK: Final = struct.Struct(">L4s")
_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def encode_png(face: NDArray[np.uint8]) -> bytes:
    """Returns uint8 (H, W) as a PNG file: without loss, so that it can be predicted as it is."""
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(face), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return encoded.tobytes()


def strip_ancillary(data: bytes | memoryview) -> bytes:
    """Returns a PNG without its texts, profiles and times.

    Pillow refuses the whole image for one of them that is damaged or large. The pixels' own chunks keep their
    checksums, and so their damage.
    """
    view = memoryview(data)
    kept = [bytes(view[: len(_SIGNATURE)])]
    at = len(_SIGNATURE)
    while at + _CHUNK.size <= len(view):
        length, kind = _CHUNK.unpack_from(view, at)
        end = at + _CHUNK.size + length + 4
        if kind in _KEPT:
            kept.append(bytes(view[at:end]))
        at = end
    return b"".join(kept)

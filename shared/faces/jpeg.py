"""What a JPEG's markers say before anything is decoded, and whether its data fills the picture.

Decoders take what is missing for mid-gray and say nothing, and go through as many scans as a file has.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidImage

END: Final = b"\xff\xd9"
_START: Final = b"\xff\xd8"
_HUFFMAN_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive
_SEQUENTIAL_FRAMES: Final = frozenset({0xC0, 0xC1})
_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SCAN: Final = 0xDA
_SCAN_MARKER: Final = b"\xff\xda"
_PLAIN: Final = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xE2, 0xFE})
"""Segments that change nothing here: tables, restart interval, JFIF, colour profile and comment."""

_NO_SEGMENT: Final = frozenset({0x00, 0x01, *range(0xD0, 0xD8), 0xFF})
"""After 0xFF: bytes that begin no segment. Decoders skip them between segments, and whatever else stands there."""
_SEGMENT: Final = re.compile(rb"\xff(?![\x00\x01\xd0-\xd7\xff])")

_MAX_SEGMENTS: Final = 10_000
"""Segments and gaps in front of the first scan; an honest file of 32 MiB has at most some five hundred."""
_MAX_SKIPPED: Final = 65_536
_MAX_SCANS: Final = 100
_MAX_SCANNED_PIXELS: Final = 1_000_000_000
"""Pixels times scans, which is what decoding takes: about 1.5 ns each. Encoders write some ten scans."""
_BLOCK_PIXELS: Final = 64
_MISSING: Final = 128
"""The luma of a block that is not in the data."""
_FILLER: Final = bytes(1 + 37 * index % 253 for index in range(1024))
"""Data that decodes to something other than mid-gray."""


class JpegHeader(NamedTuple):
    """What stands in front of a JPEG's first scan.

    Attributes:
        width: in pixels.
        height: in pixels.
        is_plain: whether it is an upright gray or colour JPEG with Huffman codes and nothing unusual in its segments.
            EXIF counts as unusual, for it may turn the image: parsing it costs more than decoding a small image.
        has_huffman_codes: else arithmetic codes, or no losses.
        has_one_scan: whether the first scan holds the whole picture, so that a decoder reads no other.
        scan_at: where its first scan begins.
    """

    width: int
    height: int
    is_plain: bool
    has_huffman_codes: bool
    has_one_scan: bool
    scan_at: int


def read_header(data: bytes | memoryview) -> JpegHeader | None:
    """Reads the segments in front of the first scan; returns None where these are no JPEG's, or have no frame.

    Raises:
        InvalidImage: so much stands in front of the first scan that other readers would take minutes for it.
    """
    if bytes(data[:2]) != _START:
        return None
    width = height = skipped = 0
    plain = huffman = True
    sequential, components = False, 0
    position, end = 2, len(data) - 10
    for _ in range(_MAX_SEGMENTS):
        if position >= end:
            return None
        marker = data[position + 1]
        if data[position] != 0xFF or marker in _NO_SEGMENT:
            found = _SEGMENT.search(data, position)
            if found is None:
                return None
            skipped += found.start() - position
            if skipped > _MAX_SKIPPED:
                raise InvalidImage(
                    f"found a JPEG image with more than {_MAX_SKIPPED:,} bytes between its segments, expected none"
                )
            position = found.start()
            continue
        if marker == _SCAN:
            one_scan = sequential and data[position + 4] == components
            return JpegHeader(width, height, plain, huffman, one_scan, position) if width and height else None
        if marker in _FRAMES:
            bits, components = data[position + 4], data[position + 9]
            huffman = marker in _HUFFMAN_FRAMES
            sequential = marker in _SEQUENTIAL_FRAMES
            plain = plain and huffman and bits == 8 and components in {1, 3}
            height = data[position + 5] << 8 | data[position + 6]
            width = data[position + 7] << 8 | data[position + 8]
        elif marker not in _PLAIN:
            plain = False
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    raise InvalidImage(f"found a JPEG image with more than {_MAX_SEGMENTS:,} segments in front of its pixels")


def check_cost(data: bytes | memoryview, width: int, height: int, header: JpegHeader | None = None) -> None:
    """Refuses what cannot fill its picture, and what takes far longer to decode than any honest file.

    Args:
        data: the whole file.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        header: where it could be read.

    Raises:
        InvalidImage: code `invalid_image` or `image_too_large`.
    """
    pixels = width * height
    # With Huffman codes, a block of 8x8 pixels takes at least one bit.
    if (header is None or header.has_huffman_codes) and pixels > len(data) * 8 * _BLOCK_PIXELS:
        raise InvalidImage(
            f"found a JPEG image of {width}x{height} pixels in {len(data):,} bytes, which cannot fill it; expected a "
            "whole one"
        )
    if header is not None and header.has_one_scan:
        return
    most = max(1, min(_MAX_SCANS, _MAX_SCANNED_PIXELS // max(pixels, 1)))
    scans = bytes(data).count(_SCAN_MARKER, 0 if header is None else header.scan_at)
    if scans > most:
        raise InvalidImage(
            f"found a JPEG image of {scans:,} scans, expected at most {most} for {width}x{height} pixels",
            code="image_too_large",
        )


def may_lack_data(luma: NDArray[np.uint8]) -> bool:
    """Tells whether the last block of a JPEG's picture is mid-gray, as a missing one is, and an honest one may be."""
    height, width = luma.shape
    block = luma[(height - 1) // 8 * 8 :, (width - 1) // 8 * 8 :]
    return luma[-1, -1] == _MISSING and bool((block == _MISSING).all())


def with_end(data: bytes, scan_at: int) -> bytes:
    """Returns a JPEG that ends as it should: what lacks only its end marker is whole."""
    return data if data.find(END, scan_at) >= 0 else data + END


def with_filler(data: bytes, scan_at: int) -> bytes:
    """Returns a JPEG with more data in front of its end.

    It changes the picture only where the decoder would still wait for data.
    """
    end = data.find(END, scan_at)
    return data[: len(data) if end < 0 else end] + _FILLER + END

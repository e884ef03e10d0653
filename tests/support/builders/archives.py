"""Archives and images, sound and hostile, for tests of every level.

Zips are built with `zipfile` where it can, and patched byte by byte where it is too honest.
"""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.faces.labels import Label
from shared.faces.synthetic import draw_face

Files = Iterable[tuple[str, bytes]]


def zipped(files: Files, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip of the files, in their order; a name may come twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files:
            info = zipfile.ZipInfo("x")
            info.filename = name  # put on afterwards, since the constructor would end it at a NUL
            info.compress_type = compression
            archive.writestr(info, data)
            del archive.NameToInfo[name]  # no warning about names that come twice
    return buffer.getvalue()


@functools.cache
def face_pixels(seed: int, gender: int = 0) -> NDArray[np.uint8]:
    """Returns uint8 (200, 200, 3): a face of its own for every seed."""
    return draw_face(Label(20 + seed % 50, gender, seed % 5), np.random.default_rng((77, seed, gender)))


@functools.cache
def face_jpeg(seed: int, gender: int = 0) -> bytes:
    """Returns a 200x200 JPEG: a face of its own for every seed."""
    return cv2.imencode(".jpg", face_pixels(seed, gender))[1].tobytes()


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """Returns the pixels as a PNG."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def bmp_of(pixels: NDArray[np.uint8]) -> bytes:
    """Returns the pixels as a BMP: the same face as `png_of`, in other bytes."""
    return cv2.imencode(".bmp", pixels)[1].tobytes()


def resized_jpeg(jpeg: bytes, side: int) -> bytes:
    """Returns the photo at another size, saved again."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return saved(image.resize((side, side), Image.Resampling.BOX), "JPEG")


def labelled_faces(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """Returns files with labels in their names, male and female in turn, all different."""
    return [(f"{20 + i % 50}_{i % 2}_{i % 5}_{i}.jpg", face_jpeg(i, i % 2)) for i in range(first, first + count)]


def png_header_only(width: int, height: int, *, transparent: bool = False, padding: int = 0) -> bytes:
    """Returns a valid one-bit PNG of any size, all black: 13000x13000 pixels take 20 kB.

    Args:
        width: in pixels.
        height: in pixels.
        transparent: whether it has a palette with a transparent colour.
        padding: bytes of a text to add.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">2L5B", width, height, 1, 3 if transparent else 0, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\x00\xff") if transparent else b""
    text = chunk(b"tEXt", b"Comment\0" + b"x" * padding) if padding else b""
    parts = chunk(b"IHDR", header), palette, text, chunk(b"IDAT", packed), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Returns a Pillow image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encrypted(files: Files, only: str | None = None) -> bytes:
    """Returns a zip that says its files (or the one named) are encrypted, as reading needs no more than that."""
    data = bytearray(zipped(files))
    for at in _directory_entries(data):
        local = struct.unpack_from("<L", data, at + 42)[0]
        if only is None or _name(data, at) == only.encode():
            data[at + 8] |= 1
            data[local + 6] |= 1
    return bytes(data)


def symlink(name: str, target: str) -> bytes:
    """Returns a zip with one face and one symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("30_0_0_plain.jpg", face_jpeg(0))
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return buffer.getvalue()


def overlapping(copies: int = 100) -> bytes:
    """Returns a zip bomb of the quiet kind: one file's bytes, listed in the directory again and again."""
    data = zipped([("30_0_0_bomb.jpg", bytes(1 << 20))], zipfile.ZIP_DEFLATED)
    start = next(_directory_entries(data))
    end = data.rfind(b"PK\x05\x06")
    entry = data[start:end]
    return data[:start] + entry * copies + _end(copies, len(entry) * copies, start)


def lying_about_size(name: str, data: bytes, claimed: int) -> bytes:
    """Returns a zip whose headers claim another size for its one file than it unpacks to."""
    archive = bytearray(zipped([(name, data)], zipfile.ZIP_DEFLATED))
    at = next(_directory_entries(archive))
    struct.pack_into("<L", archive, at + 24, claimed)
    struct.pack_into("<L", archive, 22, claimed)
    return bytes(archive)


def corrupted(name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip with one byte of its one file changed."""
    archive = bytearray(zipped([(name, data)], method))
    archive[30 + len(name.encode()) + 20] ^= 0xFF
    return bytes(archive)


def many_members(count: int, claimed: int | None = None) -> bytes:
    """Returns a zip of `count` empty members that claims to hold `claimed`, with zip64 records where needed."""
    local, entry = _empty_member()
    return local + entry * count + _end(count if claimed is None else claimed, len(entry) * count, len(local))


def wrapped_count(count: int, claimed: int | None = None) -> bytes:
    """Returns a zip of `count` empty members as macOS writes it, without zip64 records: of `count`, or of `claimed`,
    its end holds the lower 16 bits.
    """
    local, entry = _empty_member()
    entries = (entry[:42] + struct.pack("<L", len(local) * row) + entry[46:] for row in range(count))
    wrapped = (count if claimed is None else claimed) % 2**16
    return local * count + b"".join(entries) + _end(wrapped, len(entry) * count, len(local) * count)


def sparse_directory(path: Path, directory_bytes: int) -> None:
    """Writes a zip whose directory is said to be that large and to have one entry: a hole, which takes no disk."""
    with path.open("wb") as file:
        file.seek(directory_bytes)
        file.write(_end(1, directory_bytes, 0))


def with_method(name: str, data: bytes, method: int) -> bytes:
    """Returns a zip whose one file claims another compression method, such as 9 (Deflate64)."""
    archive = bytearray(zipped([(name, data)]))
    struct.pack_into("<H", archive, next(_directory_entries(archive)) + 10, method)
    struct.pack_into("<H", archive, 8, method)
    return bytes(archive)


def with_zip64(files: Files, numbers: int = 3) -> bytes:
    """Returns a zip whose directory keeps sizes and places in zip64 fields, of which only so many numbers are there."""
    data = zipped(files)
    first = next(_directory_entries(data))
    directory = bytearray()
    count = 0
    for at in _directory_entries(data):
        entry = bytearray(data[at : at + 46 + len(_name(data, at))])
        packed, size = struct.unpack_from("<2L", entry, 20)
        (offset,) = struct.unpack_from("<L", entry, 42)
        wide = struct.pack("<3Q", size, packed, offset)[: 8 * numbers]
        extra = struct.pack("<2HL", 0x7075, 4, 0) + struct.pack("<2H", 1, len(wide)) + wide
        struct.pack_into("<2L", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<L", entry, 42, 0xFFFFFFFF)
        struct.pack_into("<H", entry, 30, len(extra))
        directory += entry + extra
        count += 1
    return data[:first] + bytes(directory) + _end(count, len(directory), first)


def renamed(archive: bytes, old: bytes, new: bytes) -> bytes:
    """Returns the zip with a name replaced by one of equal length, in its bytes."""
    if len(old) != len(new):
        raise ValueError(f"found {len(new)} bytes for {len(old)}")
    return archive.replace(old, new)


def _empty_member() -> tuple[bytes, bytes]:
    """Returns the local header and the directory's entry of an empty member at the file's start."""
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    return local, entry


def _end(entries: int, directory_bytes: int, offset: int) -> bytes:
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, directory_bytes, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + directory_bytes, 1)
    plain = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *[min(entries, 0xFFFF)] * 2, directory_bytes, offset, 0)
    return end64 + locator + plain if entries >= 0xFFFF else plain


def _directory_entries(archive: bytes | bytearray) -> Iterator[int]:
    at = struct.unpack_from("<L", archive, archive.rfind(b"PK\x05\x06") + 16)[0]
    while archive[at : at + 4] == b"PK\x01\x02":
        yield at
        at += 46 + sum(struct.unpack_from("<3H", archive, at + 28))


def _name(archive: bytes | bytearray, at: int) -> bytes:
    return bytes(archive[at + 46 : at + 46 + struct.unpack_from("<H", archive, at + 28)[0]])

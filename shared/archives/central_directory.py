"""The directory at the end of a zip: which entries it has, where they lie and what it claims of them.

`zipfile` makes an object for each entry: with tens of thousands of them that takes as long as decoding a thousand
faces. Here the fields of all entries become columns, in a few steps; an `Entry` is made when it is asked for. As in
`zipfile`, names without the UTF-8 flag are in code page 437, and what stands in front of a zip does not matter.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from shared.archives.entry import LOCAL_HEADER, LOCAL_SIGNATURE, decoded_name
from shared.errors import InvalidDataset
from shared.faces.file_type import describe

_END: Final = struct.Struct(
    "<4s4H2LH"
)  # signature, disk, disk of directory, entries here, entries, size, offset, comment
_END_SIGNATURE: Final = b"PK\x05\x06"
_END64: Final = struct.Struct("<4sQ2H2L4Q")  # …, entries here, entries, size, offset
_END64_SIGNATURE: Final = b"PK\x06\x06"
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_MAX_COMMENT_BYTES: Final = 0xFFFF
_COUNTED: Final = 2**16  # where the count of entries starts anew: macOS goes on without zip64
_COUNTED64: Final = 2**64

_SIGNATURE: Final = b"PK\x01\x02"
_LENGTHS: Final = struct.Struct("<3H")  # of name, extra field and comment
_LENGTHS_AT: Final = 28
_ENTRY: Final = np.dtype(
    {
        "names": ["version", "flags", "method", "crc", "packed", "size", "name", "extra", "mode", "offset"],
        "formats": ["u1", "<u2", "<u2", "<u4", "<u4", "<u4", "<u2", "<u2", "<u2", "<u4"],
        "offsets": [6, 8, 10, 16, 20, 24, 28, 30, 40, 42],
        "itemsize": 46,
    }
)
"""The fixed part of an entry, as far as it matters here; `mode` is the upper half of the external attributes."""
_ENTRY_BYTES: Final = 512
"""What an entry may take on average, for the directory is read whole; a usual one takes 100, most of them its name."""
_ZIP64_EXTRA: Final = 1
_IN_ZIP64: Final = 0xFFFFFFFF
_MOST: Final = 2**62
"""No file is that long: sums of such numbers still fit into an int64."""


@dataclass(frozen=True)
class Directory:
    """A zip's entries, column by column; all arrays have a row an entry, in the directory's order.

    Attributes:
        offsets: int64, of their local headers in the file.
        packed_bytes: int64.
        size_bytes: int64, unpacked, as claimed.
        crcs: uint32, of the unpacked bytes.
        flags: uint16.
        methods: uint16, of compression.
        modes: uint16, as Unix programs fill it in; 0 from others.
        versions: uint8, of the format that is needed to unpack them, in tenths.
        names: as they are written; see `name`.
    """

    offsets: NDArray[np.int64]
    packed_bytes: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    flags: NDArray[np.uint16]
    methods: NDArray[np.uint16]
    modes: NDArray[np.uint16]
    versions: NDArray[np.uint8]
    names: list[bytes]

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, row: int) -> str:
        """Returns an entry's name; what is not in the encoding that it claims, with replacement characters."""
        return decoded_name(self.names[row], int(self.flags[row]), "replace")


def read_directory(file: BinaryIO, max_entries: int) -> Directory:
    """Reads the directory of a zip that a stranger made.

    Args:
        file: seekable.
        max_entries: more are refused before anything is built for them, and a directory larger than so many can need
            before it is read.

    Raises:
        InvalidDataset: code `invalid_archive` where it is no zip, cut short, split, damaged or crafted;
            `archive_too_large` where it has more entries, or too large a directory.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(512)
    if not head:
        raise InvalidDataset("found an empty file (0 bytes), expected a zip archive")
    start, end, claimed, counted, claimed_start = _find(file, size, head)
    if claimed > max_entries:
        raise _too_many(claimed, max_entries)
    _refuse_large(end - start, max_entries)
    file.seek(start)
    raw = file.read(end - start)
    starts = list(_entry_offsets(raw, max_entries))
    if len(starts) % counted != claimed:
        raise InvalidDataset(
            f"found {len(starts):,} entries in the zip archive's directory, expected {claimed:,} as its end says: "
            "it is damaged or crafted"
        )
    fixed = np.frombuffer(b"".join([raw[start : start + _ENTRY.itemsize] for start in starts]), _ENTRY)
    offsets, packed, sizes = (fixed[name].astype(np.int64) for name in ("offset", "packed", "size"))
    for row in np.flatnonzero((offsets == _IN_ZIP64) | (packed == _IN_ZIP64) | (sizes == _IN_ZIP64)).tolist():
        at = starts[row] + _ENTRY.itemsize + int(fixed["name"][row])
        extra = raw[at : at + int(fixed["extra"][row])]
        sizes[row], packed[row], offsets[row] = _from_zip64(extra, int(sizes[row]), int(packed[row]), int(offsets[row]))
    directory = Directory(
        offsets=offsets + (start - claimed_start),  # something may stand in front of the zip
        packed_bytes=packed,
        size_bytes=sizes,
        crcs=fixed["crc"],
        flags=fixed["flags"],
        methods=fixed["method"],
        modes=fixed["mode"],
        versions=fixed["version"],
        names=[
            raw[start + _ENTRY.itemsize : start + _ENTRY.itemsize + length]
            for start, length in zip(starts, fixed["name"].tolist(), strict=True)
        ],
    )
    _refuse_overlaps(directory, start)
    return directory


def _find(file: BinaryIO, size: int, head: bytes) -> tuple[int, int, int, int, int]:
    """Finds the directory by the record at the zip's end.

    Returns:
        Where the directory starts and ends, how many entries it is said to hold, at how many the count starts anew, and
        where it is said to start.
    """
    tail_start = max(0, size - _END.size - _MAX_COMMENT_BYTES - 1)
    file.seek(tail_start)
    tail = file.read()
    at = len(tail) - _END.size
    if not (at >= 0 and tail.startswith(_END_SIGNATURE, at) and tail.endswith(b"\0\0")):  # else it has a comment
        at = tail.rfind(_END_SIGNATURE)
    if at < 0 or at + _END.size > len(tail):
        if head.startswith(LOCAL_SIGNATURE):
            raise InvalidDataset("found a zip archive cut short (its end is missing), expected a whole one")
        raise InvalidDataset(f"found {describe(head)}, expected a zip archive")
    _, disk, directory_disk, _, entries, directory_bytes, directory_start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    counted = _COUNTED
    locator_start = end - _END64_LOCATOR.size
    end64_start = locator_start - _END64.size
    if end64_start >= 0:
        file.seek(end64_start)
        record = file.read(_END64.size + _END64_LOCATOR.size)
        if record.startswith(_END64_SIGNATURE) and record.startswith(_END64_LOCATOR_SIGNATURE, _END64.size):
            fields = _END64.unpack_from(record)
            disk, directory_disk, _, entries, directory_bytes, directory_start = fields[4:]
            end, counted = end64_start, _COUNTED64
    if disk or directory_disk:
        raise InvalidDataset(f"found part {disk + 1} of a zip archive split in several, expected a single file")
    if directory_bytes > end or directory_start > _MOST:
        raise InvalidDataset(
            f"found a zip archive cut short: its directory needs {directory_bytes:,} bytes, and {end:,} are there"
        )
    return end - directory_bytes, end, entries, counted, directory_start


def _entry_offsets(raw: bytes, max_entries: int) -> Iterator[int]:
    """Yields where each entry of the directory starts: their number in the zip's end is only a claim."""
    entries = position = 0
    while position < len(raw):
        after = position + _ENTRY.itemsize
        if not raw.startswith(_SIGNATURE, position) or after > len(raw):
            raise InvalidDataset(f"found a zip archive whose directory is damaged after {entries:,} entries")
        entries += 1
        if entries > max_entries:
            raise _too_many(entries, max_entries)
        yield position
        name_bytes, extra_bytes, comment_bytes = _LENGTHS.unpack_from(raw, position + _LENGTHS_AT)
        position = after + name_bytes + extra_bytes + comment_bytes
    if position > len(raw):
        raise InvalidDataset(f"found a zip archive whose directory is damaged in entry {entries:,}: it ends too early")


def _too_many(found: int, max_entries: int) -> InvalidDataset:
    return InvalidDataset(
        f"found {found:,} or more entries in the archive, expected at most {max_entries:,}", code="archive_too_large"
    )


def _refuse_large(directory_bytes: int, max_entries: int) -> None:
    most = max_entries * _ENTRY_BYTES
    if directory_bytes > most:
        raise InvalidDataset(
            f"found a directory of {directory_bytes:,} bytes in the archive, expected at most {most:,}: "
            f"{_ENTRY_BYTES} for each of {max_entries:,} entries",
            code="archive_too_large",
        )


def _from_zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Returns the three numbers, of which the zip64 field holds those that do not fit into 32 bits, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64_EXTRA:
            field = extra[at + 4 : at + 4 + length]
            wide = (int.from_bytes(field[start : start + 8], "little") for start in range(0, len(field) - 7, 8))
            size, packed, offset = (next(wide, -1) if value == _IN_ZIP64 else value for value in (size, packed, offset))
            if not 0 <= min(size, packed, offset) <= max(size, packed, offset) <= _MOST:
                raise InvalidDataset("found a damaged zip archive (a zip64 field too short or too large)")
            return size, packed, offset
        at += 4 + length
    return size, packed, offset


def _refuse_overlaps(directory: Directory, directory_start: int) -> None:
    """Members that share bytes are how a small zip unpacks to petabytes; no honest program writes them."""
    order = np.argsort(directory.offsets, kind="stable")
    starts = directory.offsets[order]
    ends = starts + LOCAL_HEADER.size + directory.packed_bytes[order]
    wrong = np.flatnonzero((starts < 0) | (ends > np.append(starts[1:], directory_start)))
    if len(wrong):
        name = directory.name(int(order[wrong[0]]))[:80]
        raise InvalidDataset(
            f"found entry {name!r} overlapping what follows it, expected entries side by side: the zip archive is "
            "damaged or crafted"
        )

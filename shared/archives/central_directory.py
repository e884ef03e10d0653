"""The directory at the end of a zip: which entries it has, where they lie and what it claims of them.

`zipfile` makes an object for each entry: with tens of thousands of them that takes as long as decoding a thousand
faces. Here the fields of all entries become columns, in a few steps; an `Entry` is made when it is asked for.

Zips as people have them are taken: data in front of the zip and behind it, more than 4 GiB or 65,535 entries without
zip64 (macOS), names in UTF-8 without the flag or in a Unicode path field.
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.archives.directory import Directory, too_many_entries
from shared.archives.entry import LOCAL_HEADER, LOCAL_SIGNATURE
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
_MAX_BEHIND_BYTES: Final = 2**20
"""How much may stand behind a zip, such as padding or a signature, for its end to be found."""
_ENDS_TRIED: Final = 16
"""The most places that are tried as a zip's end: a comment may hold its signature too."""
_COUNTED: Final = 2**16  # where the count of entries starts anew: macOS goes on without zip64
_COUNTED64: Final = 2**64

_SIGNATURE: Final = b"PK\x01\x02"
_DIGITAL_SIGNATURE: Final = b"PK\x05\x05"  # may follow the entries
_LENGTHS: Final = struct.Struct("<3H")  # of name, extra field and comment
_LENGTHS_AT: Final = 28
_ENTRY: Final = np.dtype(
    {
        "names": ["host", "flags", "method", "crc", "packed", "size", "name", "extra", "attributes", "offset"],
        "formats": ["u1", "<u2", "<u2", "<u4", "<u4", "<u4", "<u2", "<u2", "<u4", "<u4"],
        "offsets": [5, 8, 10, 16, 20, 24, 28, 30, 38, 42],
        "itemsize": 46,
    }
)
"""The fixed part of an entry, as far as it matters here."""
_ENTRY_BYTES: Final = 512
"""What an entry may take on average, for the directory is read whole; a usual one takes 100, most of them its name."""
_ENCRYPTED_FLAG: Final = 0x1
_UNIX_HOSTS: Final = (3, 19)  # Unix and macOS: their entries hold a mode
_FAT_FOLDER: Final = 0x10
_ZIP64_FIELD: Final = 1
_UNICODE_PATH_FIELD: Final = 0x7075
_UNICODE_PATH: Final = struct.Struct("<BL")  # version, checksum of the name that it replaces; the name follows
_IN_ZIP64: Final = 0xFFFFFFFF
_WRAPS: Final = 2**32  # where 32-bit offsets start anew in a large zip without zip64
_MOST: Final = 2**62
"""No file is that long: sums of such numbers still fit into an int64."""


class _Found(NamedTuple):
    """Where the directory lies, and what the record at the zip's end says of it."""

    start: int
    end: int
    entries: int
    counted: int
    """At how many the count of entries starts anew."""
    claimed_start: int
    has_zip64: bool


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
    found = _find(file, size)
    start, end = found.start, found.end
    if found.entries > max_entries:
        raise too_many_entries(found.entries, max_entries)
    _refuse_large(end - start, max_entries)
    raw = _read(file, start, end - start)
    starts = list(_entry_offsets(raw, max_entries))
    if len(starts) % found.counted != found.entries:
        raise InvalidDataset(
            f"found {len(starts):,} entries in the zip archive's directory, expected {found.entries:,} as its end "
            "says: it is damaged or crafted"
        )
    fixed = np.frombuffer(b"".join([raw[start : start + _ENTRY.itemsize] for start in starts]), _ENTRY)
    names_at = [start + _ENTRY.itemsize for start in starts]
    names = [raw[at : at + length] for at, length in zip(names_at, fixed["name"].tolist(), strict=True)]

    def extra_of(row: int) -> bytes:
        at = names_at[row] + len(names[row])
        return raw[at : at + int(fixed["extra"][row])]

    if b"up" in raw:  # the number of a Unicode path field, as it is written
        for row in np.flatnonzero(fixed["extra"]).tolist():
            names[row] = _unicode_path(extra_of(row), names[row])
    offsets, packed, sizes = (fixed[name].astype(np.int64) for name in ("offset", "packed", "size"))
    for row in np.flatnonzero((offsets == _IN_ZIP64) | (packed == _IN_ZIP64) | (sizes == _IN_ZIP64)).tolist():
        numbers = int(sizes[row]), int(packed[row]), int(offsets[row])
        sizes[row], packed[row], offsets[row] = _from_zip64(extra_of(row), *numbers)
    from_unix = np.isin(fixed["host"], _UNIX_HOSTS)
    folders = ~from_unix & (fixed["attributes"] & _FAT_FOLDER > 0)
    modes = np.where(from_unix, fixed["attributes"] >> 16, np.where(folders, stat.S_IFDIR, 0))
    directory = Directory(
        offsets=_located(file, offsets, found, size),
        packed_bytes=packed,
        size_bytes=sizes,
        crcs=fixed["crc"],
        encrypted=fixed["flags"] & _ENCRYPTED_FLAG > 0,
        methods=fixed["method"],
        modes=modes.astype(np.uint16),
        names=names,
    )
    _refuse_overlaps(directory, start)
    return directory


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _find(file: BinaryIO, size: int) -> _Found:
    """Finds the directory by the record at the zip's end: the last one that leads to a directory, else the last one."""
    last: _Found | InvalidDataset | None = None
    for behind in (_MAX_COMMENT_BYTES, _MAX_BEHIND_BYTES):
        tail_start = max(0, size - _END.size - behind - 1)
        tail = _read(file, tail_start, size - tail_start)
        at = len(tail) - _END.size
        if not (at >= 0 and tail.startswith(_END_SIGNATURE, at) and tail.endswith(b"\0\0")):  # else without a comment
            at = tail.rfind(_END_SIGNATURE, 0, max(0, at + len(_END_SIGNATURE)))
        for _ in range(_ENDS_TRIED):
            if at < 0:
                break
            try:
                found = _directory_of(file, tail_start + at, _END.unpack_from(tail, at))
            except InvalidDataset as error:
                last = last or error
            else:
                if _read(file, found.start, len(_SIGNATURE)) == _SIGNATURE:
                    return found
                last = last or found
            at = tail.rfind(_END_SIGNATURE, 0, at)
        if last is not None:
            break
    if isinstance(last, InvalidDataset):
        raise last
    if last is not None:
        return last
    head = _read(file, 0, 512)
    if head.startswith(LOCAL_SIGNATURE):
        raise InvalidDataset("found a zip archive cut short (its end is missing), expected a whole one")
    raise InvalidDataset(f"found {describe(head)}, expected a zip, tar or tar.gz archive")


def _directory_of(file: BinaryIO, end: int, record: tuple[int, ...]) -> _Found:
    """Returns where the directory lies of which a record at the zip's end, at `end`, speaks."""
    _, disk, directory_disk, _, entries, directory_bytes, claimed_start, _ = record
    counted, fields = _COUNTED, _zip64_end(file, end)
    if fields is not None:
        end, counted = fields[0], _COUNTED64
        disk, directory_disk, _, entries, directory_bytes, claimed_start = fields[1:]
    if disk or directory_disk:
        raise InvalidDataset(f"found part {disk + 1} of a zip archive split in several, expected a single file")
    if directory_bytes > end or claimed_start > _MOST:
        raise InvalidDataset(
            f"found a zip archive cut short: its directory needs {directory_bytes:,} bytes, and {end:,} are there"
        )
    start = end - directory_bytes
    if (
        directory_bytes
        and claimed_start + directory_bytes < end
        and _read(file, start, len(_SIGNATURE)) != _SIGNATURE
        and _read(file, claimed_start, len(_SIGNATURE)) == _SIGNATURE
    ):
        start = claimed_start  # something stands between the directory and the end
    return _Found(start, start + directory_bytes, entries, counted, claimed_start, fields is not None)


def _zip64_end(file: BinaryIO, end: int) -> tuple[int, ...] | None:
    """Returns where the zip64 record in front of a zip's end starts, and its last six fields; None without one."""
    locator_at = end - _END64_LOCATOR.size
    if locator_at < _END64.size or _read(file, locator_at, 4) != _END64_LOCATOR_SIGNATURE:
        return None
    window_start = max(0, locator_at - _MAX_COMMENT_BYTES)  # it may be longer than its usual 56 bytes
    for window in (locator_at - _END64.size, window_start):
        before = _read(file, window, locator_at - window)
        at = before.rfind(_END64_SIGNATURE)
        while at >= 0:
            if at + _END64.size <= len(before):
                fields = _END64.unpack_from(before, at)
                if at + 12 + fields[1] == len(before):
                    return window + at, *fields[4:]
            at = before.rfind(_END64_SIGNATURE, 0, at)
    return None


def _located(file: BinaryIO, offsets: NDArray[np.int64], found: _Found, size: int) -> NDArray[np.int64]:
    """Returns where entries lie in the file: something may stand in front of the zip, and 32 bits may be too few."""
    if not len(offsets):
        return offsets
    in_front = found.start - found.claimed_start
    if not found.has_zip64 and size > _WRAPS:
        in_front %= _WRAPS
        # In file order, as programs without zip64 write them, an offset below the one before has started anew.
        unwrapped = offsets + _WRAPS * np.cumsum(np.diff(offsets, prepend=offsets[0]) < 0)
        if unwrapped[-1] + in_front < found.start:
            offsets = unwrapped
    first = int(offsets.min())
    if in_front and not _is_local(file, first + in_front) and _is_local(file, first):
        in_front = 0  # the offsets are right, and what the end says of the directory's start is not
    return offsets + in_front


def _is_local(file: BinaryIO, offset: int) -> bool:
    return offset >= 0 and _read(file, offset, len(LOCAL_SIGNATURE)) == LOCAL_SIGNATURE


def _entry_offsets(raw: bytes, max_entries: int) -> Iterator[int]:
    """Yields where each entry of the directory starts: their number in the zip's end is only a claim."""
    entries = position = 0
    while position < len(raw):
        after = position + _ENTRY.itemsize
        if not raw.startswith(_SIGNATURE, position) or after > len(raw):
            if raw.startswith(_DIGITAL_SIGNATURE, position):
                return
            raise InvalidDataset(f"found a zip archive whose directory is damaged after {entries:,} entries")
        entries += 1
        if entries > max_entries:
            raise too_many_entries(entries, max_entries)
        yield position
        name_bytes, extra_bytes, comment_bytes = _LENGTHS.unpack_from(raw, position + _LENGTHS_AT)
        position = after + name_bytes + extra_bytes + comment_bytes
    if position > len(raw):
        raise InvalidDataset(f"found a zip archive whose directory is damaged in entry {entries:,}: it ends too early")


def _refuse_large(directory_bytes: int, max_entries: int) -> None:
    most = max_entries * _ENTRY_BYTES
    if directory_bytes > most:
        raise InvalidDataset(
            f"found a directory of {directory_bytes:,} bytes in the archive, expected at most {most:,}: "
            f"{_ENTRY_BYTES} for each of {max_entries:,} entries",
            code="archive_too_large",
        )


def _field(extra: bytes, wanted: int) -> bytes | None:
    """Returns the content of one extra field; None where it is not there."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return None


def _from_zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Returns the three numbers, of which the zip64 field holds those that do not fit into 32 bits, in this order."""
    field = _field(extra, _ZIP64_FIELD)
    if field is None:
        return size, packed, offset
    wide = (int.from_bytes(field[start : start + 8], "little") for start in range(0, len(field) - 7, 8))
    size, packed, offset = (next(wide, -1) if value == _IN_ZIP64 else value for value in (size, packed, offset))
    if not 0 <= min(size, packed, offset) <= max(size, packed, offset) <= _MOST:
        raise InvalidDataset("found a damaged zip archive (a zip64 field too short or too large)")
    return size, packed, offset


def _unicode_path(extra: bytes, name: bytes) -> bytes:
    """Returns the name of a Unicode path field where it belongs to this name, else the name as it is."""
    field = _field(extra, _UNICODE_PATH_FIELD)
    if field is None or len(field) <= _UNICODE_PATH.size:
        return name
    version, crc = _UNICODE_PATH.unpack_from(field)
    path = field[_UNICODE_PATH.size :]
    return path if version == 1 and crc == zlib.crc32(name) and _is_utf8(path) else name


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


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

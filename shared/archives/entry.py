"""Unpacking one entry of a zip by where it lies: all that another process needs to know of an archive.

`zipfile` would do it in ten times as long: its file objects cost more than unpacking a small image.
"""

from __future__ import annotations

import copy
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from io import BufferedReader, FileIO
from typing import BinaryIO, Final, NamedTuple

from shared.faces.rejects import Reject, RejectError

LOCAL_SIGNATURE: Final = b"PK\x03\x04"
LOCAL_HEADER: Final = struct.Struct("<6xH18x2H")  # flags, lengths of name and extra field, which follow
ENCRYPTED_FLAG: Final = 0x1

UTF8_FLAG: Final = 0x800
_READ_BYTES: Final = 2**18
_HELD_BYTES: Final = 2**22
_HEADER_ROOM: Final = 128
"""What a local header holds beside the name: 30 bytes, and an extra field of usually none to some dozens."""


class EntryError(RejectError):
    """One entry cannot be read; the others can."""


class _Corrupt(Exception):
    """An entry's bytes are not what the archive says of them."""


class Entry(NamedTuple):
    """One file in an archive: where it lies, and what the archive's directory claims of it.

    Attributes:
        name: as the directory has it, of any length; only a label for people, never a path to write to. Two entries may
            share one.
        offset: of its local header.
        packed_bytes: of its content, which follows the header.
        size_bytes: unpacked.
        crc: of the unpacked bytes.
        deflated: else stored as it is.
        reject: why it must not be read, or None.
    """

    name: str
    offset: int
    packed_bytes: int
    size_bytes: int
    crc: int
    deflated: bool
    reject: Reject | None = None


def decoded_name(name: bytes, flags: int, errors: str = "strict") -> str:
    """Returns an entry's name as its flags say that it is written.

    Args:
        name: as it stands in the archive.
        flags: of its entry.
        errors: what becomes of bytes that cannot be, as for `bytes.decode`.

    Raises:
        UnicodeDecodeError: it claims to be UTF-8 and is not; with strict `errors` only.
    """
    return name.decode("utf-8" if flags & UTF8_FLAG or name.isascii() else "cp437", errors)


class EntryReader:
    """Reads entries of one archive; from several threads at once, if need be.

    Args:
        file: seekable; stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._held = b""  # some of its bytes, which need not be read again
        self._held_from = 0
        self._has_handle = isinstance(file, BufferedReader) and isinstance(file.raw, FileIO)
        self._lock = threading.Lock()

    def read(self, entry: Entry) -> bytes:
        """Unpacks one entry, at most one byte beyond what it claims.

        Raises:
            EntryError: its own reject; `size_mismatch` where it holds more or less than it claims, `corrupt` where it
                does not unpack or its checksum is wrong.
        """
        if entry.reject is not None:
            raise EntryError(entry.reject.reason, entry.reject.detail)
        try:
            data = self._unpack(entry)
        except (_Corrupt, zlib.error, UnicodeDecodeError) as error:
            raise EntryError("corrupt", f"found bytes that do not unpack ({error})") from None
        if len(data) != entry.size_bytes:
            found = "more" if len(data) > entry.size_bytes else f"{len(data):,} bytes"
            raise EntryError("size_mismatch", f"found {found}, expected {entry.size_bytes:,} bytes as the archive says")
        if (found_crc := zlib.crc32(data)) != entry.crc:
            raise EntryError("corrupt", f"found checksum {found_crc:08x}, expected {entry.crc:08x}")
        return data

    def prefetched(self, entries: Sequence[Entry]) -> EntryReader:
        """Returns one that has read entries at once, where they lie close together: sooner done than one by one.

        Args:
            entries: to be read soon; one or more.
        """
        start = min(entry.offset for entry in entries)
        end = max(entry.offset + entry.packed_bytes + len(entry.name) + _HEADER_ROOM for entry in entries)
        if end - start > _HELD_BYTES:
            return self
        prefetched = copy.copy(self)  # and so with the same lock on the file
        prefetched._held, prefetched._held_from = self._bytes_at(start, end - start), start
        return prefetched

    def _unpack(self, entry: Entry) -> bytes:
        """Returns an entry's content, cut off one byte beyond what it claims; a larger truth shows up as that byte."""
        most = entry.size_bytes + 1
        # One read for header and content of a small entry; more where the header is longer than it usually is.
        head = self._bytes_at(entry.offset, min(_READ_BYTES, entry.packed_bytes + len(entry.name) + _HEADER_ROOM))
        if len(head) < LOCAL_HEADER.size or not head.startswith(LOCAL_SIGNATURE):
            raise _Corrupt("its header is missing")
        flags, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(head)
        offset = LOCAL_HEADER.size + name_bytes + extra_bytes
        if len(head) < offset:
            head = self._bytes_at(entry.offset, offset)
        name = head[LOCAL_HEADER.size : LOCAL_HEADER.size + name_bytes]
        if flags & ENCRYPTED_FLAG or decoded_name(name, flags) != entry.name:
            raise _Corrupt("its header is another entry's")
        start = entry.offset + offset
        end = start + entry.packed_bytes
        first = head[offset : offset + entry.packed_bytes]
        if not entry.deflated:
            missing = min(entry.packed_bytes, most) - len(first)
            return first + self._bytes_at(start + len(first), missing) if missing > 0 else first[:most]
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        data = unpacker.decompress(first, most)
        start += len(first)
        while not unpacker.eof and len(data) < most:
            packed = unpacker.unconsumed_tail + self._bytes_at(start, max(0, min(_READ_BYTES, end - start)))
            if not packed:
                raise _Corrupt("it ends too early")
            start += _READ_BYTES
            data += unpacker.decompress(packed, most - len(data))
        return data

    def _bytes_at(self, start: int, count: int) -> bytes:
        """Returns so many bytes of the archive, or fewer at its end; from any thread."""
        at = start - self._held_from
        if at >= 0 and at + count <= len(self._held):
            return self._held[at : at + count]
        if self._has_handle:
            return os.pread(self._file.fileno(), count, start)
        with self._lock:
            self._file.seek(start)
            return self._file.read(count)

"""Reading one entry of an archive by where it lies: all that another process needs to know of the archive.

`zipfile` would take ten times as long: its file objects cost more than unpacking a small image.
"""

from __future__ import annotations

import bz2
import copy
import lzma
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from io import BufferedReader, FileIO
from typing import BinaryIO, Final, NamedTuple, Protocol

from shared.faces.rejects import Reject, RejectError

LOCAL_SIGNATURE: Final = b"PK\x03\x04"
LOCAL_HEADER: Final = struct.Struct("<26x2H")  # lengths of name and extra field, which follow

STORED: Final = 0
DEFLATED: Final = 8
BZIP2: Final = 12
LZMA: Final = 14
METHODS: Final = {STORED: "stored", DEFLATED: "deflate", BZIP2: "bzip2", LZMA: "LZMA"}
"""The compression methods that can be read, by their number in a zip."""

_READ_BYTES: Final = 2**18
_PREFETCHED_BYTES: Final = 2**22
_HEADER_ROOM: Final = 128
"""What a local header holds beside the name: 30 bytes, and an extra field of usually none to some dozens."""
_LZMA_HEADER: Final = struct.Struct("<2xHBL")  # length of the properties; the properties: lc, lp and pb, dictionary
_LZMA_DICTIONARY_BYTES: Final = 2**26


class EntryError(RejectError):
    """One entry cannot be read; the others can."""


class _Corrupt(Exception):
    """An entry's bytes are not what the archive says of them."""


class _Decompressor(Protocol):
    """The part that the decompressors of `zlib`, `bz2` and `lzma` share."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Entry(NamedTuple):
    """One file in an archive: where it lies, and what the archive's directory claims of it.

    Attributes:
        name: only a label for people, never a path to write to. Two entries may share one. Too long a one is cut.
        offset: of its local header in a zip, of its content in a tar.
        packed_bytes: of its content, which follows the header.
        size_bytes: unpacked.
        crc: of the unpacked bytes; None in a tar, whose entries have neither a checksum nor a header of a zip's kind.
        method: of compression, a key of `METHODS`.
        reject: why it must not be read, or None.
    """

    name: str
    offset: int
    packed_bytes: int
    size_bytes: int
    crc: int | None
    method: int
    reject: Reject | None = None


def decode_name(name: bytes) -> str:
    """Returns an entry's name: UTF-8 where the bytes are valid UTF-8, else code page 437, which takes any bytes.

    The flag for UTF-8 does not count: Linux' `zip` and macOS write UTF-8 without it, and other programs set it falsely.
    """
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437")


class EntryReader:
    """Reads entries of one archive; from several threads at once, if need be.

    Args:
        file: seekable; stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._prefetched = b""  # some of its bytes, which need not be read again
        self._prefetched_from = 0
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
            data = self._bytes_at(entry.offset, entry.size_bytes) if entry.crc is None else self._unpack(entry)
        except (_Corrupt, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk; `bz2` tells of damaged data by one without a number
            raise EntryError("corrupt", f"found bytes that do not unpack ({error})") from None
        if len(data) != entry.size_bytes:
            found = "more" if len(data) > entry.size_bytes else f"{len(data):,} bytes"
            raise EntryError("size_mismatch", f"found {found}, expected {entry.size_bytes:,} bytes as the archive says")
        if entry.crc is not None and (found_crc := zlib.crc32(data)) != entry.crc:
            raise EntryError("corrupt", f"found checksum {found_crc:08x}, expected {entry.crc:08x}")
        return data

    def prefetched(self, entries: Sequence[Entry]) -> EntryReader:
        """Returns a reader that has read entries at once, where they lie close together: faster than one by one.

        Args:
            entries: to be read soon; one or more.
        """
        start = min(entry.offset for entry in entries)
        end = max(entry.offset + entry.packed_bytes + len(entry.name) + _HEADER_ROOM for entry in entries)
        if end - start > _PREFETCHED_BYTES:
            return self
        reader = copy.copy(self)  # and so with the same lock on the file
        reader._prefetched, reader._prefetched_from = self._bytes_at(start, end - start), start
        return reader

    def _unpack(self, entry: Entry) -> bytes:
        """Returns an entry's content, cut off one byte beyond what it claims; a larger truth shows up as that byte.

        The directory counts: what the local header says of name, flags and sizes may differ from it, and does in zips
        of programs that write one of the two carelessly. The checksum proves that the content is the entry's own.
        """
        most = entry.size_bytes + 1
        # One read for header and content of a small entry; more where the header is longer than it usually is.
        head = self._bytes_at(entry.offset, min(_READ_BYTES, entry.packed_bytes + len(entry.name) + _HEADER_ROOM))
        if len(head) < LOCAL_HEADER.size or not head.startswith(LOCAL_SIGNATURE):
            raise _Corrupt("its header is missing")
        name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(head)
        offset = LOCAL_HEADER.size + name_bytes + extra_bytes
        if len(head) < offset:
            head = self._bytes_at(entry.offset, offset)
        start = entry.offset + offset
        end = start + entry.packed_bytes
        first = head[offset : offset + entry.packed_bytes]
        if entry.method == STORED:
            missing = min(entry.packed_bytes, most) - len(first)
            return first + self._bytes_at(start + len(first), missing) if missing > 0 else first[:most]
        start += len(first)
        if entry.method == DEFLATED:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            data = inflater.decompress(first, most)
            while not inflater.eof and len(data) < most:
                packed = inflater.unconsumed_tail + self._bytes_at(start, max(0, min(_READ_BYTES, end - start)))
                if not packed:
                    raise _Corrupt("it ends too early")
                start += _READ_BYTES
                data += inflater.decompress(packed, most - len(data))
            return data
        decompressor, first = _decompressor(entry, first)
        data = decompressor.decompress(first, most)
        while not decompressor.eof and len(data) < most:
            # These keep what they could not unpack yet, so they may go on without new bytes.
            packed = self._bytes_at(start, max(0, min(_READ_BYTES, end - start)))
            start += len(packed)
            more = decompressor.decompress(packed, most - len(data))
            if not packed and not more:
                break  # of LZMA without a mark at its end; the size and the checksum tell whether it is whole
            data += more
        return data

    def _bytes_at(self, start: int, count: int) -> bytes:
        """Returns so many bytes of the archive, or fewer at its end; from any thread."""
        at = start - self._prefetched_from
        if at >= 0 and at + count <= len(self._prefetched):
            return self._prefetched[at : at + count]
        if self._has_handle:
            return os.pread(self._file.fileno(), count, start)
        with self._lock:
            self._file.seek(start)
            return self._file.read(count)


def _decompressor(entry: Entry, first: bytes) -> tuple[_Decompressor, bytes]:
    """Returns what unpacks an entry of bzip2 or LZMA, and the bytes to begin with."""
    if entry.method == BZIP2:
        return bz2.BZ2Decompressor(), first
    if len(first) < _LZMA_HEADER.size:
        raise _Corrupt("it ends too early")
    property_bytes, packed_numbers, dictionary_bytes = _LZMA_HEADER.unpack_from(first)
    if property_bytes != 5 or packed_numbers >= 9 * 5 * 5:
        raise _Corrupt("its LZMA properties are damaged")
    if dictionary_bytes > _LZMA_DICTIONARY_BYTES:
        raise _Corrupt(f"it needs {dictionary_bytes:,} bytes of memory, at most {_LZMA_DICTIONARY_BYTES:,} are given")
    literal = {"lc": packed_numbers % 9, "lp": packed_numbers // 9 % 5, "pb": packed_numbers // 45}
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": max(dictionary_bytes, 4096), **literal}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters), first[_LZMA_HEADER.size :]

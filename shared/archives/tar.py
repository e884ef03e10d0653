"""Tars, and tars packed by gzip, that a stranger made: looked through under the same bounds as zips.

`tarfile` reads as many bytes of an extended header as it claims, gigabytes too, and makes an object for each entry.
"""

from __future__ import annotations

import io
import stat
import zlib
from typing import BinaryIO, Final

import numpy as np

from shared.archives.directory import Directory, too_many_entries
from shared.archives.entry import STORED
from shared.errors import InvalidDataset

GZIP_SIGNATURE: Final = b"\x1f\x8b"
NO_TAR_INSIDE: Final = "found a gzip file without a tar archive in it, expected a zip, tar or tar.gz archive"
_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK
"""A tar is filled up with zeros to a multiple of this."""
_CHECKSUM: Final = slice(148, 156)
_PLAIN: Final = frozenset({b"0", b"\0", b"7"})
_LINKS: Final = frozenset({b"1", b"2"})
_FOLDER: Final = b"5"
_LONG_NAME: Final = b"L"  # GNU: the next entry's name is this one's content
_LONG_LINK: Final = b"K"
_SPARSE: Final = b"S"  # old GNU: between the header and the content stand blocks of a longer list of pieces
_EXTENDED: Final = b"x"  # POSIX: lines of `length key=value` about the next entry
_GLOBAL: Final = b"g"
_MAX_NAME_BYTES: Final = 2**16
_MAX_EXTENDED_BYTES: Final = 2**20
_NAME_BYTES: Final = 512
"""What names may take on average, for all of them are kept."""
_PIECE: Final = 2**20
_PACKED_PIECE: Final = 2**16
"""Packed bytes read at once. The rest is copied after each gzip member, and a member may take only 20 bytes."""
_SPARE_MEMBERS: Final = 10_000
"""So many gzip members may hold less than a block of the tar, and more only if the mean is a block at least."""
_SMALL: Final = 2**16
"""What a smaller tar.gz counts as in the ratio of its bytes: a tar is padded with zeros, which pack to nothing."""
_MOST: Final = 2**62


def is_tar(head: bytes) -> bool:
    """Tells whether a file's first 512 bytes are a tar's: the sum of a header's bytes stands in the header."""
    return len(head) >= _BLOCK and head[:1] != b"\0" and _checksum_fits(head[:_BLOCK])


def read_tar(file: BinaryIO, max_entries: int) -> Directory:
    """Reads the headers of a tar, in its ustar, GNU and POSIX (pax) forms.

    Args:
        file: seekable.
        max_entries: more are refused; folders count too.

    Raises:
        InvalidDataset: code `invalid_archive` where it is cut short or damaged; `archive_too_large` where it has more
            entries.
    """
    end = file.seek(0, io.SEEK_END)
    names: list[bytes] = []
    offsets: list[int] = []
    sizes: list[int] = []
    modes: list[int] = []
    position = headers = name_bytes = 0
    extended: dict[bytes, bytes] = {}
    while position + _BLOCK <= end:
        file.seek(position)
        header = file.read(_BLOCK)
        if not header.strip(b"\0"):
            break  # blocks of zeros end a tar; what stands behind them does not matter
        if not _checksum_fits(header):
            raise InvalidDataset(f"found a tar archive that is damaged after {len(names):,} entries")
        headers += 1
        if headers > 4 * max_entries:
            raise too_many_entries(max_entries + 1, max_entries)
        kind = header[156:157]
        size = _number(header[124:136])
        if kind not in {_EXTENDED, _GLOBAL, _LONG_NAME, _LONG_LINK} and b"size" in extended:
            size = _decimal(extended[b"size"])
        content = position + _BLOCK + (_bytes_of_pieces(file, header) if kind == _SPARSE else 0)
        position = content + -(-size // _BLOCK) * _BLOCK
        if not 0 <= size <= _MOST or content + size > end:
            raise InvalidDataset(
                f"found a tar archive cut short: entry {len(names) + 1:,} needs {size:,} bytes, and "
                f"{max(0, end - content):,} are there"
            )
        if kind in {_EXTENDED, _LONG_NAME}:
            most = _MAX_NAME_BYTES if kind == _LONG_NAME else _MAX_EXTENDED_BYTES
            if size > most:
                raise InvalidDataset(f"found a tar header of {size:,} bytes, expected at most {most:,}")
            text = file.read(size)
            extended |= {b"path": text.rstrip(b"\0")} if kind == _LONG_NAME else _extended(text)
            continue
        if kind in {_GLOBAL, _LONG_LINK}:
            continue
        if len(names) == max_entries:
            raise too_many_entries(max_entries + 1, max_entries)
        name = extended.get(b"path", _name(header))
        is_sparse = any(key.startswith(b"GNU.sparse") for key in extended)
        extended = {}
        name_bytes += len(name)
        if name_bytes > max_entries * _NAME_BYTES:
            raise InvalidDataset(f"found names of more than {_NAME_BYTES} bytes on average", code="archive_too_large")
        names.append(name)
        offsets.append(content)
        sizes.append(size)
        if kind == _FOLDER or (kind in _PLAIN and name.endswith(b"/")):
            modes.append(stat.S_IFDIR)
        elif kind in _PLAIN and not is_sparse:
            modes.append(stat.S_IFREG)
        else:
            modes.append(stat.S_IFLNK if kind in _LINKS else stat.S_IFCHR)
    else:
        if position < end or not names:
            raise InvalidDataset("found a tar archive cut short (its end is missing), expected a whole one")
    count = len(names)
    return Directory(
        offsets=np.array(offsets, np.int64),
        packed_bytes=np.array(sizes, np.int64),
        size_bytes=np.array(sizes, np.int64),
        crcs=None,
        encrypted=np.zeros(count, bool),
        methods=np.full(count, STORED, np.uint16),
        modes=np.array(modes, np.uint16),
        names=names,
    )


def has_end(file: BinaryIO, directory: Directory) -> bool:
    """Tells whether a tar can only be whole: its end is marked, and is where the last entry leaves it.

    `read_tar` takes less, for some programs mark no end. But a copy that has paused between two entries looks like
    that, and one whose room was taken beforehand goes on with zeros, as if its end were marked.

    Args:
        file: the tar.
        directory: what `read_tar` has read of it.
    """
    if not len(directory):
        return False
    content, size = int(directory.offsets[-1]), int(directory.size_bytes[-1])
    file.seek(content + size)
    rest = file.read(_RECORD + 3 * _BLOCK + 1)
    padding = -size % _BLOCK
    if not 2 * _BLOCK <= len(rest) - padding <= _RECORD + 2 * _BLOCK or rest.strip(b"\0"):
        return False
    file.seek(content + size - 1)
    return not size or file.read(1) != b"\0"  # a copy under way may show zeros where data will be


def gunzip(source: BinaryIO, target: BinaryIO, max_bytes: int, max_ratio: float) -> None:
    """Unpacks a tar.gz to a plain tar, which can be read anywhere.

    Args:
        source: read from its start.
        target: written to.
        max_bytes: the most that it may unpack to.
        max_ratio: of unpacked to packed bytes.

    Raises:
        InvalidDataset: code `invalid_archive` where it is damaged, cut short or holds no tar; `archive_too_large`
            where it unpacks to more, or consists of very many gzip members.
    """
    most = min(max_bytes, max(source.seek(0, io.SEEK_END), _SMALL) * max_ratio)
    source.seek(0)
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    packed = source.read(_PIECE)  # so much that it unpacks to a tar's first header, however long gzip's own is
    written, members = 0, 1
    try:
        while True:
            piece = inflater.decompress(packed, _PIECE)
            if written == 0 and not is_tar(piece):
                raise InvalidDataset(NO_TAR_INSIDE)
            written += len(piece)
            if written > most:
                raise InvalidDataset(
                    f"found a tar.gz archive that unpacks to {written:,} bytes or more, expected at most "
                    f"{max_bytes:,}, and at most {max_ratio:,.0f} times what it takes packed",
                    code="archive_too_large",
                )
            target.write(piece)
            packed = inflater.unconsumed_tail
            if inflater.eof:  # another one may follow: `pigz` and `cat` make such files
                packed = _after_padding(inflater.unused_data, source)
                if not packed.startswith(GZIP_SIGNATURE):
                    return  # the end, or padding, which does not matter
                members += 1
                if members > _SPARE_MEMBERS + written // _BLOCK:
                    raise InvalidDataset(
                        f"found a tar.gz archive of {members:,} gzip members or more that hold {written:,} bytes, "
                        f"expected at least {_BLOCK} bytes in each",
                        code="archive_too_large",
                    )
                inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
            elif not packed and len(piece) < _PIECE:
                packed = source.read(_PACKED_PIECE)
                if not packed:
                    raise InvalidDataset("found a tar.gz archive cut short, expected a whole one")
    except zlib.error as error:
        raise InvalidDataset(f"found a gzip file that is damaged ({error}), expected a whole tar.gz archive") from None


def _after_padding(rest: bytes, source: BinaryIO) -> bytes:
    """Returns what follows a gzip member and zeros that pad it: where more is there, enough to know a signature by."""
    rest = rest.lstrip(b"\0")
    while len(rest) < len(GZIP_SIGNATURE) and (more := source.read(_PACKED_PIECE)):
        rest = (rest + more).lstrip(b"\0")
    return rest


def holds_tar(source: BinaryIO) -> bool:
    """Tells whether a gzip file begins like a tar.gz; it reads no more than its beginning."""
    source.seek(0)
    try:
        return is_tar(zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(source.read(2**16), _BLOCK))
    except zlib.error:
        return False


def _checksum_fits(header: bytes) -> bool:
    """Tells whether a header is one: the sum of its bytes stands in it, with blanks in the sum's own place."""
    claimed = _number(header[_CHECKSUM])
    if claimed <= 0:  # no number: of a zip's bytes, too, one in some thousands has the sum that stands for that
        return False
    blank = header[:148] + b" " * 8 + header[156:]
    if claimed == sum(blank):
        return True
    return claimed == sum(byte - 256 if byte > 127 else byte for byte in blank)  # as some old programs sum


def _number(field: bytes) -> int:
    """Returns a header's number: octal digits, or bytes of a large one; -1 where it is neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    try:
        return int(digits.split(b"\0")[0] or b"0", 8)
    except ValueError:
        return -1


def _decimal(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 19 else -1


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _bytes_of_pieces(file: BinaryIO, header: bytes) -> int:
    """Returns what the blocks take that follow a sparse file's header: each says whether there is another one."""
    taken, is_followed = 0, header[482] != 0
    while is_followed:
        block = file.read(_BLOCK)
        taken += _BLOCK
        is_followed = len(block) == _BLOCK and block[504] != 0
    return taken


def _extended(text: bytes) -> dict[bytes, bytes]:
    """Returns the values of a POSIX extended header: lines of `length key=value`, the length that of the whole line."""
    values = {}
    while text:
        length, blank, _ = text.partition(b" ")
        if not blank or not length.isdigit() or not len(length) < int(length[:9]) <= len(text):
            break  # damaged, or padding
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        values[key] = value
        text = text[int(length) :]
    return values

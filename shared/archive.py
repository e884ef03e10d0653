"""Reading zips that strangers made, without believing a word they say.

`zipfile` parses. This module guards it: the number of entries is known before it builds an object for each,
members must not overlap, nothing is ever extracted by name, and every byte is counted while it is unpacked: in
`shared.unpack`.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self, overload

from shared.errors import InvalidDataset
from shared.labels import base_name
from shared.rejects import Reject
from shared.sniff import looks_like
from shared.unpack import ENCRYPTED_FLAG, LOCAL_HEADER, LOCAL_SIGNATURE, Place, Unpacker

if TYPE_CHECKING:
    from shared.settings import Settings

_END: Final = struct.Struct(
    "<4s4H2LH"
)  # signature, disk, disk of directory, entries here, entries, size, offset, comment
_END_SIGNATURE: Final = b"PK\x05\x06"
_END64: Final = struct.Struct("<4sQ2H2L4Q")  # …, entries here, entries, size, offset
_END64_SIGNATURE: Final = b"PK\x06\x06"
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_DIRECTORY_ENTRY: Final = struct.Struct("<4s24x3H12x")  # signature, lengths of name, extra field and comment
_DIRECTORY_SIGNATURE: Final = b"PK\x01\x02"
_MAX_COMMENT_BYTES: Final = 0xFFFF

_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
_ABSOLUTE: Final = re.compile(r"[/\\]|[A-Za-z]:")
_PERHAPS_LITTER: Final = re.compile(r"__MACOSX|\._|\.ds_store$|thumbs\.db$|desktop\.ini$", re.IGNORECASE)
_LITTER_NAMES: Final = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds on an archive and its entries.

    Attributes:
        max_ratio: of an entry's unpacked to its packed bytes.
    """

    max_bytes: int
    max_members: int
    max_image_bytes: int
    max_ratio: float

    @classmethod
    def from_settings(cls, settings: Settings) -> ArchiveLimits:
        """Returns the limits that the settings name."""
        return cls(settings.max_archive_bytes, settings.max_members, settings.max_image_bytes, settings.max_ratio)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file in an archive.

    Attributes:
        index: its place in `Archive.entries`.
        name: as the archive has it, of any length; only a label for people, never a path to write to. Two entries may
            share one.
        size_bytes: unpacked, as the archive claims.
        reject: why it must not be read, or None.
    """

    index: int
    name: str
    size_bytes: int
    reject: Reject | None = None


class _Entries(Sequence[Entry]):
    """The entries of an archive, made as they are asked for: whoever reads a slice of a large one needs no others."""

    def __init__(self, members: list[zipfile.ZipInfo], limits: ArchiveLimits) -> None:
        self._members = members
        self._limits = limits

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        member = self._members[index]
        return Entry(index % len(self), member.orig_filename, member.file_size, _fault(member, self._limits))


class Archive:
    """A zip opened for reading; a context manager. `read` may be called from several threads at once.

    Args:
        source: a path, or a seekable binary file, which stays open afterwards.
        limits: bounds that the archive is held to before its entries are looked at.

    Attributes:
        entries: the files in archive order, without folders and operating-system litter.

    Raises:
        InvalidDataset: code `invalid_archive` where it is not a zip, empty, truncated, encrypted or crafted;
            `archive_too_large` where it breaks a limit.
    """

    def __init__(self, source: Path | BinaryIO, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._owned = source.open("rb") if isinstance(source, Path) else None
        self._file: BinaryIO = self._owned or source  # type: ignore[assignment]
        self._unpacker = Unpacker(self._file)
        try:
            self._members = [
                member
                for member in _open(self._file, limits).infolist()
                if not _is_folder(member) and not is_litter(member.orig_filename)
            ]
            self.entries: Sequence[Entry] = _Entries(self._members, limits)
            _refuse_useless(self._members)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, if this object opened it."""
        if self._owned is not None:
            self._owned.close()

    def read(self, entry: Entry) -> bytes:
        """Unpacks one entry, as `Unpacker.read` does, which says what it raises."""
        return self._unpacker.read(self.place(entry))

    def place(self, entry: Entry) -> Place:
        """Returns where an entry lies: what an `Unpacker` of another process needs to know."""
        member = self._members[entry.index]
        return Place(
            member.orig_filename,
            member.header_offset,
            member.compress_size,
            member.file_size,
            member.CRC,
            member.compress_type == zipfile.ZIP_DEFLATED,
            entry.reject,
        )


def is_litter(name: str) -> bool:
    """Tells whether an operating system left the entry behind: `__MACOSX/`, `._*`, `.DS_Store`, `Thumbs.db`."""
    if not _PERHAPS_LITTER.search(name):
        return False
    base = base_name(name)
    return (
        "__MACOSX" in name.replace("\\", "/").split("/")[:-1]
        or base.startswith("._")
        or base.casefold() in _LITTER_NAMES
    )


def _open(file: BinaryIO, limits: ArchiveLimits) -> zipfile.ZipFile:
    size = file.seek(0, io.SEEK_END)
    if size > limits.max_bytes:
        raise InvalidDataset(
            f"found an archive of {size:,} bytes, expected at most {limits.max_bytes:,}", code="archive_too_large"
        )
    file.seek(0)
    head = file.read(512)
    if not head:
        raise InvalidDataset("found an empty file (0 bytes), expected a zip archive")
    directory_start, directory_end, claimed = _find_directory(file, size, head)
    if claimed > limits.max_members:
        raise _too_many(claimed, limits)
    found = _count_entries(file, directory_start, directory_end, limits)
    if found != claimed:
        raise InvalidDataset(
            f"found {found:,} entries in the zip archive's directory, expected {claimed:,} as its end says: "
            "it is damaged or crafted"
        )
    try:
        archive = zipfile.ZipFile(file)
    except UnicodeDecodeError as error:
        raise InvalidDataset(
            f"found an entry name that claims to be UTF-8 and is not ({error.object!r}), expected UTF-8"
        ) from None
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError) as error:
        raise InvalidDataset(f"found a damaged zip archive ({error}), expected a whole one") from None
    _refuse_overlaps(archive.infolist(), directory_start)
    return archive


def _find_directory(file: BinaryIO, size: int, head: bytes) -> tuple[int, int, int]:
    """Finds the central directory by the record at the archive's end, in the same place as `zipfile` looks for it.

    Returns:
        Where the directory starts and ends, and how many entries it is said to hold.
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
        raise InvalidDataset(f"found {looks_like(head)}, expected a zip archive")
    _, disk, directory_disk, _, entries, directory_bytes, _, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    locator_start = end - _END64_LOCATOR.size
    end64_start = locator_start - _END64.size
    if end64_start >= 0:
        file.seek(end64_start)
        record = file.read(_END64.size + _END64_LOCATOR.size)
        if record.startswith(_END64_SIGNATURE) and record.startswith(_END64_LOCATOR_SIGNATURE, _END64.size):
            _, _, _, _, disk, directory_disk, _, entries, directory_bytes, _ = _END64.unpack_from(record)
            end = end64_start
    if disk or directory_disk:
        raise InvalidDataset(f"found part {disk + 1} of a zip archive split in several, expected a single file")
    if directory_bytes > end:
        raise InvalidDataset(
            f"found a zip archive cut short: its directory needs {directory_bytes:,} bytes, and {end:,} are there"
        )
    return end - directory_bytes, end, entries


def _count_entries(file: BinaryIO, start: int, end: int, limits: ArchiveLimits) -> int:
    """Counts the directory's entries by hopping over them: a hundredth of the work and memory of parsing them.

    The number in the archive's end is only a claim.
    """
    file.seek(start)
    entries = 0
    position = start
    while position < end:
        header = file.read(_DIRECTORY_ENTRY.size)
        if len(header) < _DIRECTORY_ENTRY.size or not header.startswith(_DIRECTORY_SIGNATURE):
            raise InvalidDataset(f"found a zip archive whose directory is damaged after {entries:,} entries")
        _, name_bytes, extra_bytes, comment_bytes = _DIRECTORY_ENTRY.unpack(header)
        file.read(name_bytes + extra_bytes + comment_bytes)
        position += _DIRECTORY_ENTRY.size + name_bytes + extra_bytes + comment_bytes
        entries += 1
        if entries > limits.max_members:
            raise _too_many(entries, limits)
    return entries


def _too_many(found: int, limits: ArchiveLimits) -> InvalidDataset:
    return InvalidDataset(
        f"found {found:,} or more entries in the archive, expected at most {limits.max_members:,}",
        code="archive_too_large",
    )


def _refuse_overlaps(members: list[zipfile.ZipInfo], directory_start: int) -> None:
    """Members that share bytes are how a small zip unpacks to petabytes; no honest program writes them."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in ordered), directory_start][1:]
    for member, limit in zip(ordered, ends, strict=True):
        if member.header_offset < 0 or member.header_offset + LOCAL_HEADER.size + member.compress_size > limit:
            raise InvalidDataset(
                f"found entry {member.orig_filename[:80]!r} overlapping what follows it, expected entries side by "
                "side: the zip archive is damaged or crafted"
            )


def _refuse_useless(members: list[zipfile.ZipInfo]) -> None:
    if not members:
        raise InvalidDataset("found a zip archive without files, expected images")
    if all(member.flag_bits & ENCRYPTED_FLAG for member in members):
        raise InvalidDataset("found an encrypted zip archive, expected one without a password")


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return member.orig_filename.endswith("/") or (member.orig_filename.endswith("\\") and not member.file_size)


def _fault(member: zipfile.ZipInfo, limits: ArchiveLimits) -> Reject | None:
    """Returns why a member must not be read, as far as the directory tells."""
    name = member.orig_filename
    if not name:
        return Reject("unsafe_name", "found an empty name, expected a file name")
    if control := _CONTROL.search(name):
        return Reject("unsafe_name", f"found the control character {control[0]!r} in the name, expected none")
    if _ABSOLUTE.match(name):
        return Reject("unsafe_name", f"found the absolute path {name[:80]!r}, expected a path inside the archive")
    if ".." in name.replace("\\", "/").split("/"):
        return Reject("unsafe_name", f"found '..' in the path {name[:80]!r}, expected a path inside the archive")
    mode = member.external_attr >> 16  # as Unix programs fill it in; 0 from others
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        kind = "a symbolic link" if stat.S_ISLNK(mode) else f"a special file (mode {mode:o})"
        return Reject("link", f"found {kind}, expected a plain file")
    if member.flag_bits & ENCRYPTED_FLAG:
        return Reject("encrypted", "found an encrypted entry, expected one without a password")
    if member.compress_type not in _METHODS:
        return Reject(
            "unsupported_compression", f"found method {member.compress_type}, expected 0 (stored) or 8 (deflate)"
        )
    if member.file_size > limits.max_image_bytes:
        return Reject(
            "image_too_large", f"found {member.file_size:,} bytes, expected at most {limits.max_image_bytes:,}"
        )
    ratio = member.file_size / max(member.compress_size, 1)
    if ratio > limits.max_ratio:
        return Reject(
            "suspicious_ratio", f"found a compression ratio of {ratio:,.0f}, expected at most {limits.max_ratio:,.0f}"
        )
    return None

"""Reads zips that strangers made, without believing what they say of themselves.

`central_directory` counts the entries before it builds anything for them, and refuses entries that overlap. `entry`
counts every byte while it is unpacked. Nothing is extracted by name.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self, overload

import numpy as np
from numpy.typing import NDArray

from shared.archives.central_directory import Directory, read_directory
from shared.archives.entry import ENCRYPTED_FLAG, Entry, EntryError, EntryReader, decoded_name
from shared.errors import InvalidDataset, short_repr
from shared.faces.labels import base_name
from shared.faces.rejects import Reject

if TYPE_CHECKING:
    from shared.runtime.settings import Settings

_STORED: Final = 0
_DEFLATED: Final = 8
_MAX_VERSION: Final = 63
"""The newest version of the format there is, in tenths."""
_MADE_AT_ONCE: Final = 1024
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
_ABSOLUTE: Final = re.compile(r"[/\\]|[A-Za-z]:")
_LITTER_MARKS: Final = (b"__macosx", b"._", b".ds_store", b"thumbs.db", b"desktop.ini")
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


class _Entries(Sequence[Entry]):
    """The entries of an archive, made as they are asked for: whoever reads a slice of a large one needs no others."""

    def __init__(self, directory: Directory, rows: NDArray[np.intp], limits: ArchiveLimits) -> None:
        self._directory = directory
        self._rows = rows
        self._limits = limits

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return self._made(self._rows[index])
        return self._made(self._rows[[index]])[0]

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), _MADE_AT_ONCE):
            yield from self[start : start + _MADE_AT_ONCE]

    def _made(self, rows: NDArray[np.intp]) -> list[Entry]:
        all_ = self._directory
        names = [all_.names[row] for row in rows.tolist()]
        claims = (all_.packed_bytes, all_.size_bytes, all_.flags, all_.methods, all_.modes, all_.versions)
        columns = (all_.offsets, all_.crcs, *claims)
        entries = []
        for raw_name, offset, crc, packed_bytes, size_bytes, flags, method, mode, version in zip(
            names, *(column[rows].tolist() for column in columns), strict=True
        ):
            try:
                name = decoded_name(raw_name, flags)
                fault = _fault(name, packed_bytes, size_bytes, flags, method, mode, version, self._limits)
            except UnicodeDecodeError:
                name = decoded_name(raw_name, flags, "replace")
                told = f"found the name {short_repr(raw_name)} that claims to be UTF-8 and is not, expected UTF-8"
                fault = Reject("corrupt", told)
            entries.append(Entry(name, offset, packed_bytes, size_bytes, crc, method == _DEFLATED, fault))
        return entries


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
        self._owned = source.open("rb") if isinstance(source, Path) else None
        self._file: BinaryIO = self._owned or source  # type: ignore[assignment]
        self._reader = EntryReader(self._file)
        try:
            size = self._file.seek(0, io.SEEK_END)
            if size > limits.max_bytes:
                raise InvalidDataset(
                    f"found an archive of {size:,} bytes, expected at most {limits.max_bytes:,}",
                    code="archive_too_large",
                )
            directory = read_directory(self._file, limits.max_members)
            rows = _rows_of_files(directory)
            _refuse_useless(directory.flags[rows])
            self.entries: Sequence[Entry] = _Entries(directory, rows, limits)
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
        """Unpacks one entry, as `EntryReader.read` does, which says what it raises."""
        return self._reader.read(entry)

    def read_together(self, entries: Sequence[Entry]) -> list[bytes | EntryError]:
        """Unpacks one or more entries, sooner than one by one. Returns each one's content, or why there is none."""
        reader = self._reader.prefetched(entries)
        contents: list[bytes | EntryError] = []
        for entry in entries:
            try:
                contents.append(reader.read(entry))
            except EntryError as error:
                contents.append(error)
        return contents


def is_litter(name: str) -> bool:
    """Tells whether an operating system left the entry behind: `__MACOSX/`, `._*`, `.DS_Store`, `Thumbs.db`."""
    base = base_name(name)
    return (
        "__MACOSX" in name.replace("\\", "/").split("/")[:-1]
        or base.startswith("._")
        or base.casefold() in _LITTER_NAMES
    )


def _rows_of_files(directory: Directory) -> NDArray[np.intp]:
    """Returns the rows of the directory that are neither folders nor litter."""
    last = np.array([name[-1:] for name in directory.names], "S1")
    files = (last != b"/") & ((last != b"\\") | (directory.size_bytes > 0))
    folded = b"\0".join(directory.names).lower()
    if any(mark in folded for mark in _LITTER_MARKS):  # else, as nearly always, no name need be looked at
        files &= [not is_litter(directory.name(row)) for row in range(len(directory))]
    return np.flatnonzero(files)


def _refuse_useless(flags: NDArray[np.uint16]) -> None:
    if not len(flags):
        raise InvalidDataset("found a zip archive without files, expected images")
    if (flags & ENCRYPTED_FLAG).all():
        raise InvalidDataset("found an encrypted zip archive, expected one without a password")


def _fault(
    name: str,
    packed_bytes: int,
    size_bytes: int,
    flags: int,
    method: int,
    mode: int,
    version: int,
    limits: ArchiveLimits,
) -> Reject | None:
    """Returns why an entry must not be read, as far as the directory tells."""
    if not name:
        return Reject("unsafe_name", "found an empty name, expected a file name")
    if control := _CONTROL.search(name):
        return Reject("unsafe_name", f"found the control character {control[0]!r} in the name, expected none")
    if _ABSOLUTE.match(name):
        return Reject("unsafe_name", f"found the absolute path {name[:80]!r}, expected a path inside the archive")
    if ".." in name and ".." in name.replace("\\", "/").split("/"):
        return Reject("unsafe_name", f"found '..' in the path {name[:80]!r}, expected a path inside the archive")
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        kind = "a symbolic link" if stat.S_ISLNK(mode) else f"a special file (mode {mode:o})"
        return Reject("link", f"found {kind}, expected a plain file")
    if version > _MAX_VERSION:
        return Reject(
            "corrupt", f"found version {version / 10} of the zip format, expected at most {_MAX_VERSION / 10}"
        )
    if flags & ENCRYPTED_FLAG:
        return Reject("encrypted", "found an encrypted entry, expected one without a password")
    if method not in {_STORED, _DEFLATED}:
        return Reject(
            "unsupported_compression", f"found method {method}, expected {_STORED} (stored) or {_DEFLATED} (deflate)"
        )
    if size_bytes > limits.max_image_bytes:
        return Reject("image_too_large", f"found {size_bytes:,} bytes, expected at most {limits.max_image_bytes:,}")
    ratio = size_bytes / max(packed_bytes, 1)
    if ratio > limits.max_ratio:
        return Reject(
            "suspicious_ratio", f"found a compression ratio of {ratio:,.0f}, expected at most {limits.max_ratio:,.0f}"
        )
    return None

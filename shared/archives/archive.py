"""Reads archives that strangers made, zips and tars, without believing what they say of themselves.

`central_directory` and `tar` count the entries before they build anything for them, and refuse entries that overlap.
`entry` counts every byte while it is unpacked. Nothing is extracted by name.
"""

from __future__ import annotations

import io
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self, overload

import numpy as np
from numpy.typing import NDArray

from shared.archives.central_directory import read_directory
from shared.archives.directory import Directory
from shared.archives.entry import METHODS, Entry, EntryError, EntryReader
from shared.archives.tar import GZIP_SIGNATURE, NO_TAR_INSIDE, gunzip, holds_tar, is_tar, read_tar
from shared.errors import InvalidDataset
from shared.faces.labels import base_name
from shared.faces.rejects import Reject, clipped

if TYPE_CHECKING:
    from shared.runtime.settings import Settings

SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz")
"""What the name of an archive may end with where files are chosen by their names."""
_LONGEST_NAME: Final = 4096
"""Characters of a path; no file system takes more, and tables of longer names could not be read."""
_MADE_AT_ONCE: Final = 1024
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
_ABSOLUTE: Final = re.compile(r"[/\\]|[A-Za-z]:")
_LITTER_MARKS: Final = (b"__macosx", b"._", b".ds_store", b"thumbs.db", b"desktop.ini")
_LITTER_NAMES: Final = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds on an archive and its entries.

    Attributes:
        max_ratio: of unpacked to packed bytes: of an entry in a zip, of all of a tar.gz.
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
    """The entries of an archive, made as they are asked for: a slice of a large archive needs no others."""

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
            return self._make(self._rows[index])
        return self._make(self._rows[[index]])[0]

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), _MADE_AT_ONCE):
            yield from self[start : start + _MADE_AT_ONCE]

    def _make(self, rows: NDArray[np.intp]) -> list[Entry]:
        all_ = self._directory
        names = map(all_.name, rows.tolist())
        crcs = [None] * len(rows) if all_.crcs is None else all_.crcs[rows].tolist()
        claims = (all_.offsets, all_.packed_bytes, all_.size_bytes, all_.encrypted, all_.methods, all_.modes)
        entries = []
        for name, crc, offset, packed_bytes, size_bytes, encrypted, method, mode in zip(
            names, crcs, *(column[rows].tolist() for column in claims), strict=True
        ):
            fault = _fault(name, packed_bytes, size_bytes, method, mode, self._limits, encrypted=encrypted)
            entries.append(Entry(clipped(name, _LONGEST_NAME), offset, packed_bytes, size_bytes, crc, method, fault))
        return entries


class Archive:
    """An archive opened for reading; a context manager. `read` may be called from several threads at once.

    A tar.gz is unpacked to a temporary file first, for nothing in it can be reached otherwise.

    Args:
        source: a path, or a seekable binary file, which stays open afterwards.
        limits: bounds that the archive is held to before its entries are looked at.

    Attributes:
        entries: the files in archive order, without folders and operating-system litter.

    Raises:
        InvalidDataset: code `invalid_archive` where it is no zip, tar or tar.gz, or empty, cut short, encrypted or
            crafted; `archive_too_large` where it breaks a limit.
    """

    def __init__(self, source: Path | BinaryIO, limits: ArchiveLimits) -> None:
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            if _head(file, limits).startswith(GZIP_SIGNATURE):
                plain = stack.enter_context(tempfile.TemporaryFile(prefix="genderline-"))
                gunzip(file, plain, limits.max_bytes, limits.max_ratio)
                plain.flush()
                file = plain
            self._reader = EntryReader(file)
            self.entries: Sequence[Entry] = _entries(file, limits)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, if this object opened it."""
        self._stack.close()

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


def archive_stem(name: str) -> str:
    """Returns an archive's file name without folders and the suffix that says what kind of archive it is."""
    base = base_name(name)
    suffix = next((suffix for suffix in SUFFIXES if base.lower().endswith(suffix)), "")
    return base.removesuffix(base[len(base) - len(suffix) :]) if suffix else Path(base).stem


def check_archive(file: BinaryIO, limits: ArchiveLimits) -> None:
    """Looks at an archive before it is kept: the one rule for every door through which archives come.

    Of a tar.gz no more than the beginning is looked at, for the rest has to be unpacked.

    Args:
        file: seekable; stays open.
        limits: as for `Archive`.

    Raises:
        InvalidDataset: as from `Archive`.
    """
    if not _head(file, limits).startswith(GZIP_SIGNATURE):
        _entries(file, limits)
    elif not holds_tar(file):
        raise InvalidDataset(NO_TAR_INSIDE)


@contextmanager
def plain_archive(path: Path, limits: ArchiveLimits) -> Iterator[Path]:
    """Gives an archive that several processes may open: itself, or a tar that a tar.gz was unpacked to.

    Raises:
        InvalidDataset: as from `Archive`, where it is a tar.gz.
    """
    with path.open("rb") as file:
        if not _head(file, limits).startswith(GZIP_SIGNATURE):
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
            plain_path = Path(folder) / "archive.tar"
            with plain_path.open("wb") as plain:
                gunzip(file, plain, limits.max_bytes, limits.max_ratio)
            yield plain_path


def _head(file: BinaryIO, limits: ArchiveLimits) -> bytes:
    """Returns an archive's first bytes, once its size is within the limit."""
    size = file.seek(0, io.SEEK_END)
    if size > limits.max_bytes:
        raise InvalidDataset(
            f"found an archive of {size:,} bytes, expected at most {limits.max_bytes:,}", code="archive_too_large"
        )
    if not size:
        raise InvalidDataset("found an empty file (0 bytes), expected a zip, tar or tar.gz archive")
    file.seek(0)
    return file.read(512)


def _entries(file: BinaryIO, limits: ArchiveLimits) -> _Entries:
    """Returns the entries of a zip or a plain tar."""
    read = read_tar if is_tar(_head(file, limits)) else read_directory
    directory = read(file, limits.max_members)
    rows = _rows_of_files(directory)
    if not len(rows):
        raise InvalidDataset("found an archive without files, expected images")
    if directory.encrypted[rows].all():
        raise InvalidDataset("found an encrypted zip archive, expected one without a password")
    return _Entries(directory, rows, limits)


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
    empty = directory.size_bytes == 0
    files = (last != b"/") & ((last != b"\\") | ~empty)
    files &= ((directory.modes & 0xF000) != stat.S_IFDIR) | ~empty
    folded = b"\0".join(directory.names).lower()
    if any(mark in folded for mark in _LITTER_MARKS):  # else, as nearly always, no name need be looked at
        files &= [not is_litter(directory.name(row)) for row in range(len(directory))]
    return np.flatnonzero(files)


def _fault(
    name: str, packed_bytes: int, size_bytes: int, method: int, mode: int, limits: ArchiveLimits, *, encrypted: bool
) -> Reject | None:
    """Returns why an entry must not be read, as far as the directory tells."""
    if not name:
        return Reject("unsafe_name", "found an empty name, expected a file name")
    if len(name) > _LONGEST_NAME:
        return Reject("unsafe_name", f"found a name of {len(name):,} characters, expected at most {_LONGEST_NAME:,}")
    if control := _CONTROL.search(name):
        return Reject("unsafe_name", f"found the control character {control[0]!r} in the name, expected none")
    if _ABSOLUTE.match(name):
        return Reject("unsafe_name", f"found the absolute path {name[:80]!r}, expected a path inside the archive")
    if ".." in name and ".." in name.replace("\\", "/").split("/"):
        return Reject("unsafe_name", f"found '..' in the path {name[:80]!r}, expected a path inside the archive")
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        kind = "a link" if stat.S_ISLNK(mode) else "a special file"
        return Reject("link", f"found {kind}, expected a plain file")
    if encrypted:
        return Reject("encrypted", "found an encrypted entry, expected one without a password")
    if method not in METHODS:
        known = ", ".join(f"{number} ({name})" for number, name in METHODS.items())
        return Reject("unsupported_compression", f"found method {method}, expected one of {known}")
    if size_bytes > limits.max_image_bytes:
        return Reject("image_too_large", f"found {size_bytes:,} bytes, expected at most {limits.max_image_bytes:,}")
    ratio = size_bytes / max(packed_bytes, 1)
    if ratio > limits.max_ratio:
        return Reject(
            "suspicious_ratio", f"found a compression ratio of {ratio:,.0f}, expected at most {limits.max_ratio:,.0f}"
        )
    return None

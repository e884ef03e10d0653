"""Zips as programs of all kinds write them, honest ones and crafted ones, with the right outcome of each.

Run as a module, it writes `docs/archives.md`: what Genderline, Info-ZIP's `unzip` and 7-Zip make of each of them.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from shared.archives.archive import Archive, ArchiveLimits
from shared.archives.entry import EntryError
from shared.errors import InvalidDataset
from shared.runtime.settings import Settings
from tests.support.builders import archives
from tests.support.builders.archives import zipped

CONTENT: Final = b"the bytes of a face " * 20
NAMES: Final = ("30_0_0_a.jpg", "31_1_0_b.jpg")
LIMITS: Final = ArchiveLimits.from_settings(Settings())


@dataclass(frozen=True)
class Member:
    """One file in a zip, with whatever its two headers are to say.

    Attributes:
        name: in the directory.
        local_name: in the local header; the same, if None.
    """

    name: bytes
    data: bytes = CONTENT
    local_name: bytes | None = None
    method: int = 0
    flags: int = 0
    local_flags: int | None = None
    host: int = 3
    attributes: int = 0o100644 << 16
    extra: bytes = b""
    local_extra: bytes = b""
    version: int = 20
    descriptor: bool = False
    crc: int | None = None


@dataclass(frozen=True)
class Zip:
    """A zip to be written; what stands before and behind it included."""

    members: tuple[Member, ...] = tuple(Member(name.encode()) for name in NAMES)
    front: bytes = b""
    offsets_count_front: bool = False
    between: bytes = b""  # before the directory
    after_directory: bytes = b""
    comment: bytes = b""
    behind: bytes = b""
    zip64: bool = False
    zip64_extensible: bytes = b""
    claimed_entries: int | None = None
    shift: int = 0
    """What is added to all offsets, of entries and of the directory."""

    def bytes(self) -> bytes:
        """Returns the zip."""
        out = bytearray(self.front)
        base = 0 if self.offsets_count_front else len(self.front)
        directory = bytearray()
        for member in self.members:
            offset = len(out) - base + self.shift
            packed = _packed(member)
            crc = zlib.crc32(member.data) if member.crc is None else member.crc
            name = member.name if member.local_name is None else member.local_name
            flags = (member.flags if member.local_flags is None else member.local_flags) | 8 * member.descriptor
            sizes = (0, 0, 0) if member.descriptor else (crc, len(packed), len(member.data))
            out += struct.pack(
                "<4s5H3L2H",
                b"PK\3\4",
                member.version,
                flags,
                member.method,
                0,
                33,
                *sizes,
                len(name),
                len(member.local_extra),
            )
            out += name + member.local_extra + packed
            if member.descriptor:
                out += struct.pack("<4s3L", b"PK\7\x08", crc, len(packed), len(member.data))
            wide = struct.pack("<2H3Q", 1, 24, len(member.data), len(packed), offset) if self.zip64 else b""
            extra = member.extra + wide
            small = (0xFFFFFFFF,) * 2 if self.zip64 else (len(packed), len(member.data))
            directory += struct.pack(
                "<4s2B5H3L5H2L",
                b"PK\1\2", 20, member.host, member.version, member.flags | 8 * member.descriptor, member.method, 0, 33,
                crc, *small, len(member.name), len(extra), 0, 0, 0, member.attributes,
                0xFFFFFFFF if self.zip64 else offset,
            )  # fmt: skip
            directory += member.name + extra
        out += self.between
        start = len(out) - base + self.shift
        out += directory + self.after_directory
        count = len(self.members) if self.claimed_entries is None else self.claimed_entries
        if self.zip64:
            at = len(out) - base
            size = 44 + len(self.zip64_extensible)
            out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", size, 45, 45, 0, 0, count, count, len(directory), start)
            out += self.zip64_extensible + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
            count, length, start = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
        else:
            length = len(directory)
        out += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, start, len(self.comment))
        return bytes(out + self.comment + self.behind)


def _packed(member: Member) -> bytes:
    if member.method in {zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}:
        with zipfile.ZipFile(io.BytesIO(zipped([("x", member.data)], member.method))) as archive:
            info = archive.infolist()[0]
            raw = archive.fp
            assert raw is not None
            raw.seek(info.header_offset + 31)
            return raw.read(info.compress_size)
    return member.data


def unicode_path(name: str, replaced: bytes, *, crc: int | None = None) -> bytes:
    """Returns a Unicode path field for a name that stands there as `replaced`."""
    text = name.encode()
    content = struct.pack("<BL", 1, zlib.crc32(replaced) if crc is None else crc) + text
    return struct.pack("<2H", 0x7075, len(content)) + content


@dataclass(frozen=True)
class Sample:
    """A zip of the table.

    Attributes:
        what: the dialect, or the trick.
        make: its bytes.
        names: what the entries are to be called that can be read; None where the archive is to be refused.
        rejects: of how many entries are left out.
    """

    what: str
    make: Callable[[], bytes]
    names: tuple[str, ...] | None = NAMES
    rejects: tuple[str, ...] = field(default=())


def _members(*names: str | bytes, **options: object) -> tuple[Member, ...]:
    encoded = (name if isinstance(name, bytes) else name.encode() for name in names)
    return tuple(Member(name, **options) for name in encoded)  # type: ignore[arg-type]


GERMAN: Final = "Gesichter für Test/30_0_0_a.jpg"
_OEM: Final = GERMAN.encode("cp437")
_BACKSLASHED: Final = tuple(f"faces\\{name}" for name in NAMES)
_SLASHED: Final = tuple(f"faces/{name}" for name in NAMES)
_LINK: Final = 0o120777 << 16


def _encrypted_pair() -> tuple[Member, ...]:
    first, second = Zip().members
    return replace(first, flags=1), second


def _bomb() -> bytes:
    return archives.overlapping(10)


SAMPLES: Final = (
    Sample("stored", lambda: Zip().bytes()),
    Sample("deflate", lambda: Zip(_members(*NAMES, method=8)).bytes()),
    Sample("bzip2", lambda: Zip(_members(*NAMES, method=12, version=46)).bytes()),
    Sample("LZMA", lambda: Zip(_members(*NAMES, method=14, version=63)).bytes()),
    Sample(
        "sizes in a data descriptor (written to a pipe)",
        lambda: Zip(_members(*NAMES, method=8, descriptor=True)).bytes(),
    ),
    Sample("stored, with a data descriptor", lambda: Zip(_members(*NAMES, descriptor=True)).bytes()),
    Sample("zip64 records, small", lambda: Zip(zip64=True).bytes()),
    Sample(
        "zip64, its end longer than 56 bytes", lambda: Zip(zip64=True, zip64_extensible=b"\1\0\4\0\0\0more").bytes()
    ),
    Sample("zip64 with data in front", lambda: Zip(zip64=True, front=b"MZ program").bytes()),
    Sample("UTF-8 name with the flag", lambda: Zip(_members(GERMAN, flags=0x800)).bytes(), (GERMAN,)),
    Sample("UTF-8 name without the flag (Linux zip, macOS)", lambda: Zip(_members(GERMAN)).bytes(), (GERMAN,)),
    Sample("code page 437 (DOS, Windows)", lambda: Zip(_members(_OEM, host=0, attributes=0x20)).bytes(), (GERMAN,)),
    Sample(
        "code page 437 with a Unicode path field (WinRAR, 7-Zip)",
        lambda: Zip((Member(_OEM, extra=unicode_path(GERMAN, _OEM), host=0, attributes=0x20),)).bytes(),
        (GERMAN,),
    ),
    Sample(
        "question marks with a Unicode path field",
        lambda: Zip(
            (Member(b"????/30_0_0_a.jpg", extra=unicode_path("лица/30_0_0_a.jpg", b"????/30_0_0_a.jpg")),)
        ).bytes(),
        ("лица/30_0_0_a.jpg",),
    ),
    Sample(
        "Unicode path field of another name (a stale one)",
        lambda: Zip((Member(b"30_0_0_a.jpg", extra=unicode_path("old.jpg", b"x", crc=7)),)).bytes(),
        ("30_0_0_a.jpg",),
    ),
    Sample("the flag for UTF-8 on a name that is none", lambda: Zip(_members(_OEM, flags=0x800)).bytes(), (GERMAN,)),
    Sample(
        "UTF-8 flag in the directory only",
        lambda: Zip(_members(GERMAN, flags=0x800, local_flags=0)).bytes(),
        (GERMAN,),
    ),
    Sample("`\\` for `/`", lambda: Zip(_members(*_BACKSLASHED, host=0, attributes=0x20)).bytes(), _BACKSLASHED),
    Sample(
        "`/` in the directory, `\\` in the local headers",
        lambda: Zip(
            tuple(Member(a.encode(), local_name=b.encode()) for a, b in zip(_SLASHED, _BACKSLASHED, strict=True))
        ).bytes(),
        _SLASHED,
    ),
    Sample(
        "another name in the local header",
        lambda: Zip((Member(b"30_0_0_a.jpg", local_name=b"x.tmp"),)).bytes(),
        ("30_0_0_a.jpg",),
    ),
    Sample(
        "no name in the local header",
        lambda: Zip((Member(b"30_0_0_a.jpg", local_name=b""),)).bytes(),
        ("30_0_0_a.jpg",),
    ),
    Sample(
        "`./` in front of names",
        lambda: Zip(_members(*(f"./{name}" for name in NAMES))).bytes(),
        tuple(f"./{name}" for name in NAMES),
    ),
    Sample(
        "folders as entries",
        lambda: Zip((Member(b"faces/", b"", attributes=0o40755 << 16), *_members(*_SLASHED))).bytes(),
        _SLASHED,
    ),
    Sample(
        "folders without a slash (FAT attribute)",
        lambda: Zip((Member(b"faces", b"", host=0, attributes=0x10), *_members(*_SLASHED))).bytes(),
        _SLASHED,
    ),
    Sample(
        "upper attribute bits of a program that is not Unix'",
        lambda: Zip(_members(*NAMES, host=0, attributes=_LINK)).bytes(),
    ),
    Sample("needs version 9.9, ordinary method", lambda: Zip(_members(*NAMES, version=99)).bytes()),
    Sample("a self-extractor in front", lambda: Zip(front=b"MZ" + bytes(5000)).bytes()),
    Sample(
        "a self-extractor in front, offsets from the file's start",
        lambda: Zip(front=b"MZ" + bytes(5000), offsets_count_front=True).bytes(),
    ),
    Sample("CRLF in front (a mail part)", lambda: Zip(front=b"\r\n").bytes()),
    Sample("CRLF behind", lambda: Zip(behind=b"\r\n").bytes()),
    Sample("zeros behind, up to a block", lambda: Zip(behind=bytes(4096)).bytes()),
    Sample("200 kB behind", lambda: Zip(behind=b"signature " * 20_000).bytes()),
    Sample("a comment", lambda: Zip(comment=b"made by hand").bytes()),
    Sample("a comment with an end record in it", lambda: Zip(comment=b"PK\5\6" + bytes(40)).bytes()),
    Sample(
        "a block in front of the directory (signed Android package)", lambda: Zip(between=b"APK Sig Block 42").bytes()
    ),
    Sample("a digital signature behind the directory", lambda: Zip(after_directory=b"PK\5\5\4\0sign").bytes()),
    Sample("bytes between the directory and the end", lambda: Zip(after_directory=b"padding!").bytes()),
    Sample("offsets too large by 100, as is the directory's", lambda: Zip(shift=100).bytes()),
    Sample("two zips, one behind the other", lambda: zipped([("old.jpg", CONTENT)]) + Zip().bytes()),
    Sample("66,000 entries without zip64 (macOS)", lambda: archives.wrapped_count(66_000), tuple("a" * 66_000)),
    Sample("one entry encrypted", lambda: Zip(_encrypted_pair()).bytes(), (NAMES[1],), ("encrypted",)),
    Sample(
        "Deflate64",
        lambda: Zip((Member(b"30_0_0_a.jpg", method=9), Member(NAMES[1].encode()))).bytes(),
        (NAMES[1],),
        ("unsupported_compression",),
    ),
    Sample(
        "one checksum wrong",
        lambda: Zip((Member(b"30_0_0_a.jpg", crc=7), Member(NAMES[1].encode()))).bytes(),
        (NAMES[1],),
        ("corrupt",),
    ),
    Sample(
        "a symbolic link",
        lambda: Zip((Member(b"30_0_0_a.jpg", b"/etc/passwd", attributes=_LINK), Member(NAMES[1].encode()))).bytes(),
        (NAMES[1],),
        ("link",),
    ),
    Sample("`..` in a name", lambda: Zip(_members("../30_0_0_a.jpg", NAMES[1])).bytes(), (NAMES[1],), ("unsafe_name",)),
    Sample(
        "an absolute name", lambda: Zip(_members("/etc/30_0_0_a.jpg", NAMES[1])).bytes(), (NAMES[1],), ("unsafe_name",)
    ),
    Sample("a NUL in a name", lambda: Zip(_members("30_0_0\0.jpg", NAMES[1])).bytes(), (NAMES[1],), ("unsafe_name",)),
    Sample(
        "1 MB that unpacks to 1,000 times as much",
        lambda: zipped([("30_0_0_a.jpg", bytes(2**20)), (NAMES[1], CONTENT)], zipfile.ZIP_DEFLATED),
        (NAMES[1],),
        ("suspicious_ratio",),
    ),
    Sample("entries that share their bytes (a bomb)", _bomb, None),
    Sample("fewer entries claimed than there are", lambda: Zip(claimed_entries=1).bytes(), None),
    Sample("more entries claimed than there are", lambda: Zip(claimed_entries=3).bytes(), None),
    Sample("all entries encrypted", lambda: Zip(_members(*NAMES, flags=1)).bytes(), None),
    Sample("cut short by one byte", lambda: Zip().bytes()[:-1], None),
    Sample("its second half missing", lambda: Zip().bytes()[: len(Zip().bytes()) // 2], None),
    Sample("its first half missing", lambda: Zip().bytes()[len(Zip().bytes()) // 2 :], None),
    Sample("no files", lambda: zipped([]), None),
)


def read_sample(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (the names of the entries that could be read, the reasons of those that could not).

    Raises:
        InvalidDataset: the archive is refused.
    """
    names, rejects = [], []
    with Archive(io.BytesIO(data), LIMITS) as archive:
        for entry in archive.entries:
            try:
                archive.read(entry)
            except EntryError as error:
                rejects.append(error.reject.reason)
            else:
                names.append(entry.name)
    return tuple(names), tuple(rejects)


# -- the table


def table() -> str:
    """Returns the page, which needs unzip and 7z."""
    lines = [
        "# Archives, and what is made of them",
        "",
        "Zips as programs write them, and crafted ones, beside what two other programs make of the same bytes.",
        "`python -m tests.zips docs/archives.md` writes this page, and `tests/unit/shared/archives/test_zips.py` holds "
        "our",
        "column. *ok*: every file is read. *part*: some are. In brackets: what the program ended with.",
        "",
        "| zip | Genderline | unzip | 7-Zip |",
        "|---|---|---|---|",
    ]
    for sample in SAMPLES:
        data = sample.make()
        others = " | ".join(_other(command, data, sample) for command in ("unzip", "7z"))
        lines.append(f"| {sample.what} | {_ours(data)} | {others} |")
    return "\n".join(lines) + "\n"


def _ours(data: bytes) -> str:
    try:
        _, rejects = read_sample(data)
    except InvalidDataset as error:
        return f"refused: {error}".replace("|", "\\|")
    return f"part: {', '.join(rejects)}" if rejects else "ok"


def _other(command: str, data: bytes, sample: Sample) -> str:
    if shutil.which(command) is None:
        return "not there"
    with tempfile.TemporaryDirectory() as folder:
        archive, out = Path(folder) / "a.zip", Path(folder) / "out"
        archive.write_bytes(data)
        out.mkdir()
        arguments = (
            ["unzip", "-q", "-o", "-P", "x", str(archive), "-d", str(out)]
            if command == "unzip"
            else ["7z", "x", "-y", "-px", f"-o{out}", str(archive)]
        )
        ended = subprocess.run(arguments, capture_output=True, timeout=120, check=False)
        whole = sum(not file.is_symlink() and file.is_file() and file.stat().st_size > 0 for file in _walk(out))
        files = len(sample.names or NAMES) + len(sample.rejects)
        if len(sample.names or ()) > 1000:
            whole = files if ended.returncode == 0 else 0  # of one name and no length
        if ended.returncode == 0 and whole >= files:
            return "ok"
        if whole >= files:
            return (
                f"ok, with a warning ({ended.returncode})"
                if ended.returncode == 1
                else f"ok, as an error ({ended.returncode})"
            )
        return f"part: {whole} of {files} ({ended.returncode})" if whole else f"nothing ({ended.returncode})"


def _walk(folder: Path) -> Iterator[Path]:
    yield from (file for file in folder.rglob("*"))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")

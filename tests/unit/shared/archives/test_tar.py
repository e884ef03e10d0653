"""Tars and tar.gz files, under the same bounds as zips."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from dataclasses import replace

import pytest

from shared.archives.archive import Archive, ArchiveLimits, check_archive
from shared.archives.entry import EntryError
from shared.archives.tar import is_tar
from shared.errors import InvalidDataset
from shared.runtime.settings import Settings
from tests.support.builders.layouts import tarred

LIMITS = ArchiveLimits.from_settings(Settings())
FILES = [("UTKFace/30_0_0_a.jpg", b"a" * 700), ("UTKFace/31_1_0_ü.jpg", b"b")]


def contents(data: bytes, limits: ArchiveLimits = LIMITS) -> list[tuple[str, bytes | str]]:
    found: list[tuple[str, bytes | str]] = []
    with Archive(io.BytesIO(data), limits) as archive:
        for entry in archive.entries:
            try:
                found.append((entry.name, archive.read(entry)))
            except EntryError as error:
                found.append((entry.name, error.reject.reason))
    return found


def refusal(data: bytes, limits: ArchiveLimits = LIMITS) -> str:
    with pytest.raises(InvalidDataset) as caught:
        contents(data, limits)
    return f"{caught.value.code}: {caught.value}"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_of_tar_is_read_with_long_names_too(form: int, packed: bool) -> None:
    long = "/".join(["folder" * 10] * 2) + "/31_1_0_" + "x" * 60 + ".jpg"
    files = [("UTKFace/30_0_0_a.jpg", b"a" * 700), ("30_0_1_é.jpg", b""), (long, b"c" * 512)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if packed else "w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("UTKFace/._30_0_0_a.jpg"))
        folder = tarfile.TarInfo("UTKFace")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert contents(buffer.getvalue()) == files


def test_links_and_special_files_are_rejects_and_so_are_names_that_lead_astray() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("../30_0_0.jpg"))
        archive.addfile(tarfile.TarInfo("30_0_0.jpg"))
    outcomes = ["link", "link", "link", "unsafe_name", b""]
    assert [outcome for _, outcome in contents(buffer.getvalue())] == outcomes


@pytest.mark.parametrize("pieces", [3, 12, 60])
def test_a_sparse_file_costs_its_own_entry_however_many_holes_it_has(pieces: int) -> None:
    """As `tar -S` writes it: four pieces are listed in the header, and 21 in each block behind it."""
    blocks = -(-(pieces - 4) // 21) if pieces > 4 else 0
    info = tarfile.TarInfo("31_0_0.bmp")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, pieces * 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = blocks > 0
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = b"".join(b"1" * 504 + bytes([number < blocks - 1]) + bytes(7) for number in range(blocks))
    data = bytes(header) + more + b"x" * info.size + tarred(FILES)
    assert contents(data) == [("31_0_0.bmp", "link"), *FILES]
    assert "cut short" in refusal(data[:1024])


def test_a_tar_gz_that_would_grow_beyond_its_bounds_is_refused_before_it_does() -> None:
    bomb = gzip.compress(tarred([("30_0_0.jpg", bytes(100_000_000))]))
    tracemalloc.start()
    try:
        assert refusal(bomb).startswith("archive_too_large: found a tar.gz archive that unpacks to")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
    assert "at most 1,000," in refusal(tarred(FILES, gzip=True), replace(LIMITS, max_bytes=1000))


def test_a_header_that_claims_gigabytes_costs_no_memory() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 * 2**30 - 1
    assert "cut short" in refusal(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def test_members_are_counted_and_a_tar_of_none_is_refused() -> None:
    assert refusal(tarred(FILES), replace(LIMITS, max_members=1)).startswith("archive_too_large: found 2 or more")
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    assert "without files" in refusal(folder.tobuf() + bytes(1024))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_tar_gz_cut_short_is_refused(share: float) -> None:
    data = tarred([(f"30_0_0_{i}.jpg", bytes(range(256)) * i) for i in range(40)], gzip=True)
    assert "cut short" in refusal(data[: int(len(data) * share)])


@pytest.mark.parametrize("short_of", [0, 1, 2])
@pytest.mark.parametrize("padding", [b"", bytes(3)])
def test_a_gzip_member_that_begins_at_the_end_of_a_read_is_read(short_of: int, padding: bytes) -> None:
    files = [("30_0_0.jpg", os.urandom(1_000_000)), *FILES]
    data = tarred(files)
    packed = gzip.compress(data[:1_000_960], mtime=0)  # the first file
    comment = b"c" * (2**20 - short_of - len(packed) - 1) + b"\0"
    first = packed[:3] + b"\x10" + packed[4:10] + comment + packed[10:]
    assert len(first) == 2**20 - short_of
    assert contents(first + padding + gzip.compress(data[1_000_960:])) == files


def test_very_many_empty_gzip_members_are_refused() -> None:
    data, empty = tarred(FILES, gzip=True), gzip.compress(b"")
    assert contents(data + 5_000 * empty) == FILES
    assert refusal(data + 50_000 * empty).startswith("archive_too_large: found a tar.gz archive of 10,0")


def test_a_gzip_file_of_something_else_is_refused_at_the_door() -> None:
    with pytest.raises(InvalidDataset, match="without a tar archive in it"):
        check_archive(io.BytesIO(gzip.compress(b"a picture")), LIMITS)
    check_archive(io.BytesIO(tarred(FILES, gzip=True)), LIMITS)
    assert contents(tarred(FILES, gzip=True) + b"padding") == FILES


def test_bytes_whose_sum_happens_to_be_what_stands_for_no_number_are_no_tar() -> None:
    """As a soak found out: of valid zips, one in some thousands was rejected as a tar cut short."""
    zipped = bytearray(b"PK\x03\x04" + b"\xff" * 508)  # no checksum in it that is a number
    signed = sum(byte - 256 if byte > 127 else byte for byte in zipped[:148] + b" " * 8 + zipped[156:])
    for index in range(200, 512):
        step = min(128, -1 - signed)
        zipped[index] = (zipped[index] + step) % 256
        signed += step
        if signed == -1:
            break
    assert signed == -1
    assert not is_tar(bytes(zipped))

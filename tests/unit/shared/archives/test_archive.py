from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.archives.archive import Archive, ArchiveLimits
from shared.archives.entry import EntryError, EntryReader
from shared.errors import InvalidDataset
from shared.faces.rejects import Reject
from shared.runtime.settings import Settings
from tests.support.builders import archives
from tests.support.builders.archives import face_jpeg, labelled_faces, zipped

LIMITS = ArchiveLimits.from_settings(Settings())


def opened(data: bytes, **limits: float) -> Archive:
    return Archive(io.BytesIO(data), replace(LIMITS, **limits))  # type: ignore[arg-type]


def reasons(archive: Archive) -> dict[str, str | None]:
    return {entry.name: entry.reject.reason if entry.reject else None for entry in archive.entries}


def refusal(data: bytes, **limits: float) -> tuple[str, str]:
    with pytest.raises(InvalidDataset) as caught:
        opened(data, **limits)
    return caught.value.code, str(caught.value)


def test_entries_come_in_archive_order_without_folders_and_litter() -> None:
    files = [
        ("b/30_0_0.jpg", b"b"),
        ("a/", b""),
        ("win\\", b""),
        ("__MACOSX/b/._30_0_0.jpg", b"x"),
        ("a/.DS_Store", b"x"),
        ("a/Thumbs.db", b"x"),
        ("Desktop.ini", b"x"),
        ("a\\._31_1_0.jpg", b"x"),
        ("a/31_1_0.jpg", b"aa"),
    ]
    with opened(zipped(files)) as archive:
        assert [(entry.name, entry.size_bytes) for entry in archive.entries] == [
            ("b/30_0_0.jpg", 1),
            ("a/31_1_0.jpg", 2),
        ]
        assert [archive.read(entry) for entry in archive.entries] == [b"b", b"aa"]


def test_a_path_is_closed_afterwards_and_a_given_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    path.write_bytes(zipped(labelled_faces(2)))
    with Archive(path, LIMITS) as archive:
        entry = archive.entries[0]
        assert archive.read(entry) == face_jpeg(0)
    with pytest.raises(ValueError, match="closed"):
        archive.read(entry)
    with path.open("rb") as file:
        Archive(file, LIMITS).close()
        assert not file.closed


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_threads_read_side_by_side(tmp_path: Path, method: int) -> None:
    path = tmp_path / "faces.zip"
    files = [(f"30_0_0_{i}.jpg", bytes([i]) * 50_000 + bytes(range(256)) * 100) for i in range(100)]
    path.write_bytes(zipped(files, method))
    with Archive(path, LIMITS) as archive, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(archive.read, [*archive.entries] * 5)) == [data for _, data in files] * 5


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".jpg", "<script>alert(1)</script>.jpg", "\u202egpj.1_0_42", "ü €.jpg", "a" * 4096]
)
def test_names_of_any_script_are_kept_as_they_are(name: str) -> None:
    with opened(zipped([(name, b"x")])) as archive:
        assert (archive.entries[0].name, archive.entries[0].reject) == (name, None)


def test_names_in_no_known_encoding_still_get_a_name_each() -> None:
    data = archives.renamed(zipped([("30_0_0_AA.jpg", b"1"), ("30_0_0_BB.jpg", b"2")]), b"AA", b"\xe9\xff")
    with opened(data) as archive:
        assert len(reasons(archive)) == 2
        assert [archive.read(entry) for entry in archive.entries] == [b"1", b"2"]


def test_a_name_that_claims_to_be_utf8_and_is_not_is_in_code_page_437_and_the_entry_is_read() -> None:
    data = zipped([("30_0_0_ü.jpg", b"x"), ("30_0_0_é.jpg", b"y")])
    with opened(data.replace("ü".encode(), b"\x81_")) as archive:
        assert [entry.name for entry in archive.entries] == ["30_0_0_ü_.jpg", "30_0_0_é.jpg"]
        assert [archive.read(entry) for entry in archive.entries] == [b"x", b"y"]


def test_a_version_of_the_format_does_not_matter_where_the_method_is_known() -> None:
    data = bytearray(zipped([("30_0_0.jpg", b"x")]))
    data[data.index(b"PK\x01\x02") + 6] = 64
    with opened(bytes(data)) as archive:
        assert archive.read(archive.entries[0]) == b"x"


def test_two_entries_of_one_name_are_both_read() -> None:
    with opened(zipped([("a.jpg", b"1"), ("a.jpg", b"2")])) as archive:
        assert [archive.read(entry) for entry in archive.entries] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "found an empty file (0 bytes)"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "found a 7z archive"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(100), "found a RAR archive"),
        (b"\x1f\x8b\x08" + bytes(100), "found a gzip file"),
        (b"%PDF-1.7\n%\xe2\xe3", "found a PDF document"),
        (b"<!DOCTYPE html><title>Sign in</title>", "found an HTML page"),
        (b"PK", "found a text file"),
        (bytes(70_000), "found unknown data"),
        (zipped([]), "found an archive without files"),
        (zipped([("folder/", b""), ("__MACOSX/x", b"")]), "found an archive without files"),
    ],
)
def test_what_is_no_zip_of_files_is_told_by_what_it_is(data: bytes, found: str) -> None:
    code, message = refusal(data)
    assert code == "invalid_archive"
    assert message.startswith(found)
    assert "expected" in message


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_zip_cut_short_is_refused(share: float) -> None:
    data = zipped(labelled_faces(20))
    code, message = refusal(data[: int(len(data) * share)])
    assert code == "invalid_archive"
    assert "cut short" in message


def test_a_zip_without_its_beginning_is_refused() -> None:
    data = zipped(labelled_faces(20))
    assert refusal(data[5_000:])[0] == "invalid_archive"
    assert "cut short" in refusal(data[-500:])[1]


def test_a_damaged_directory_is_refused() -> None:
    data = zipped(labelled_faces(3))
    assert "directory is damaged after 0 entries" in refusal(data.replace(b"PK\x01\x02", b"PK\x01\x03"))[1]


def test_one_part_of_a_split_zip_is_refused() -> None:
    data = bytearray(zipped(labelled_faces(2)))
    struct.pack_into("<2H", data, data.rfind(b"PK\x05\x06") + 4, 1, 1)
    assert "found part 2 of a zip archive split in several" in refusal(bytes(data))[1]


def test_a_comment_and_something_in_front_do_no_harm() -> None:
    buffer = io.BytesIO(zipped(labelled_faces(2)))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"PK or not PK" * 1000
    with opened(b"#!/bin/sh\nexit\n" + buffer.getvalue()) as archive2:
        assert archive2.read(archive2.entries[1]) == face_jpeg(1, 1)


def test_an_encrypted_archive_is_refused_and_one_encrypted_entry_is_a_reject() -> None:
    files = labelled_faces(3)
    assert refusal(archives.encrypted(files)) == (
        "invalid_archive",
        "found an encrypted zip archive, expected one without a password",
    )
    with opened(archives.encrypted(files, only=files[1][0])) as archive:
        assert list(reasons(archive).values()) == [None, "encrypted", None]


@pytest.mark.parametrize(
    "name",
    [
        "../30_0_0.jpg",
        "a/../../30_0_0.jpg",
        "a\\..\\30_0_0.jpg",
        "/etc/30_0_0.jpg",
        "\\\\host\\30_0_0.jpg",
        "C:\\30_0_0.jpg",
        "c:30_0_0.jpg",
        "30_0_0\0.jpg",
        "30_0_0\n.jpg",
        "30_0_0\x7f.jpg",
        "",
    ],
)
def test_a_name_that_could_lead_astray_is_a_reject_and_its_neighbour_is_not(name: str) -> None:
    with opened(zipped([(name, b"x"), ("30_0_0.jpg", b"y")])) as archive:
        assert [entry.reject.reason if entry.reject else None for entry in archive.entries] == ["unsafe_name", None]
        assert archive.entries[0].name == name
        with pytest.raises(EntryError, match="expected") as caught:
            archive.read(archive.entries[0])
        assert caught.value.reject == archive.entries[0].reject


def test_a_name_longer_than_any_path_is_a_reject_and_is_cut() -> None:
    with opened(zipped([("a" * 60_000, b"x")])) as archive:
        (entry,) = archive.entries
    assert entry.reject == Reject("unsafe_name", "found a name of 60,000 characters, expected at most 4,096")
    assert len(entry.name) == 4096


@pytest.mark.parametrize("name", ["a..b/30_0_0.jpg", "...jpg", "30_0_0 .jpg"])
def test_dots_within_a_name_are_harmless(name: str) -> None:
    with opened(zipped([(name, b"x")])) as archive:
        assert archive.entries[0].reject is None


def test_a_symbolic_link_is_a_reject() -> None:
    with opened(archives.symlink("31_1_0.jpg", "/etc/passwd")) as archive:
        assert reasons(archive) == {"30_0_0_plain.jpg": None, "31_1_0.jpg": "link"}


def test_overlapping_members_are_refused() -> None:
    data = archives.overlapping()
    with zipfile.ZipFile(io.BytesIO(data)) as believed:
        assert sum(member.file_size for member in believed.infolist()) > 1000 * len(data)
    code, message = refusal(data)
    assert code == "invalid_archive"
    assert "overlapping" in message


def test_an_entry_that_would_grow_a_thousandfold_is_a_reject() -> None:
    with opened(zipped([("30_0_0.jpg", bytes(10_000_000))], zipfile.ZIP_DEFLATED)) as archive:
        reject = archive.entries[0].reject
        assert reject is not None
        assert reject.reason == "suspicious_ratio"
        assert "expected at most 200" in reject.detail


def test_an_entry_over_the_limit_is_a_reject() -> None:
    with opened(zipped([("a.jpg", bytes(101)), ("b.jpg", bytes(100))]), max_image_bytes=100) as archive:
        assert reasons(archive) == {"a.jpg": "image_too_large", "b.jpg": None}


@pytest.mark.parametrize("claimed", [10, 9_999, 10_001, 1_000_000])
def test_a_size_that_lies_either_way_is_found_out_while_unpacking(claimed: int) -> None:
    truth = face_jpeg(0)[:10_000].ljust(10_000, b".")
    with opened(archives.lying_about_size("30_0_0.jpg", truth, claimed), max_ratio=1e9) as archive:
        with pytest.raises(EntryError, match=f"expected {claimed:,} bytes") as caught:
            archive.read(archive.entries[0])
        assert caught.value.reject.reason == "size_mismatch"


def test_a_lie_about_size_costs_no_memory() -> None:
    data = archives.lying_about_size("30_0_0.jpg", bytes(50_000_000), 1000)
    with opened(data) as archive:
        tracemalloc.start()
        try:
            with pytest.raises(EntryError, match="found more"):
                archive.read(archive.entries[0])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_are_found_out(method: int) -> None:
    with opened(archives.corrupted("30_0_0.jpg", b"face" * 100 + face_jpeg(0), method)) as archive:
        with pytest.raises(EntryError) as caught:
            archive.read(archive.entries[0])
        assert caught.value.reject.reason in (
            {"corrupt"} if method == zipfile.ZIP_STORED else {"corrupt", "size_mismatch"}
        )
        assert caught.value.code == "invalid_image"


def test_an_entry_whose_own_header_is_gone_is_corrupt_and_its_neighbour_is_not() -> None:
    data = bytearray(zipped(labelled_faces(2)))
    data[0:4] = b"XXXX"
    with opened(bytes(data)) as archive:
        with pytest.raises(EntryError, match="do not unpack") as caught:
            archive.read(archive.entries[0])
        assert caught.value.reject.reason == "corrupt"
        assert archive.read(archive.entries[1]) == face_jpeg(1, 1)


@pytest.mark.parametrize("method", [1, 9, 93, 98])
def test_other_compression_methods_are_rejects(method: int) -> None:
    with opened(archives.with_method("30_0_0.jpg", b"x", method)) as archive:
        reject = archive.entries[0].reject
        assert reject is not None
        assert (reject.reason, f"found method {method}," in reject.detail) == ("unsupported_compression", True)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_entries_read_at_once_are_those_read_one_by_one(tmp_path: Path, method: int) -> None:
    path = tmp_path / "faces.zip"
    files = [(f"30_0_0_{i}.jpg", bytes([i]) * 50_000 + bytes(range(256)) * 100) for i in range(100)]
    path.write_bytes(zipped(files, method))
    with path.open("rb") as file, Archive(file, LIMITS) as archive:
        for some in (archive.entries[:1], archive.entries[40:60], archive.entries[99:], archive.entries[:]):
            reader = EntryReader(file).prefetched(some)
            assert [reader.read(entry) for entry in some] == [archive.read(entry) for entry in some]
        # Entries that are not held are read as ever.
        for held, other in ((archive.entries[:1], 50), (archive.entries[50:51], 49), (archive.entries[50:51], 51)):
            assert EntryReader(file).prefetched(held).read(archive.entries[other]) == files[other][1]


def test_entries_that_are_held_need_the_file_no_more(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    files = list(labelled_faces(40))
    path.write_bytes(zipped(files))
    with path.open("r+b") as file, Archive(file, LIMITS) as archive:
        held, others = archive.entries[5:10], archive.entries[20:25]
        reader = EntryReader(file).prefetched(held)
        file.truncate(0)
        assert [reader.read(entry) for entry in held] == [data for _, data in files[5:10]]
        for entry in others:
            with pytest.raises(EntryError, match="its header is missing"):
                reader.read(entry)


def test_entries_that_are_damaged_or_far_apart_are_told_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "faces.zip"
    wide = bytes(range(256)) * 2**15  # 8 MiB: more than is held
    data = bytearray(zipped([("30_0_0_1.jpg", b"first"), ("notes.bin", wide), ("30_0_0_2.jpg", b"second")]))
    data[data.index(b"first")] ^= 1
    path.write_bytes(data)
    with path.open("rb") as file, Archive(file, LIMITS) as archive:
        first, notes, second = archive.entries
        for some in ([first], [first, second], [second, notes, first]):
            reader = EntryReader(file).prefetched(some)
            assert reader.read(second) == b"second"
            with pytest.raises(EntryError, match="found checksum"):
                reader.read(first)
        assert EntryReader(file).prefetched([notes]).read(notes) == wide


def test_an_archive_over_its_limit_of_bytes_is_refused() -> None:
    data = zipped(labelled_faces(1))
    with opened(data, max_bytes=len(data)):
        pass
    assert refusal(data, max_bytes=len(data) - 1)[0] == "archive_too_large"


def test_a_million_members_cost_next_to_nothing() -> None:
    data = archives.many_members(1_000_001)
    tracemalloc.start()
    started = time.monotonic()
    try:
        code, message = refusal(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert code == "archive_too_large"
    assert message == "found 1,000,001 or more entries in the archive, expected at most 1,000,000"
    assert peak < 1_000_000
    assert time.monotonic() - started < 1.0


def test_members_beyond_those_claimed_are_counted_and_the_counting_stops_at_the_limit() -> None:
    assert refusal(archives.many_members(5_000, claimed=3), max_members=1_000) == (
        "archive_too_large",
        "found 1,001 or more entries in the archive, expected at most 1,000",
    )
    assert (
        "found 5,000 entries in the zip archive's directory, expected 3"
        in refusal(archives.many_members(5_000, claimed=3))[1]
    )


@given(st.binary(max_size=400), st.integers(0, 2000), st.integers(0, 60))
def test_any_bytes_give_an_archive_or_a_refusal(noise: bytes, at: int, seed: int) -> None:
    data = bytearray(zipped([("30_0_0.jpg", b"some bytes" * 20), ("31_1_0.jpg", b"more")], zipfile.ZIP_DEFLATED))
    for candidate in (noise, b"PK\x03\x04" + noise + b"PK\x05\x06" + noise):
        try:
            opened(candidate).close()
        except InvalidDataset as error:
            assert error.code in {"invalid_archive", "archive_too_large"}  # noqa: PT017
    data[at % len(data)] ^= 1 + seed
    try:
        with opened(bytes(data)) as archive:
            for entry in archive.entries:
                archive.read(entry)
    except (InvalidDataset, EntryError) as error:
        assert "found" in str(error)  # noqa: PT017

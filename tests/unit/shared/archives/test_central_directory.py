from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.archives.central_directory import read_directory
from shared.archives.directory import Directory
from shared.errors import InvalidDataset
from tests.support.builders import archives
from tests.support.builders.archives import labelled_faces, zipped

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def told(directory: Directory) -> list[tuple[object, ...]]:
    d = directory
    assert d.crcs is not None
    columns = (d.offsets, d.packed_bytes, d.size_bytes, d.crcs, d.encrypted, d.methods, d.modes)
    return list(zip(map(d.name, range(len(d))), *(column.tolist() for column in columns), strict=True))


def told_by_zipfile(data: bytes) -> list[tuple[object, ...]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [
            (
                member.orig_filename,
                member.header_offset,
                member.compress_size,
                member.file_size,
                member.CRC,
                bool(member.flag_bits & 1),
                member.compress_type,
                member.external_attr >> 16,
            )
            for member in archive.infolist()
        ]


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=100)), max_size=6),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.binary(max_size=30),
    st.binary(max_size=30).filter(lambda comment: b"PK" not in comment),  # else both might look for the end in it
)
def test_it_says_what_zipfile_says(files: list[tuple[str, bytes]], method: int, front: bytes, comment: bytes) -> None:
    buffer = io.BytesIO(zipped(files, method))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = comment
    data = front + buffer.getvalue()
    assert told(read_directory(io.BytesIO(data), 10)) == told_by_zipfile(data)


def test_names_without_the_utf8_flag_are_in_code_page_437_as_in_zipfile() -> None:
    data = archives.renamed(zipped([("30_0_0_AA.jpg", b"1")]), b"AA", b"\xe9\x80")
    assert told(read_directory(io.BytesIO(data), 10)) == told_by_zipfile(data)


def test_sizes_and_places_come_from_zip64_fields_where_32_bits_are_not_enough() -> None:
    files = labelled_faces(3)
    data = archives.with_zip64(files)
    directory = read_directory(io.BytesIO(data), 10)
    assert told(directory) == told_by_zipfile(data)
    assert directory.size_bytes.tolist() == [len(content) for _, content in files]


@pytest.mark.parametrize("numbers", [0, 1, 2])
def test_a_zip64_field_that_is_too_short_is_refused(numbers: int) -> None:
    with pytest.raises(InvalidDataset, match="a zip64 field too short"):
        read_directory(io.BytesIO(archives.with_zip64(labelled_faces(3), numbers)), 10)


def test_a_count_without_zip64_holds_the_lower_16_bits_as_in_zipfile() -> None:
    data = archives.wrapped_count(66_000)
    assert told(read_directory(io.BytesIO(data), 70_000)) == told_by_zipfile(data)
    with pytest.raises(InvalidDataset, match="found 66,000 entries in the zip archive's directory, expected 465"):
        read_directory(io.BytesIO(archives.wrapped_count(66_000, 66_001)), 70_000)
    with pytest.raises(InvalidDataset, match="found 65,001 or more entries") as caught:
        read_directory(io.BytesIO(data), 65_000)
    assert caught.value.code == "archive_too_large"


def test_a_count_in_zip64_holds_them_all() -> None:
    with pytest.raises(InvalidDataset, match="found 465 entries in the zip archive's directory, expected 66,001"):
        read_directory(io.BytesIO(archives.many_members(465, claimed=66_001)), 70_000)


def test_a_directory_larger_than_its_entries_can_need_is_not_read(tmp_path: Path) -> None:
    archives.sparse_directory(tmp_path / "sparse.zip", 100_000_000)
    tracemalloc.start()
    try:
        with (
            (tmp_path / "sparse.zip").open("rb") as file,
            pytest.raises(InvalidDataset, match="found a directory of 100,000,000 bytes in the archive") as caught,
        ):
            read_directory(file, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "archive_too_large"
    assert peak < 1_000_000


def test_an_entry_that_reaches_beyond_the_directory_is_refused() -> None:
    data = bytearray(zipped(labelled_faces(2)))
    last = data.rfind(b"PK\x01\x02")
    data[last + 32] = 9  # a comment of nine bytes that are not there
    with pytest.raises(InvalidDataset, match="directory is damaged in entry 2: it ends too early"):
        read_directory(io.BytesIO(bytes(data)), 10)

"""Every dialect of zip that other programs read is read; what is crafted is refused."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import pytest

from shared.archives.archive import Archive
from shared.errors import InvalidDataset
from tests.zips import CONTENT, LIMITS, SAMPLES, Sample, read_sample, table

PAGE = Path(__file__).parents[4] / "docs" / "archives.md"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("unzip") and shutil.which("7z")), reason="needs unzip and 7z")
def test_the_page_is_what_the_command_writes() -> None:
    assert table() == PAGE.read_text(encoding="utf-8"), "python -m tests.zips docs/archives.md"


def test_the_page_has_a_row_for_each_zip() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text(encoding="utf-8").splitlines()[8:]]
    assert rows == [sample.what for sample in SAMPLES]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.what)
def test_a_zip_has_the_outcome_of_the_table(sample: Sample) -> None:
    if sample.names is None:
        with pytest.raises(InvalidDataset, match="found"):
            read_sample(sample.make())
    else:
        assert read_sample(sample.make()) == (sample.names, sample.rejects)


@pytest.mark.parametrize("in_front", [b"", b"#!/bin/sh\n"])
def test_a_zip_over_4_gib_without_zip64_is_read_to_its_end(tmp_path: Path, in_front: bytes) -> None:
    path = tmp_path / "large.zip"
    offsets = [0, 3 * 2**30, 5 * 2**30, 17 * 2**29]  # in a sparse file: gaps between entries take no disk
    directory = b""
    with path.open("wb") as file:
        file.write(in_front)
        for number, offset in enumerate(offsets):
            name = f"30_0_0_{number}.jpg".encode()
            data = CONTENT + name
            crc = zlib.crc32(data)
            about = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, crc, len(data), len(data), len(name), 0)
            file.seek(len(in_front) + offset)
            file.write(b"PK\3\4" + about + name + data)
            directory += b"PK\1\2" + struct.pack("<H", 20) + about
            directory += struct.pack("<3H2L", 0, 0, 0, 0, offset % 2**32) + name
        start = 10 * 2**30
        file.seek(len(in_front) + start)
        file.write(directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 4, 4, len(directory), start % 2**32, 0))
    with Archive(path, LIMITS) as archive:
        contents = [archive.read(entry) for entry in archive.entries]
    assert contents == [CONTENT + f"30_0_0_{number}.jpg".encode() for number in range(4)]

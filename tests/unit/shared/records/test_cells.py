from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.records.cells import from_cell, to_cell
from shared.records.dataset import (
    FaceRow,
    RejectRow,
    read_faces_csv,
    read_rejects_csv,
    write_faces_csv,
    write_rejects_csv,
)
from shared.records.results import result_row

HOSTILE = [
    "=cmd|' /C calc'!A0.jpg",
    "+1+1.jpg",
    "-2+3.jpg",
    "@SUM(A1:A9).jpg",
    "\t=1+1.jpg",
    "\uff1d1+1.jpg",
    "a\x1b[31m.jpg",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_inert_in_every_table_also_after_it_was_saved_again(name: str) -> None:
    for written in (result_row(name, 0.5)[0], faces_cells(name)[1], rejects_cells(name)[0]):
        assert isinstance(written, str)
        assert written.isprintable()
        assert written[0] not in "=+-@\uff1d\t\r"
        again = io.StringIO()
        csv.writer(again).writerow([written])  # as a spreadsheet saves what it shows
        assert next(csv.reader(io.StringIO(again.getvalue()))) == [written]


@pytest.mark.parametrize("name", [*HOSTILE, "'quoted'.jpg", "''=.jpg", "ü.jpg", "", "a\nb\r.jpg", "'"])
def test_programs_have_the_raw_name(name: str) -> None:
    file = io.StringIO(newline="")
    write_faces_csv(file, [FaceRow(0, name, -1, 1, -1, "train", 9, 9)])
    file.seek(0)
    assert [(row.name, row.age, row.ethnicity) for row in read_faces_csv(file)] == [(name, -1, -1)]
    file = io.StringIO(newline="")
    write_rejects_csv(file, [RejectRow(name, "corrupt", f"found {name!r}")])
    file.seek(0)
    assert [row.name for row in read_rejects_csv(file)] == [name]
    assert from_cell(str(result_row(name, 0.5)[0])) == name


@given(st.text(st.characters(max_codepoint=0x23FF)))
def test_the_way_back_is_clear(name: str) -> None:
    assert from_cell(to_cell(name)) == name


def faces_cells(name: str) -> list[str]:
    file = io.StringIO(newline="")
    write_faces_csv(file, [FaceRow(0, name, 30, 1, 0, "train", 9, 9)])
    return list(csv.reader(io.StringIO(file.getvalue(), newline="")))[1]


def rejects_cells(name: str) -> list[str]:
    file = io.StringIO(newline="")
    write_rejects_csv(file, [RejectRow(name, "corrupt", "found")])
    return list(csv.reader(io.StringIO(file.getvalue(), newline="")))[1]

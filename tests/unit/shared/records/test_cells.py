from __future__ import annotations

import csv
import io
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cli.predict_paths import write_rows
from shared.records.cells import from_cell, to_cell
from shared.records.dataset import (
    FaceRow,
    RejectRow,
    read_faces_csv,
    read_rejects_csv,
    write_faces_csv,
    write_rejects_csv,
)
from shared.records.jobs import RESULT_COLUMNS
from shared.records.results import result_row
from tests.support.dashboard_app import open_site

HOSTILE = [
    "=cmd|' /C calc'!A0.jpg",
    "+1+1.jpg",
    "-2+3.jpg",
    "@SUM(A1:A9).jpg",
    "\t=1+1.jpg",
    "\uff1d1+1.jpg",
    "\uff20SUM(A1:A9).jpg",
    "\ufe661+1.jpg",
    "a\x1b[31m.jpg",
    "a\x9b31m.jpg",
    "a\u202egpj.exe",
    "a\u2066b\u2028.jpg",
    ";=1+1.jpg",
    "a; '=1+1.jpg",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_inert_in_every_table_also_after_it_was_saved_again(name: str) -> None:
    for written in (result_row(name, 0.5)[0], faces_cells(name)[1], rejects_cells(name)[0]):
        assert isinstance(written, str)
        assert written.isprintable()
        for cell in (written, *written.split(";")):  # as a spreadsheet that takes semicolons for separators
            assert cell.strip()[0] not in "=+-@\uff1d\uff20\ufe66\t\r"
        again = io.StringIO()
        csv.writer(again).writerow([written])  # as a spreadsheet saves what it shows
        assert next(csv.reader(io.StringIO(again.getvalue()))) == [written]


@pytest.mark.parametrize(
    "name", [*HOSTILE, "'quoted'.jpg", "''=.jpg", "ü.jpg", "", "a\nb\r.jpg", "'", "a␛b␦9b␦.jpg", "a;b.jpg"]
)
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


@given(st.text(st.characters(max_codepoint=0x2430)))
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


def assert_inert(text: str, names: list[str], column: str = "name") -> None:
    """Checks a table of hostile names as a spreadsheet reads it, by any separator, and as a program does."""
    assert not {character for character in text if unicodedata.category(character) in {"Cc", "Cf"}} - {"\n"}
    for line in text.splitlines():
        for separator in ",;":
            for cell in next(csv.reader([line], delimiter=separator)):
                assert cell.lstrip(" '\"")[:1] not in set("=+@\uff1d\uff0b\uff0d\uff20") or cell.startswith("'")
                assert not re.match("-[^0-9]", cell)
    assert [from_cell(row[column]) for row in csv.DictReader(io.StringIO(text))] == names


FILES = [name for name in HOSTILE if "/" not in name]


def test_faces_and_rejects_over_http_are_inert_for_hostile_names(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        sha256 = site.builder.dataset(len(FILES), names=tuple(FILES))
        rejects = io.StringIO(newline="")
        write_rejects_csv(rejects, [RejectRow(name, "corrupt", name) for name in FILES])
        site.store.put(f"datasets/{sha256}/rejects.csv", rejects.getvalue().encode())
        for table in ("faces.csv", "rejects.csv"):
            answer = site.web.get(f"/api/v1/datasets/{sha256}/{table}", buffered=True)
            assert answer.status_code == 200
            assert_inert(answer.text, FILES)


def test_what_the_command_line_writes_is_inert_for_hostile_names(tmp_path: Path) -> None:
    rows = [
        dict.fromkeys(RESULT_COLUMNS) | {"name": name, "gender": "female", "probability_female": 0.75} for name in FILES
    ]
    with (tmp_path / "out.csv").open("w", newline="") as file:
        write_rows(file, rows)
    assert_inert((tmp_path / "out.csv").read_text(), FILES)

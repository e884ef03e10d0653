from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.records.dataset import (
    AGE_BANDS,
    FaceRow,
    RejectRow,
    age_band,
    read_faces_csv,
    read_rejects_csv,
    write_faces_csv,
    write_rejects_csv,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]))


def test_every_age_has_a_band() -> None:
    assert [AGE_BANDS[age_band(age)] for age in (0, 9, 10, 69, 70, 120)] == [
        "0-9",
        "0-9",
        "10-19",
        "60-69",
        "70+",
        "70+",
    ]


@given(st.lists(NAMES, max_size=5))
def test_names_travel_through_the_tables_unharmed(names: list[str]) -> None:
    faces = [FaceRow(i, name, 30, 1, 4, "validation", 200, 180) for i, name in enumerate(names)]
    rejects = [RejectRow(name, "no_label", f"found {name!r}") for name in names]
    faces_csv, rejects_csv = io.StringIO(newline=""), io.StringIO(newline="")
    write_faces_csv(faces_csv, faces)
    write_rejects_csv(rejects_csv, rejects)
    for file in (faces_csv, rejects_csv):
        file.seek(0)
    assert read_faces_csv(faces_csv) == faces
    assert read_rejects_csv(rejects_csv) == rejects


def test_a_table_with_other_columns_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"found the columns \['a', 'b'\], expected \['name', 'reason', 'detail'\]"):
        read_rejects_csv(io.StringIO("a,b\r\n"))
    with pytest.raises(ValueError, match="found the columns None"):
        read_faces_csv(io.StringIO(""))

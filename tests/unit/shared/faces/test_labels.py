from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.faces.labels import ETHNICITIES, GENDERS, Label, LabelError, label_or_none, parse_label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("24_0_1.jpg", Label(24, 0, 1)),
        ("1_0_0_20161219140623097.jpg.chip.jpg", Label(1, 0, 0)),
        ("24_0_1_20170116220224657 .jpg.chip.jpg", Label(24, 0, 1)),
        ("24_0_1 .jpg", Label(24, 0, 1)),
        ("24_0_1", Label(24, 0, 1)),
        ("24_0_1_2016", Label(24, 0, 1)),
        ("55_0_0_20170116232725357jpg.chip.jpg", Label(55, 0, 0)),
        ("UTKFace/part1/110_1_4_x.PNG", Label(110, 1, 4)),
        ("UTKFace\\part1\\110_1_4_x.webp", Label(110, 1, 4)),
        ("120_1_3_<b>ü\u202e.bmp", Label(120, 1, 3)),
        ("024_0_1_line\nbreak.jpg", Label(24, 0, 1)),
        ("0_1_2_" + "x" * 300 + ".jpg", Label(0, 1, 2)),
    ],
)
def test_names_as_in_utkface_carry_their_label(name: str, label: Label) -> None:
    assert parse_label(name) == label


@pytest.mark.parametrize(
    "name",
    [
        "portrait.jpg",
        "61_1_20170109142408075.jpg.chip.jpg",
        "61_3_20170109150557335.jpg.chip.jpg",
        "24_0.jpg",
        "-1_0_0.jpg",
        "24_0_1x.jpg",
        "٢٤_0_1.jpg",
        "24_0_1/portrait.jpg",
        "9" * 5000 + "_0_0.jpg",
        "",
    ],
)
def test_names_without_the_form_or_lacking_a_field_carry_no_label(name: str) -> None:
    with pytest.raises(LabelError, match="expected age_gender_ethnicity") as caught:
        parse_label(name)
    assert caught.value.reject.reason == "no_label"
    assert len(caught.value.reject.detail) < 200
    assert label_or_none(name) is None


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("300_0_0.jpg", "found age 300, expected 0-120"),
        ("2017_01_02.jpg", "found age 2017, expected 0-120"),
        ("24_3_0.jpg", "found gender 3, expected 0 (male) or 1 (female)"),
        ("24_0_5.jpg", "found ethnicity 5, expected 0-4"),
    ],
)
def test_fields_out_of_range_are_told_with_what_was_found_and_expected(name: str, detail: str) -> None:
    with pytest.raises(LabelError) as caught:
        parse_label(name)
    assert (caught.value.reject.reason, caught.value.reject.detail) == ("invalid_label", detail)


@pytest.mark.parametrize("rest", [" ", ".", "_", "a", " .", "._ ", ".a ", "\n"])
def test_a_name_takes_time_by_its_length_and_no_more(rest: str) -> None:
    started = time.monotonic()
    for end in ("", "!", ".jpg"):
        label_or_none("24_0_1_" + rest * (65_000 // len(rest)) + end)
    assert time.monotonic() - started < 1.0


@given(
    st.integers(0, 120),
    st.integers(0, len(GENDERS) - 1),
    st.integers(0, len(ETHNICITIES) - 1),
    st.text(st.characters(exclude_characters="/\\", exclude_categories=["Cs"])),
)
def test_any_text_may_follow_the_label(age: int, gender: int, ethnicity: int, rest: str) -> None:
    assert label_or_none(f"folder/{age}_{gender}_{ethnicity}_{rest}.jpg") == Label(age, gender, ethnicity)


@given(st.text())
def test_any_name_gives_a_label_or_a_reject(name: str) -> None:
    assert label_or_none(name) is None or 0 <= parse_label(name).age <= 120

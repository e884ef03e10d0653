"""Labels as people have them: what is recognised, and what is said of it."""

from __future__ import annotations

import dataclasses
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from shared.archives.archive import Archive, ArchiveLimits
from shared.errors import InvalidDataset, InvalidMessage
from shared.faces.decode import ImageLimits
from shared.faces.label_words import age_of, ethnicity_of, gender_by_word
from shared.faces.labelling import LabelSpec
from shared.faces.labels import UNKNOWN, Label
from shared.faces.rejects import Reject
from shared.records.dataset import FACES_CSV, read_faces_csv
from shared.runtime.settings import Settings
from tests.support.builders.archives import face_jpeg, zipped
from tests.support.builders.layouts import FACES, LAYOUTS
from trainer.data.ingest import ingest
from trainer.data.labelling.recognize import Labelling, recognize_labels

LIMITS = ArchiveLimits.from_settings(Settings())


def recognized(files: dict[str, bytes | str], **spec: Any) -> tuple[dict[str, Label | Reject | None], Labelling]:
    encoded = [(name, data.encode() if isinstance(data, str) else data) for name, data in files.items()]
    with Archive(io.BytesIO(zipped(encoded)), LIMITS) as archive:
        found = recognize_labels(archive, LabelSpec.parse(spec))
        return dict(zip((entry.name for entry in archive.entries), found.outcomes, strict=True)), found


def genders(files: dict[str, bytes | str], **spec: Any) -> list[int | None]:
    outcomes, _ = recognized(files, **spec)
    return [outcome.gender if isinstance(outcome, Label) else None for outcome in outcomes.values()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_a_dataset_without_a_manual_step(layout: str, tmp_path: Path) -> None:
    if "HEIC" in layout:
        pytest.importorskip("pillow_heif")
    archive = tmp_path / "archive"
    archive.write_bytes(LAYOUTS[layout]())
    summary = ingest(archive, tmp_path / "dataset", LIMITS, ImageLimits.from_settings(Settings()))
    unknown = 3 if layout == "Adience" else 0  # whose gender nobody knows
    assert summary.rejects == ({"no_label": unknown} if unknown else {})
    assert (summary.faces, summary.images_seen) == (FACES - unknown, FACES)
    assert summary.labels is not None
    assert sum(value.files for value in summary.labels.values if value.gender) == FACES - unknown
    has_age = layout in {"UTKFace", "UTKFace.tar.gz", "FairFace", "Adience", "Hugging Face imagefolder"}
    assert summary.labels.with_age == (FACES - unknown if has_age else 0)
    assert sum(sum(band.values()) for band in summary.ages.values()) == summary.labels.with_age
    with (tmp_path / "dataset" / FACES_CSV).open(encoding="utf-8", newline="") as file:
        rows = read_faces_csv(file)
    assert {row.gender for row in rows} == {0, 1}
    assert all((row.age == UNKNOWN) != has_age for row in rows)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quote_that_is_never_closed_costs_no_other_row(end: str) -> None:
    rows = [
        "file,note,gender",
        'a.jpg,"two, and',
        'three lines",male',
        'b.jpg,"never closed,female',
        'c.jpg,5" tall,male',
        'd.jpg,"said ""no""",female',
        *(f"{number}.jpg,,{('male', 'female')[number % 2]}" for number in range(200)),
    ]
    images = {f"{name}.jpg": b"" for name in ["a", "b", "c", "d", *range(200)]}
    table, *found = genders({"labels.csv": end.join(rows), **images})
    assert table is None
    assert found == [0, 1, 0, 1, *(number % 2 for number in range(200))]


def test_of_entries_that_share_a_name_the_last_counts_as_for_whatever_unpacks_them() -> None:
    def table(first: str) -> bytes:
        return "\n".join(["file,gender", f"faces/a.jpg,{first}", "faces/b.jpg,female", ""]).encode()

    old = [("faces/a.jpg", b"1"), ("faces/b.jpg", b"1"), ("labels.csv", table("male"))]
    new = [("labels.csv", table("female")), ("faces/b.jpg", b"2")]
    with Archive(io.BytesIO(zipped([*old, *new])), LIMITS) as archive:
        found = recognize_labels(archive)
    told = [outcome.reason if isinstance(outcome, Reject) else outcome and outcome.gender for outcome in found.outcomes]
    assert told == [1, "superseded", "superseded", None, 1]
    assert (found.report.labelled, found.report.unlabelled) == (2, 0)

    with Archive(io.BytesIO(zipped([("30_1_0_1.jpg", b"1"), ("30_1_0_1.jpg", b"2")])), LIMITS) as archive:
        found = recognize_labels(archive)
    assert [isinstance(outcome, Label) for outcome in found.outcomes] == [False, True]
    assert found.report.labelled == 1


def test_what_was_recognised_is_said_in_one_line() -> None:
    _, found = recognized({"hombres/a.jpg": b"", "hombres/b.jpg": b"", "mujeres/c.jpg": b"", "notes/d.jpg": b""})
    assert found.report.text == (
        "labels from folders; hombres = male (2), mujeres = female (1); age for 0, ethnicity for 0; "
        "1 file without a label, such as 'notes/d.jpg'"
    )
    _, nothing = recognized({"a.jpg": b"", "b.jpg": b""})
    assert nothing.report.text == "no labels recognised in 2 files"


@pytest.mark.parametrize(
    ("male", "female"),
    [
        ("male", "female"),
        ("Man", "Woman"),
        ("MEN", "WOMEN"),
        ("m", "f"),
        ("0", "1"),
        ("boys", "girls"),
        ("Männer", "Frauen"),
        ("hommes", "femmes"),
        ("uomini", "donne"),
        ("homens", "mulheres"),
        ("мужчины", "женщины"),
        ("男性", "女性"),
        ("erkek", "kad\u0131n"),
        ("01_male_faces", "02_female_faces"),
        ("train/male/cropped", "train/female/cropped"),
    ],
)
def test_folders_name_genders_in_many_ways(male: str, female: str) -> None:
    assert genders({f"x/{male}/1.jpg": b"", f"x/{female}/1.jpg": b"", f"{female}/deep/er/2.jpg": b""}) == [0, 1, 1]


def test_letters_and_digits_count_only_where_no_words_do_and_persons_are_no_genders() -> None:
    assert genders({"0/male/1.jpg": b"", "1/male/2.jpg": b"", "0/female/3.jpg": b"", "m/female/4.jpg": b""}) == [
        0,
        0,
        1,
        1,
    ]
    assert gender_by_word("Thomas_Mann") is None
    assert gender_by_word("female and male") is None


def test_names_that_say_more_win_over_folders_that_say_as_much() -> None:
    outcomes, found = recognized({"female/24_1_2_a.jpg": b"", "male/30_0_1_b.jpg": b""})
    assert found.report.source == "names"
    assert list(outcomes.values()) == [Label(24, 1, 2), Label(30, 0, 1)]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("labels.csv", "file,gender\na.jpg,male\nb.jpg,female\n"),
        ("labels.csv", "\ufefffile;sex\r\na.jpg;M\r\nb.jpg;F\r\n"),
        ("labels.tsv", "image_id\tGender\na\t0\nb\t1\n"),
        ("x/labels.csv", "path,label\nphotos/a.jpg,man\nphotos\\b.jpg,woman\n"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "gender": "male"}\n{"file_name": "b.jpg", "gender": "female"}\n'),
        ("attr.csv", "image_id,Smiling,Male\na.png,1,1\nb.png,-1,-1\n"),
        ("attr.csv", "name,is_female\na.jpg,False\nb.jpg,True\n"),
        ("list.txt", "2\nSmiling Male\na.jpg  1  1\nb.jpg -1 -1\n"),
    ],
)
def test_tables_of_many_kinds_are_read(table: str, text: str) -> None:
    files: dict[str, bytes | str] = {"photos/a.jpg": b"", "photos/b.jpg": b"", table: text}
    outcomes, found = recognized(files)
    assert [outcomes["photos/a.jpg"], outcomes["photos/b.jpg"]] == [
        Label(UNKNOWN, 0, UNKNOWN),
        Label(UNKNOWN, 1, UNKNOWN),
    ]
    assert outcomes[table] is None
    assert found.report.tables == (table,)


def test_a_row_that_is_not_understood_is_told_and_costs_its_own_file() -> None:
    rows = "file,gender,age,race\na.jpg,male,,\nb.jpg,female,33,Black\nc.jpg,u,20,Indian\n"
    outcomes, found = recognized({"a.jpg": b"", "b.jpg": b"", "c.jpg": b"", "d.jpg": b"", "t.csv": rows})
    assert outcomes["a.jpg"] == Label(UNKNOWN, 0, UNKNOWN)
    assert outcomes["b.jpg"] == Label(33, 1, 1)
    assert outcomes["c.jpg"] == Reject("no_label", "found 'u' in the column 'gender', expected a gender")
    assert outcomes["d.jpg"] == Reject("no_label", "found no row for 'd.jpg' in the table, expected one")
    assert found.report.columns == {"file": "file", "gender": "gender", "age": "age", "ethnicity": "race"}
    assert [(value.value, value.gender) for value in found.report.values] == [
        ("male", "male"),
        ("female", "female"),
        ("u", None),
    ]
    assert found.report.examples == ("c.jpg", "d.jpg")


def test_files_of_one_name_in_two_folders_are_told_apart_by_the_table_s_paths() -> None:
    table = "file,gender\ntrain/1.jpg,Male\nval/1.jpg,Female\n"
    assert genders({"f/train/1.jpg": b"", "f/val/1.jpg": b"", "labels.csv": table}) == [0, 1, None]
    beside: dict[str, bytes | str] = {
        "train/1.jpg": b"",
        "test/1.jpg": b"",
        "train/metadata.csv": "file_name,gender\n1.jpg,man\n",
        "test/metadata.csv": "file_name,gender\n1.jpg,woman\n",
    }
    assert genders(beside) == [0, 1, None, None]


@pytest.mark.parametrize("folder", ["", "faces/"])
@pytest.mark.parametrize("written", ["1.jpg", "1", "1.png"])
def test_a_table_beside_a_folder_of_its_name_names_files_in_it(folder: str, written: str) -> None:
    files: dict[str, bytes | str] = {
        f"{folder}train/1.jpg": b"",
        f"{folder}val/1.jpg": b"",
        f"{folder}train.csv": f"file,gender\n{written},Male\n",
        f"{folder}val.csv": f"file,gender\n{written},Female\n",
    }
    assert genders(files) == [0, 1, None, None]


def test_a_row_of_a_file_that_is_not_there_labels_no_other_of_its_folder() -> None:
    faces = ["u/face.1.a.jpg", "v/face.2.b.jpg"]
    table = "file,gender\nu/face.3.c.jpg,Female\nu/face.1.a.jpg,Male\nv/face.2.b.jpg,Female\n"
    assert genders({**dict.fromkeys(faces, b""), "t.csv": table}) == [0, 1, None]


def test_a_message_says_what_guessing_cannot_know() -> None:
    files: dict[str, bytes | str] = {"grupo a/1.jpg": b"", "grupo b/2.jpg": b"", "x/3.jpg": b""}
    assert genders(files) == [None, None, None]
    assert genders(files, male=["grupo a"], female="grupo b") == [0, 1, None]
    table: dict[str, bytes | str] = {"1.jpg": b"", "2.jpg": b"", "t.csv": "who,what,when\n1.jpg,A,31\n2.jpg,B,45\n"}
    spec = {"table": "t.csv", "file": "who", "gender": "what", "age": "when", "male": ["A"], "female": ["B"]}
    outcomes, _ = recognized(table, **spec)
    assert [outcomes["1.jpg"], outcomes["2.jpg"]] == [Label(31, 0, UNKNOWN), Label(45, 1, UNKNOWN)]
    flipped: dict[str, bytes | str] = {
        "30_0_0_a.jpg": b"",
        "30_1_0_b.jpg": b"",
        "t.csv": "file,gender\n30_0_0_a.jpg,f\n",
    }
    assert genders(flipped, source="table")[:2] == [1, None]


CODES = {
    "UTKFace's": (["0", "1"], [0, 1]),
    "UTKFace's, with decimals and gaps": (["0.0", "1.0", "", "nan"], [0, 1, None, None]),
    "ISO 5218": (["1", "2"], [0, 1]),
    "ISO 5218 with its unknowns": (["0", "1.0", "2", "9"], [None, 0, 1, None]),
    "counted from -1": (["-1", "1"], [None, None]),
    "counted from 2": (["2", "3"], [None, None]),
    "more than genders": (["0", "1", "3"], [None, None, None]),
    "beside a word": (["0", "1", "unknown"], [None, None, None]),
}


@pytest.mark.parametrize("codes", CODES)
def test_digits_of_a_column_are_read_by_all_that_stand_in_it(codes: str) -> None:
    written, expected = CODES[codes]
    files: dict[str, bytes | str] = {f"face{i}.jpg": b"" for i in range(len(written))}
    # After the first rows, which tell the columns apart, so that all of the column must have been looked at.
    rows = [f"elsewhere{i}.jpg,{written[0]}" for i in range(300)]
    rows += [f"face{i}.jpg,{code}" for i, code in enumerate(written)]
    assert genders({**files, "t.csv": "\n".join(["file,gender", *rows])})[:-1] == expected


@pytest.mark.parametrize("names", [("men.csv", "women.csv"), ("0/metadata.csv", "1/metadata.csv")])
def test_digits_mean_the_same_in_all_tables_of_an_archive(names: tuple[str, str]) -> None:
    men, women = names
    files: dict[str, bytes | str] = {
        "a.jpg": b"",
        "b.jpg": b"",
        men: "file,sex\na.jpg,1\n",
        women: "file,sex\nb.jpg,2\n",
    }
    assert genders(files)[:2] == [0, 1]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["0", "1"], [0, 1]),
        (["1", "2"], [0, 1]),
        (["0", "1", "2", "9"], [None, 0, 1, None]),
        (["-1", "1"], [None, None]),
        (["1", "2", "3"], [None, None, None]),
        (["2/0", "2/1"], [None, None]),  # which of them is the gender
        (["2024/0", "2024/1"], [0, 1]),
        (["1", "other", "2"], [0, None, 1]),
    ],
)
def test_folders_named_by_digits_are_read_by_all_of_them(folders: list[str], expected: list[int | None]) -> None:
    assert genders({f"x/{folder}/a.jpg": b"" for folder in folders}) == expected


LETTERS = {
    "hombre, mujer": (["H", "M"], [0, 1]),
    "man, vrouw, or mujer, varón": (["M", "V", "x"], [None, None, None]),
    "man, kvinna": (["m", "k", ""], [0, 1, None]),
    "male, female": (["M", "F", "u"], [0, 1, None]),
    "Mann, weiblich": (["m", "w", "d"], [0, 1, None]),
    "homme, femme": (["H", "F"], [0, 1]),
    "m alone": (["m"], [0]),
    "v alone": (["v", "male"], [None, 0]),
}


@pytest.mark.parametrize("letters", LETTERS)
def test_letters_are_read_by_all_that_stand_together(letters: str) -> None:
    written, expected = LETTERS[letters]
    faces: dict[str, bytes | str] = {f"face{i}.jpg": b"" for i in range(len(written))}
    rows = [f"face{i}.jpg,{letter}" for i, letter in enumerate(written)]
    assert genders({**faces, "t.csv": "\n".join(["file,sex", *rows])})[:-1] == expected
    tables = {f"part{i}/t.csv": f"file,sex\n{row}\n" for i, row in enumerate(rows)}
    assert genders({**faces, **tables})[: len(faces)] == expected


@pytest.mark.parametrize("letters", ["HM", "mk", "mf", "mw", "hf"])
def test_folders_and_lists_named_by_letters_are_read_by_all_of_them(letters: str) -> None:
    assert genders({f"x/{letter}/a.jpg": b"" for letter in letters}) == [0, 1]
    assert genders({"1.jpg": b"", "2.jpg": b"", **{f"{a}.txt": f"{i}.jpg" for i, a in enumerate(letters, 1)}})[:2] == [
        0,
        1,
    ]


def test_lists_named_by_digits_are_read_by_all_of_them() -> None:
    lists = {"1.txt": "a.jpg\n", "2.txt": "b.jpg\n"}
    assert genders({"a.jpg": b"", "b.jpg": b"", **lists})[:2] == [0, 1]
    assert genders({"a.jpg": b"", "b.jpg": b"", **lists, "3.txt": "c.jpg\n"})[:2] == [None, None]


def test_what_a_digit_was_taken_for_is_said_also_where_it_was_not_understood() -> None:
    files: dict[str, bytes | str] = {"a.jpg": b"", "b.jpg": b"", "c.jpg": b""}
    _, found = recognized({**files, "t.csv": "file,gender\na.jpg,1\nb.jpg,2\nc.jpg,0\n"})
    assert "1 = male (1), 2 = female (1), 0 = not understood (1)" in found.report.text
    outcomes, found = recognized({**files, "t.csv": "file,gender\na.jpg,3\nb.jpg,4\n"})
    assert outcomes["a.jpg"] == Reject("no_label", "found '3' in the column 'gender', expected a gender")
    assert found.report.text == "no labels recognised in 4 files; 3 = not understood (1), 4 = not understood (1)"


def test_what_the_user_says_of_digits_wins() -> None:
    for header in ("gender", "male"):
        files: dict[str, bytes | str] = {"a.jpg": b"", "b.jpg": b"", "t.csv": f"file,{header}\na.jpg,1\nb.jpg,0\n"}
        assert genders(files, male=["0"], female=["1"])[:2] == [1, 0]
    assert genders({"1/a.jpg": b"", "2/b.jpg": b""}, male=["2"], female=["1"]) == [1, 0]


def test_a_row_labels_no_file_of_another_part() -> None:
    """As FairFace is published: both tables, and only one of the folders."""
    tables: dict[str, bytes | str] = {
        "fairface_label_train.csv": "file,age,gender\ntrain/1.jpg,20-29,Male\ntrain/2.jpg,20-29,Male\n",
        "fairface_label_val.csv": "file,age,gender\nval/1.jpg,30-39,Female\nval/2.jpg,30-39,Male\n",
    }
    assert genders({"val/1.jpg": b"", "val/2.jpg": b"", **tables})[:2] == [1, 0]
    # Nor does the table of a part that is not there.
    del tables["fairface_label_val.csv"]
    assert genders({"val/1.jpg": b"", "val/2.jpg": b"", **tables}) == [None, None, None]
    people = "name,gender\nJ.K.Rowling.jpg,female\nJ.P.Morgan.jpg,male\n"
    assert genders({"J.P.Morgan.jpg": b"", "t.csv": people})[0] == 0


@pytest.mark.parametrize("folder", ["/home/me/faces/", "C:\\faces\\", "../", "./", ""])
def test_paths_of_another_machine_name_files_by_the_folders_that_are_there(folder: str) -> None:
    table = f"file,gender\n{folder}train/1.jpg,Male\n{folder}val/1.jpg,Female\n{folder}val/2.jpg,Female\n"
    files: dict[str, bytes | str] = {"train/1.jpg": b"", "val/1.jpg": b"", "val/2.jpg": b"", "t.csv": table}
    assert genders(files)[:3] == [0, 1, 1]
    renamed: dict[str, bytes | str] = {"photos/1.jpg": b"", "photos/2.jpg": b"", "t.csv": table.replace("train/1", "9")}
    assert genders(renamed)[:2] == [1, 1]


def test_a_name_of_several_files_is_told_and_labels_none() -> None:
    outcomes, _ = recognized({"a/1.jpg": b"", "b/1.jpg": b"", "t.csv": "file,gender\n1.jpg,male\n"})
    expected = Reject("no_label", "found '1.jpg' in the table, which names 2 files, expected its folder as well")
    assert outcomes["a/1.jpg"] == outcomes["b/1.jpg"] == expected


def test_a_file_that_is_called_male_and_female_has_no_label() -> None:
    said = Reject("no_label", "found rows that call it male and rows that call it female, expected one gender")
    one = "file,gender\na.jpg,male\na.jpg,female\na.jpg,male\nb.jpg,male\nb.jpg,male\n"
    outcomes, found = recognized({"a.jpg": b"", "b.jpg": b"", "t.csv": one})
    assert [outcomes["a.jpg"], outcomes["b.jpg"]] == [said, Label(UNKNOWN, 0, UNKNOWN)]
    assert found.report.labelled == 1
    # Two parts in one folder: nobody can tell whose 1.jpg it is.
    parts: dict[str, bytes | str] = {"1.jpg": b"", "train.csv": "file,gender\ntrain/1.jpg,male\n"}
    assert genders({**parts, "val.csv": "file,gender\nval/1.jpg,female\n"})[0] is None
    assert genders({"1.jpg": b"", "2.jpg": b"", "men.txt": "1.jpg\n2.jpg\n", "women.txt": "1.jpg\n"})[:2] == [None, 0]


@pytest.mark.parametrize("number", ["id", ""])
@pytest.mark.parametrize("kept", [300, 30, 1])
def test_running_numbers_are_no_names_of_files_where_names_stand_beside_them(number: str, kept: int) -> None:
    names = [f"{(7 * index) % 300}.jpg" for index in range(300)]  # in another order than the numbers
    rows = [f"{index},{name},{'female' if index % 2 else 'male'}" for index, name in enumerate(names)]
    files: dict[str, bytes | str] = dict.fromkeys(names[-kept:], b"")
    outcomes, found = recognized({**files, "t.csv": "\n".join([f"{number},filename,gender", *rows])})
    assert found.report.columns["file"] == "filename"
    expected = {name: Label(UNKNOWN, index % 2, UNKNOWN) for index, name in enumerate(names)}
    assert {name: outcomes[name] for name in files} == {name: expected[name] for name in files}


def test_what_the_user_says_of_a_table_or_of_meanings_wins_over_names() -> None:
    files: dict[str, bytes | str] = {"20_0_0.jpg": b"", "30_1_0.jpg": b""}
    table = {"labels.csv": "file,gender\n20_0_0.jpg,female\n30_1_0.jpg,male\n"}
    assert genders({**files, **table})[:2] == [0, 1]
    for spec in ({"table": "labels.csv"}, {"gender": "gender"}, {"file": "file"}):
        assert genders({**files, **table}, **spec)[:2] == [1, 0]
    with pytest.raises(InvalidDataset, match=r"labels\.table: found no 'other\.csv'"):
        recognized({**files, **table}, table="other.csv")
    grouped: dict[str, bytes | str] = {"grupo a/20_0_0.jpg": b"", "grupo b/30_1_0.jpg": b""}
    assert genders(grouped, male=["grupo b"], female=["grupo a"]) == [1, 0]


def test_a_column_that_no_table_has_is_said_and_not_guessed() -> None:
    table = "file,gender,gender_corrected\n1.jpg,male,female\n"
    files: dict[str, bytes | str] = {"1.jpg": b"", "t.csv": table}
    assert genders(files, gender="gender_corrected")[0] == 1
    for role in ("file", "gender", "age", "ethnicity"):
        said = f"labels.{role}: found no column 'gender_correct', expected one of file, gender, gender_corrected"
        with pytest.raises(InvalidDataset, match=said):
            recognized(files, **{role: "gender_correct"})
    # Another table may have it.
    assert genders({**files, "other.csv": "file,sexo\n1.jpg,female\n"}, gender="sexo")[0] == 1


def test_files_beside_images_hide_neither_them_nor_the_table() -> None:
    images = [f"img/{index:04}.jpg" for index in range(80)]
    beside = [f"img/{index:04}.{kind}" for index in range(80) for kind in ("json", "txt")]
    table = "id,gender\n" + "\n".join(f"{index:04},{'male' if index % 2 else 'female'}" for index in range(80))
    found = genders({**dict.fromkeys(images, b""), **dict.fromkeys(beside, b"1 2 3"), "labels.csv": table})
    assert found[:80] == [1 - index % 2 for index in range(80)]


def test_a_table_may_be_larger_than_an_image() -> None:
    table = b"file,gender\n" + b"\n".join(b"elsewhere%d.jpg,male" % index for index in range(100)) + b"\n1.jpg,female\n"
    limits = dataclasses.replace(LIMITS, max_image_bytes=64)
    with Archive(io.BytesIO(zipped([("1.jpg", b""), ("t.csv", table)])), limits) as archive:
        label, of_table = recognize_labels(archive).outcomes
        assert (label, of_table) == (Label(UNKNOWN, 1, UNKNOWN), None)


def test_a_named_table_that_cannot_be_read_says_why() -> None:
    whole = zipped([("1.jpg", b""), ("t.csv", b"file,gender\n1.jpg,female\n")])
    with (
        Archive(io.BytesIO(whole.replace(b"1.jpg,female", b"1.jpg,femalE")), LIMITS) as archive,
        pytest.raises(InvalidDataset, match=r"labels\.table: t\.csv: .*checksum"),
    ):
        recognize_labels(archive, LabelSpec(table="t.csv"))


def test_accents_are_compared_composed() -> None:
    names = ["José.jpg", "Zoë.jpg", "한글.jpg"]
    table = "file,gender\n" + "\n".join(f"{unicodedata.normalize('NFC', name)},female" for name in names)
    files: dict[str, bytes | str] = {unicodedata.normalize("NFD", name): b"" for name in names}
    assert genders({**files, "t.csv": table})[:3] == [1, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nfile;gender\na.jpg;male\nb.jpg;female\n",
        "file,gender,\na.jpg,male\nb.jpg,female\n",
        "file,gender,,\na.jpg,male,,\nb.jpg,female,,\n",
        "a.jpg,male\nb.jpg,female\n",
        "a.jpg male\nb.jpg female\n",
        "image_id,Male\nc.jpg,\na.jpg,1\nb.jpg,-1\n",
        "image_id,who\nc.jpg,NaN\na.jpg,male\nb.jpg,female\n",
    ],
)
def test_tables_are_read_as_programs_write_them(text: str) -> None:
    assert genders({"a.jpg": b"", "b.jpg": b"", "t.csv": text}) == [0, 1, None]


def test_meanings_that_the_user_gives_fit_numbers_with_decimals() -> None:
    files: dict[str, bytes | str] = {"a.jpg": b"", "b.jpg": b"", "t.csv": "file,gender\na.jpg,1.0\nb.jpg,0.0\n"}
    assert genders(files, male=["1"], female=["0"])[:2] == [0, 1]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"table": "none.csv"}, "labels.table: found no 'none.csv' in the archive"),
        ({"table": "t.csv", "gender": "sex"}, "labels.gender: found no column 'sex', expected one of file, gender"),
    ],
)
def test_a_table_or_column_that_is_not_there_is_said(spec: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidDataset, match=said):
        recognized({"1.jpg": b"", "t.csv": "file,gender\n1.jpg,m\n"}, **spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"sauce": "names"}, "labels.sauce: found 'names', expected one of source, table"),
        ({"source": "dreams"}, "labels.source: found 'dreams'"),
        ("[1", "labels: found '\\[1', expected a JSON object"),
        ({"male": 1.5}, "labels.male: found 1.5"),
    ],
)
def test_a_labels_block_that_makes_no_sense_is_refused(spec: object, said: str) -> None:
    with pytest.raises(InvalidMessage, match=said) as caught:
        LabelSpec.parse(spec)
    assert caught.value.code == "invalid_params"


def test_a_labels_block_may_come_as_text_and_none_is_none() -> None:
    assert LabelSpec.parse('{"male": "a, b"}') == LabelSpec(male=("a", "b"))
    assert LabelSpec.parse(None) is LabelSpec.parse({}) is None


@pytest.mark.parametrize(
    "hostile",
    [
        "file,gender\n" + '"' * 1000,
        "file," + "x" * 200_000 + "\n1.jpg,male\n",
        "a,b\n" * 3,
        '{"a": ' * 50_000,
        "\0\0\0",
        "file,gender\n\n\n,\n",
        "9\n",
        "9\n9\n9",
    ],
)
def test_a_damaged_table_is_no_table(hostile: str) -> None:
    for name in ("t.csv", "t.jsonl", "male.txt"):
        outcomes, found = recognized({"m/1.jpg": b"", "f/2.jpg": b"", name: hostile})
        assert found.report.source == "folders"
        assert isinstance(outcomes[name], Reject)


def test_ages_and_ethnicities_are_read_as_tables_have_them() -> None:
    ages = {
        "25": 25,
        "25.0": 25,
        "50-59": 54,
        "(25, 32)": 28,
        "more than 70": 70,
        "0-2": 1,
        "None": -1,
        "": -1,
        "-1": -1,
        "999": -1,
    }
    assert {text: age_of(text) for text in ages} == ages
    found = [ethnicity_of(text) for text in ("White", "Latino_Hispanic", "East Asian", "Middle Eastern", "2", "x", "")]
    assert found == [0, 4, 2, 4, 2, UNKNOWN, UNKNOWN]


def test_a_dataset_that_is_refused_keeps_its_rejects(tmp_path: Path) -> None:
    files = [(f"{'mf'[i % 2]}/{i}.jpg", face_jpeg(i, i % 2)) for i in range(4)]
    (tmp_path / "faces.zip").write_bytes(zipped([*files, ("m/broken.jpg", b"no"), ("loose.jpg", face_jpeg(9))]))
    with pytest.raises(InvalidDataset, match="found 4 usable faces, expected at least 20"):
        ingest(tmp_path / "faces.zip", tmp_path / "d", LIMITS, ImageLimits.from_settings(Settings()))
    refusal = json.loads((tmp_path / "d" / "refusal.json").read_text())
    assert (refusal["code"], refusal["usable"], refusal["images_seen"]) == ("too_few_faces", 4, 6)
    assert refusal["rejects"] == {"invalid_image": 1, "no_label": 1}
    rejects = (tmp_path / "d" / "rejects.csv").read_text()
    assert "m/broken.jpg,invalid_image," in rejects
    assert "loose.jpg,no_label," in rejects

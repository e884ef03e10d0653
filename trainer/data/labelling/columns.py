"""Which column of a table names the files, the gender, the age and the ethnicity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from shared.errors import InvalidDataset
from shared.faces import label_words as words
from shared.faces.labelling import LabelSpec
from trainer.data.labelling.entry_index import EntryIndex, has_image_extension

_FILE_COLUMNS: Final = frozenset(
    [
        "file",
        "filename",
        "filepath",
        "path",
        "image",
        "imageid",
        "imagename",
        "imagepath",
        "imagefile",
        "img",
        "imgpath",
        "imgname",
        "imgid",
        "photo",
        "picture",
        "pic",
        "name",
        "id",
        "datei",
        "dateiname",
        "archivo",
        "fichier",
        "bild",
        "imagen",
    ]
)
_GENDER_COLUMNS: Final = frozenset(
    ["gender", "sex", "genero", "sexo", "geschlecht", "genre", "sexe", "sesso", "genere", "geslacht", "пол", "性别"]
)
_AGE_COLUMNS: Final = frozenset(
    ["age", "ages", "agegroup", "agerange", "ageyears", "edad", "alter", "eta", "idade", "leeftijd", "возраст"]
)
_ETHNICITY_COLUMNS: Final = frozenset(
    ["ethnicity", "race", "ethnie", "etnia", "etnicidad", "raza", "rasse", "ethnicgroup"]
)


class Columns(NamedTuple):
    """Which columns of a table say what.

    Attributes:
        yes: the gender of which the gender's column is true, as one that is called Male; None where it names genders.
    """

    files: tuple[int, ...]
    gender: int
    yes: int | None
    age: int | None
    ethnicity: int | None


def find_columns(
    header: Sequence[str], sample: Sequence[Sequence[str]], index: EntryIndex, table: str, spec: LabelSpec
) -> Columns | None:
    """Returns which column says what; None where none names files, or none genders.

    Args:
        header: the columns' names.
        sample: the first rows.
        index: of the archive's entries.
        table: path of the table.
        spec: what the message says, which wins.

    Raises:
        InvalidDataset: code `invalid_params`, where the table lacks a column that `spec` names.
    """
    keys = ["".join(filter(str.isalnum, words.fold(name))) for name in header]
    sample = [row for row in sample if len(row) >= len(header)]

    def named(wanted: str | None, known: frozenset[str], role: str) -> int | None:
        if wanted is None:
            return next((at for at, key in enumerate(keys) if key in known), None)
        if wanted not in header:
            raise InvalidDataset(
                f"labels.{role}: found no column {wanted!r}, expected one of {', '.join(header)[:300]}",
                code="invalid_params",
            )
        return header.index(wanted)

    files = _file_columns(header, keys, sample, index, table, named(spec.file, _FILE_COLUMNS, "file"), spec)
    gender = _gender_column(keys, sample, spec, named(spec.gender, _GENDER_COLUMNS, "gender"), set(files))
    if not files or gender is None:
        return None
    age = named(spec.age, _AGE_COLUMNS, "age")
    return Columns(files, *gender, age, named(spec.ethnicity, _ETHNICITY_COLUMNS, "ethnicity"))


def _file_columns(
    header: Sequence[str],
    keys: Sequence[str],
    sample: Sequence[Sequence[str]],
    index: EntryIndex,
    table: str,
    by_name: int | None,
    spec: LabelSpec,
) -> tuple[int, ...]:
    """Returns the column that names the files; in Adience's tables, the three of which a file's path is made."""
    if {"userid", "originalimage", "faceid"} <= set(keys):
        return keys.index("userid"), keys.index("faceid"), keys.index("originalimage")
    if spec.file is not None:
        return () if by_name is None else (by_name,)
    best = by_name
    if sample:

        def rank(at: int) -> tuple[int, bool, int, bool]:
            """A running number is the stem of some file, and may be another's: whole names count more."""
            cells = [row[at] for row in sample]
            whole = sum(map(index.names_whole, cells))
            return whole, _names_images(cells), sum(bool(index.find(cell, table)) for cell in cells), at == by_name

        best = max(range(len(header)), key=rank)
        if rank(best)[:3] == (0, False, 0):  # a table of far more files than the archive has
            best = by_name
    return () if best is None else (best,)


def _names_images(column: Sequence[str]) -> bool:
    """Returns whether most cells of a column are names of images."""
    return 2 * sum(has_image_extension(cell) for cell in column) > len(column)


def file_values(row: Sequence[str], columns: Columns) -> Iterator[str]:
    """Yields what a row may call its file: one name, or in Adience's tables the two that a face may have."""
    if len(columns.files) == 1:
        yield row[columns.files[0]]
        return
    user, face, image = (row[at] for at in columns.files)
    for kind in ("coarse_tilt_aligned_face", "landmark_aligned_face"):
        yield f"{user}/{kind}.{face}.{image}"


def _gender_column(
    keys: Sequence[str], sample: Sequence[Sequence[str]], spec: LabelSpec, by_name: int | None, taken: set[int]
) -> tuple[int, int | None] | None:
    """Returns the column of the gender, and of which gender it is true where it does not name genders."""
    told = bool(spec.male or spec.female)  # which values mean what, so that no column's name does
    if by_name is not None and (spec.gender is not None or keys[by_name] in _GENDER_COLUMNS):
        return by_name, None if told else words.gender_by_word(keys[by_name].removeprefix("is"))
    for at, key in enumerate(keys):  # as in CelebA: a column that is called Male
        yes = words.gender_by_word(key.removeprefix("is"))
        values = {row[at] for row in sample if not words.is_missing(row[at])}
        if yes is not None and at not in taken and values and all(words.is_true(value) is not None for value in values):
            return at, None if told else yes
    for at in range(len(keys)):
        values = {row[at] for row in sample if not words.is_missing(row[at])}
        if at not in taken and values and all(words.gender_by_word(value) is not None for value in values):
            return at, None
    return None

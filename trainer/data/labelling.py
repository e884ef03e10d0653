"""Recognises where the labels of an archive's files stand: in their names, their folders, or tables beside them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final, NamedTuple

from shared.archives.archive import Archive
from shared.archives.entry import Entry, EntryError
from shared.errors import InvalidDataset
from shared.faces import label_words as words
from shared.faces.labelling import LabelReport, LabelSource, LabelSpec, LabelValue
from shared.faces.labels import GENDERS, UNKNOWN, Label, LabelError, base_name, parse_label
from shared.faces.rejects import Reject, clipped

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".jsonl", ".tab")
_MAX_TABLES: Final = 64
_SAMPLE_ROWS: Final = 200
_MAX_ROWS: Final = 5_000_000
_LONGEST_CODE: Final = 2
"""Characters of a number that may stand for a gender, as the name of a folder; longer ones are years and the like."""
_EXAMPLES: Final = 5
_SHOWN_VALUES: Final = 20

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

Outcome = Label | Reject
_ReadGender = Callable[[str], int | None]


@dataclass(frozen=True)
class Labelling:
    """What is known of the faces of an archive before they are decoded.

    Attributes:
        entries: of the archive.
        outcomes: of each entry, its label or why it is left out; None for a table that the labels were taken from.
        report: what was recognised.
    """

    entries: Sequence[Entry]
    outcomes: list[Outcome | None]
    report: LabelReport


@dataclass
class _Found:
    """What one source says.

    Attributes:
        labels: by the index of the entry.
        values: (value as written, gender) → files.
        unknown: why an entry that the source speaks of has no label, by its index.
        tables: indices of entries that are tables which were read.
    """

    source: LabelSource
    labels: dict[int, Label] = field(default_factory=dict)
    values: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    unknown: dict[int, str] = field(default_factory=dict)
    tables: list[int] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def recognize_labels(archive: Archive, spec: LabelSpec | None = None) -> Labelling:
    """Finds the labels of an archive's files.

    Args:
        archive: opened.
        spec: what the message says of them; where it leaves something open, the source that labels the most files is
            taken: names before tables before folders, where they label as many.

    Raises:
        InvalidDataset: code `invalid_params`, where the table or a column that `spec` names is not there.
    """
    spec = spec or LabelSpec()
    entries = list(archive.entries)
    found = []
    if spec.source in {None, "names"}:
        found.append(_from_names(entries))
    complete = bool(found) and len(found[0].labels) == len(entries)  # as in UTKFace: nothing can say more
    if spec.source in {None, "table"} and not complete:
        found.append(_from_tables(archive, entries, spec))
    if spec.source in {None, "folders"} and not complete:
        found.append(_from_folders(entries, spec))
    # Where none has labels, a table whose column is not understood says most.
    best = max(found, key=lambda source: (len(source.labels), 0 if source.labels else len(source.unknown)))
    return _labelling(entries, best)


def _labelling(entries: Sequence[Entry], best: _Found) -> Labelling:
    tables = set(best.tables)
    outcomes: list[Outcome | None] = []
    examples: list[str] = []
    unlabelled = 0
    for index, entry in enumerate(entries):
        label = best.labels.get(index)
        if label is None and index not in tables:
            unlabelled += 1
            if len(examples) < _EXAMPLES:
                examples.append(clipped(entry.name))
        if entry.reject is not None:  # it says more than that its name has no label
            outcomes.append(entry.reject)
        elif label is not None or index in tables:
            outcomes.append(label)
        else:
            outcomes.append(_reject(entry.name, best, best.unknown.get(index)))
    values = [
        LabelValue(value=clipped(value), gender=None if gender is None else GENDERS[gender], files=files)
        for (value, gender), files in best.values.most_common(_SHOWN_VALUES)
    ]
    report = LabelReport(
        source=best.source if best.labels else None,
        tables=tuple(clipped(entries[index].name) for index in best.tables),
        columns=best.columns,
        values=tuple(values),
        labelled=len(best.labels),
        unlabelled=unlabelled,
        examples=tuple(examples),
        with_age=sum(label.age != UNKNOWN for label in best.labels.values()),
        with_ethnicity=sum(label.ethnicity != UNKNOWN for label in best.labels.values()),
    )
    return Labelling(entries, outcomes, report)


def _reject(name: str, best: _Found, unknown: str | None) -> Reject:
    if best.labels and best.source == "folders":
        return Reject("no_label", f"found {clipped(name)!r}, expected a folder that names a gender")
    if (best.labels or unknown) and best.source == "table":
        return Reject("no_label", unknown or f"found no row for {clipped(name)!r} in the table, expected one")
    try:
        parse_label(name)
    except LabelError as error:
        return error.reject
    return Reject("no_label", f"found {clipped(name)!r}, expected labels in the {best.source}")


# -- names


def _from_names(entries: Sequence[Entry]) -> _Found:
    found = _Found("names")
    for index, entry in enumerate(entries):
        try:
            label = parse_label(entry.name)
        except LabelError:
            continue
        found.labels[index] = label
    genders = Counter(label.gender for label in found.labels.values())
    found.values.update({(str(gender), gender): files for gender, files in genders.items()})
    return found


# -- folders


def _from_folders(entries: Sequence[Entry], spec: LabelSpec) -> _Found:
    """Takes the deepest folder that names a gender; letters and digits only where no words do."""
    paths = [entry.name.replace("\\", "/").split("/")[:-1] for entry in entries]
    names = set(chain.from_iterable(paths))
    numbers = {name for name in names if words.is_number(name) and len(name) <= _LONGEST_CODE}
    # Of numbers in numbers nobody knows which is the gender: together they are none that is read.
    digits = {"/".join(name for name in path if name in numbers) for path in paths}
    best = _Found("folders")
    for gender_of in _readers(spec, names, digits):
        genders = {name: gender for name in names if (gender := gender_of(name)) is not None}
        found = _Found("folders")
        for index, path in enumerate(paths):
            folder = next((name for name in reversed(path) if name in genders), None)
            if folder is not None:
                found.labels[index] = Label(UNKNOWN, genders[folder], UNKNOWN)
                found.values[folder, genders[folder]] += 1
        if len({gender for _, gender in found.values}) == len(GENDERS):
            return found
        if len(found.labels) > len(best.labels):
            best = found
    return best


def _readers(spec: LabelSpec, letters: Collection[str], digits: Collection[str]) -> list[_ReadGender]:
    """Returns what may read a gender, the surest first.

    Args:
        spec: what the message says, which wins.
        letters: what `read_letters` is to judge letters by.
        digits: what `read_digits` is to judge digits by.
    """
    if spec.male or spec.female:
        meanings = {words.fold(word): gender for gender, of in enumerate((spec.male, spec.female)) for word in of}
        return [lambda text: meanings.get(words.fold(text))]
    return [words.gender_by_word, words.read_letters(letters), words.read_digits(digits)]


# -- tables


class _Index:
    """Finds the entries that a table's rows name, however much of the path stands there."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._paths = [_path(entry.name) for entry in entries]
        self._paths_without_extension = [_without_extension(path) for path in self._paths]
        self._by_base: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for index, path in enumerate(self._paths):
            base = path.rpartition("/")[2]
            self._by_base[base].append(index)
            self._by_stem[base.partition(".")[0]].append(index)

    def find(self, value: str, table: str) -> int | None:
        """Returns the entry that a value names, None where there is none or more than one.

        Args:
            value: a name or a path, with or without folders and extension.
            table: path of the table that it stands in. Where a name alone would be that of several entries, it is one
                in the table's folder, or else one in the folder that is called as the table is: `train/` beside
                `train.csv`.
        """
        path = _path(value)
        if not path:
            return None
        base = path.rpartition("/")[2]
        same_base = self._by_base.get(base)
        found = same_base or self._by_stem.get(base.partition(".")[0], [])
        if len(found) < 2:
            return found[0] if found else None
        paths = self._paths
        if not same_base:
            path, paths = _without_extension(path), self._paths_without_extension
        folder, _, name = table.rpartition("/")
        for start in (folder, f"{folder}/{name.rpartition('.')[0]}"):
            inside = [index for index in found if paths[index] == f"{start}/{path}".lstrip("/")]
            if inside:
                break
        else:
            inside = [index for index in found if f"/{paths[index]}".endswith(f"/{path}")]
        return inside[0] if len(inside) == 1 else None


def _without_extension(path: str) -> str:
    stem, dot, extension = path.rpartition(".")
    return stem if dot and "/" not in extension else path


def _path(name: str) -> str:
    path = name.replace("\\", "/").strip().casefold()
    while path.startswith("./"):
        path = path[2:]
    return path.lstrip("/")


class _Columns(NamedTuple):
    """Which columns of a table say what.

    Attributes:
        yes: the gender of which the gender's column is true, as one that is called Male; None where it names genders.
    """

    files: tuple[int, ...]
    gender: int
    yes: int | None
    age: int | None
    ethnicity: int | None


class _Table(NamedTuple):
    """A table with a header, which names files and their genders."""

    header: list[str]
    columns: _Columns
    rows: Iterator[list[str]]

    @property
    def gender_name(self) -> str:
        return self.header[self.columns.gender]


def _from_tables(archive: Archive, entries: Sequence[Entry], spec: LabelSpec) -> _Found:
    found = _Found("table")
    candidates = [index for index, entry in enumerate(entries) if entry.name.lower().endswith(TABLE_SUFFIXES)]
    if spec.table is not None:
        wanted = _path(spec.table)
        candidates = [index for index in candidates if f"/{_path(entries[index].name)}".endswith(f"/{wanted}")]
        if not candidates:
            raise InvalidDataset(f"labels.table: found no {spec.table!r} in the archive", code="invalid_params")
    if not candidates:
        return found
    index = _Index(entries)
    written = _written_genders(archive, entries, candidates, index, spec)
    stems = {_list_stem(entries[candidate].name) for candidate in candidates}
    list_readers = _readers(spec, stems, set(filter(words.is_number, stems)))
    for candidate, text in _texts(archive, entries, candidates):
        name = entries[candidate].name
        before = len(found.labels)
        _read_table(text, name, index, spec, written, found)
        if len(found.labels) == before:
            _read_list(text, name, index, list_readers, found)
        if len(found.labels) > before:
            found.tables.append(candidate)
    if spec.table is not None and not found.labels:
        raise InvalidDataset(
            f"labels.table: found no row of {spec.table!r} that names a file of the archive and its gender",
            code="invalid_params",
        )
    return found


def _texts(archive: Archive, entries: Sequence[Entry], candidates: Sequence[int]) -> Iterator[tuple[int, str]]:
    for candidate in candidates[:_MAX_TABLES]:
        try:
            yield candidate, _decoded(archive.read(entries[candidate]))
        except EntryError:
            continue


def _written_genders(
    archive: Archive, entries: Sequence[Entry], candidates: Sequence[int], index: _Index, spec: LabelSpec
) -> dict[str, set[str]]:
    """Collects all that stands in the columns of the gender, by their names.

    Tables are taken together: where there is one a gender, each alone has a single letter or digit, which says nothing.
    """
    written: dict[str, set[str]] = defaultdict(set)
    for candidate, text in _texts(archive, entries, candidates):
        table = _open_table(text, entries[candidate].name, index, spec)
        if table is not None and table.columns.yes is None:
            written[table.gender_name].update(row[table.columns.gender].strip() for row in table.rows)
    return written


def _open_table(text: str, name: str, index: _Index, spec: LabelSpec) -> _Table | None:
    header, rows = _rows(text, name)
    sample = list(islice(rows, _SAMPLE_ROWS))
    if len(header) < 2 or not sample:
        return None
    columns = _columns(header, sample, index, _path(name), spec)
    if columns is None:
        return None
    whole = (row for row in islice(chain(sample, rows), _MAX_ROWS) if len(row) >= len(header))
    return _Table(header, columns, whole)


def _read_table(
    text: str, name: str, index: _Index, spec: LabelSpec, written_genders: Mapping[str, set[str]], found: _Found
) -> None:
    """Takes the labels of a table with a header."""
    table = _open_table(text, name, index, spec)
    if table is None:
        return
    header, columns, rows = table
    path = _path(name)
    if columns.yes is None:
        written_here = written_genders[table.gender_name]
        read = _first_of(_readers(spec, written_here, written_here))
    else:
        read = _read_yes(columns.yes)
    roles = {"file": columns.files[-1], "gender": columns.gender, "age": columns.age, "ethnicity": columns.ethnicity}
    found.columns |= {role: header[column] for role, column in roles.items() if column is not None}
    for row in rows:
        entry = next((at for value in _file_values(row, columns) if (at := index.find(value, path)) is not None), None)
        if entry is None or entry in found.labels:
            continue
        written = row[columns.gender].strip()
        gender = read(written)
        found.values[written, gender] += 1
        if gender is None:
            found.unknown[entry] = f"found {clipped(written)!r} in the column {table.gender_name!r}, expected a gender"
            continue
        age = UNKNOWN if columns.age is None else words.age_of(row[columns.age])
        ethnicity = UNKNOWN if columns.ethnicity is None else words.ethnicity_of(row[columns.ethnicity])
        found.labels[entry] = Label(age, gender, ethnicity)


def _read_list(text: str, name: str, index: _Index, readers: Sequence[_ReadGender], found: _Found) -> None:
    """Takes the labels of a list of files whose own name says the gender, such as `male_names.txt`."""
    gender = _first_of(readers)(_list_stem(name))
    if gender is None:
        return
    path = _path(name)
    for line in islice(text.splitlines(), _MAX_ROWS):
        entry = index.find(line.split(",")[0], path)
        if entry is not None and entry not in found.labels:
            found.labels[entry] = Label(UNKNOWN, gender, UNKNOWN)
            found.values[base_name(name), gender] += 1


def _list_stem(name: str) -> str:
    return base_name(name).rpartition(".")[0].replace("names", "").replace("list", "")


def _columns(
    header: Sequence[str], sample: Sequence[Sequence[str]], index: _Index, table: str, spec: LabelSpec
) -> _Columns | None:
    keys = ["".join(filter(str.isalnum, words.fold(name))) for name in header]
    sample = [row for row in sample if len(row) >= len(header)]

    def named(wanted: str | None, known: frozenset[str], role: str) -> int | None:
        if wanted is None:
            return next((at for at, key in enumerate(keys) if key in known), None)
        if wanted not in header:
            if spec.table is None:
                return None
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
    return _Columns(files, *gender, age, named(spec.ethnicity, _ETHNICITY_COLUMNS, "ethnicity"))


def _file_columns(
    header: Sequence[str],
    keys: Sequence[str],
    sample: Sequence[Sequence[str]],
    index: _Index,
    table: str,
    by_name: int | None,
    spec: LabelSpec,
) -> tuple[int, ...]:
    """Returns the column that names the files; in Adience's tables, the three of which a file's path is made."""
    if {"userid", "originalimage", "faceid"} <= set(keys):
        return keys.index("userid"), keys.index("faceid"), keys.index("originalimage")
    if spec.file is not None:
        return () if by_name is None else (by_name,)
    hits = [sum(index.find(row[at], table) is not None for row in sample) for at in range(len(header))]
    best = max(range(len(header)), key=lambda at: (hits[at], at == by_name))
    if hits[best]:
        return (best,)
    return () if by_name is None else (by_name,)  # a table of far more files than the archive has


def _file_values(row: Sequence[str], columns: _Columns) -> Iterator[str]:
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
        if yes is not None and at not in taken and all(words.is_true(row[at]) is not None for row in sample):
            return at, None if told else yes
    for at in range(len(keys)):
        values = {row[at].strip() for row in sample}
        if (
            at not in taken
            and all(words.gender_by_word(value) is not None or not value for value in values)
            and any(values)
        ):
            return at, None
    return None


def _first_of(readers: Sequence[_ReadGender]) -> _ReadGender:
    """Returns what reads a gender with the first of the readers that can."""
    return lambda text: next((gender for reader in readers if (gender := reader(text)) is not None), None)


def _read_yes(yes: int) -> _ReadGender:
    """Returns what reads a column that is true of one gender."""

    def read(text: str) -> int | None:
        answer = words.is_true(text)
        return None if answer is None else yes if answer else 1 - yes

    return read


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _rows(text: str, name: str) -> tuple[list[str], Iterator[list[str]]]:
    """Returns a table's header and its rows: JSON lines, or text with commas, semicolons, tabs, bars or blanks."""
    lines = io.StringIO(text, newline=None)
    if name.lower().endswith(".jsonl"):
        return _json_rows(lines)
    first = next((line for line in lines if line.strip()), "")
    if first.strip().isdigit():  # CelebA's: how many rows follow
        first = next(lines, "")
    separator = max("\t,;|", key=first.count)
    if separator in first:
        header = next(csv.reader([first], delimiter=separator), [])
        return [name.strip() for name in header], _lenient(csv.reader(lines, delimiter=separator))
    header = first.split()
    rows = (line.split() for line in lines)
    second = next(rows, [])
    if len(second) == len(header) + 1:  # as in CelebA's: the names of the files have no name
        header = ["file", *header]
    return header, chain([second], rows)


def _lenient(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yields rows until one cannot be read."""
    while True:
        try:
            yield next(rows)
        except (StopIteration, csv.Error):
            return


def _json_rows(lines: Iterator[str]) -> tuple[list[str], Iterator[list[str]]]:
    def objects() -> Iterator[Mapping[str, object]]:
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value

    found = objects()
    first = next(found, {})
    header = [str(key) for key in first]
    return header, ([str(row.get(key, "")) for key in header] for row in chain([first], found))

"""Labels in tables, and in lists of files, that lie in the archive beside the files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Final, NamedTuple

from shared.archives.archive import Archive
from shared.archives.entry import Entry, EntryError
from shared.errors import InvalidDataset
from shared.faces import label_words as words
from shared.faces.labelling import LabelSpec
from shared.faces.labels import UNKNOWN, Label, base_name
from shared.faces.rejects import clipped
from trainer.data.labelling.columns import Columns, file_values, find_columns
from trainer.data.labelling.entry_index import EntryIndex, fold_path
from trainer.data.labelling.source import Found, ReadGender, make_readers, read_with_first
from trainer.data.labelling.table_text import decode_text, read_rows

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".jsonl", ".tab")
_MAX_TABLES: Final = 64
_SAMPLE_ROWS: Final = 200
_MAX_ROWS: Final = 5_000_000
_MAX_TABLE_BYTES: Final = 2**27
"""A table may be larger than an image: 200,000 rows of 40 attributes have 26 MB."""


class _Table(NamedTuple):
    """A table with a header, which names files and their genders."""

    header: list[str]
    columns: Columns
    rows: Iterator[list[str]]

    @property
    def gender_name(self) -> str:
        return self.header[self.columns.gender]


def read_tables(archive: Archive, entries: Sequence[Entry], spec: LabelSpec) -> Found:
    """Takes the labels from all tables of an archive, or from the one that `spec` names.

    Raises:
        InvalidDataset: code `invalid_params`, where the table or a column that `spec` names is not there, the table
            cannot be read, or no row of it names a file and its gender.
    """
    candidates = _find_candidates(entries, spec)
    if not candidates:
        return Found("table")
    found = _read_candidates(archive, entries, candidates, EntryIndex(entries), spec)
    if not found.labels and not found.unknown:
        found = _read_candidates(archive, entries, candidates, EntryIndex(entries, any_folder=True), spec)
    if spec.table is not None and not found.labels:
        raise InvalidDataset(
            f"labels.table: found no row of {spec.table!r} that names a file of the archive and its gender",
            code="invalid_params",
        )
    return found


def _find_candidates(entries: Sequence[Entry], spec: LabelSpec) -> list[int]:
    """Returns the entries that may be tables; texts last, since they may be anything and there is a limit."""
    candidates = [index for index, entry in enumerate(entries) if entry.name.lower().endswith(TABLE_SUFFIXES)]
    if spec.table is not None:
        wanted = fold_path(spec.table)
        candidates = [index for index in candidates if f"/{fold_path(entries[index].name)}".endswith(f"/{wanted}")]
        if not candidates:
            raise InvalidDataset(f"labels.table: found no {spec.table!r} in the archive", code="invalid_params")
    return sorted(candidates, key=lambda index: entries[index].name.lower().endswith(".txt"))[:_MAX_TABLES]


def _read_candidates(
    archive: Archive, entries: Sequence[Entry], candidates: Sequence[int], index: EntryIndex, spec: LabelSpec
) -> Found:
    found = Found("table")
    texts = _Texts(archive, entries, candidates, strict=spec.table is not None)
    written, lacking = _written_genders(texts, index, spec)
    stems = {_list_stem(entries[candidate].name) for candidate in candidates}
    list_readers = make_readers(spec, stems, set(filter(words.is_number, stems)))
    for candidate, name, text in texts:
        before = len(found.labels)
        with suppress(InvalidDataset):  # as in `_written_genders`
            _read_table(text, name, index, spec, written, found)
        if len(found.labels) == before and not spec.names_columns:
            _read_list(text, name, index, list_readers, found)
        if len(found.labels) > before:
            found.tables.append(candidate)
    if lacking is not None and not found.tables:
        raise lacking
    return found


class _Texts:
    """The texts of the tables, read anew each time: together they may be larger than memory.

    Args:
        strict: whether a table that cannot be read is an error.
    """

    def __init__(self, archive: Archive, entries: Sequence[Entry], candidates: Sequence[int], *, strict: bool) -> None:
        self._archive = archive
        self._entries = entries
        self._candidates = candidates
        self._strict = strict

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        """Yields each table's index, name and text."""
        for candidate in self._candidates:
            entry = self._entries[candidate]
            reject = entry.reject
            if reject is not None and reject.reason == "image_too_large" and entry.size_bytes <= _MAX_TABLE_BYTES:
                entry = entry._replace(reject=None)
            try:
                yield candidate, entry.name, decode_text(self._archive.read(entry))
            except EntryError as error:
                if self._strict:
                    raise InvalidDataset(
                        f"labels.table: {clipped(entry.name)}: {error}", code="invalid_params"
                    ) from error


def _written_genders(
    texts: _Texts, index: EntryIndex, spec: LabelSpec
) -> tuple[dict[str, set[str]], InvalidDataset | None]:
    """Collects all that stands in the columns of the gender, by their names.

    Tables are taken together: where there is one a gender, each alone has a single letter or digit, which says nothing.

    Returns:
        (what stands in the columns; what the first table lacks that lacks a column which `spec` names, or None).
    """
    written: dict[str, set[str]] = defaultdict(set)
    lacking = None
    for _, name, text in texts:
        try:
            table = _open_table(text, name, index, spec)
        except InvalidDataset as error:
            lacking = lacking or error
            continue
        if table is not None and table.columns.yes is None:
            written[table.gender_name].update(row[table.columns.gender].strip() for row in table.rows)
    return written, lacking


def _open_table(text: str, name: str, index: EntryIndex, spec: LabelSpec) -> _Table | None:
    header, rows = read_rows(text, name)
    if any(index.names_whole(cell) for cell in header):  # there is none, and this is the first row
        header, rows = [f"column {number}" for number in range(1, len(header) + 1)], chain([header], rows)
    sample = list(islice(rows, _SAMPLE_ROWS))
    if len(header) < 2 or not sample:
        return None
    columns = find_columns(header, sample, index, fold_path(name), spec)
    if columns is None:
        return None
    whole = (row for row in islice(chain(sample, rows), _MAX_ROWS) if len(row) >= len(header))
    return _Table(header, columns, whole)


def _read_table(
    text: str, name: str, index: EntryIndex, spec: LabelSpec, written_genders: Mapping[str, set[str]], found: Found
) -> None:
    """Takes the labels of a table with a header."""
    table = _open_table(text, name, index, spec)
    if table is None:
        return
    header, columns, rows = table
    path = fold_path(name)
    if columns.yes is None:
        written_here = written_genders[table.gender_name]
        read = read_with_first(make_readers(spec, written_here, written_here))
    else:
        read = _read_yes(columns.yes)
    roles = {"file": columns.files[-1], "gender": columns.gender, "age": columns.age, "ethnicity": columns.ethnicity}
    found.columns |= {role: header[column] for role, column in roles.items() if column is not None}
    for row in rows:
        value, named = next(
            ((value, named) for value in file_values(row, columns) if (named := index.find(value, path))), ("", [])
        )
        if len(named) != 1:
            told = f"found {clipped(value)!r} in the table, which names {len(named)} files, expected its folder as well"
            found.unknown |= dict.fromkeys(named, told)
            continue
        (entry,) = named
        written = row[columns.gender].strip()
        gender = read(written)
        if gender is None:
            found.values[written, None] += 1
            found.unknown[entry] = f"found {clipped(written)!r} in the column {table.gender_name!r}, expected a gender"
            continue
        age = UNKNOWN if columns.age is None else words.age_of(row[columns.age])
        ethnicity = UNKNOWN if columns.ethnicity is None else words.ethnicity_of(row[columns.ethnicity])
        found.add(entry, Label(age, gender, ethnicity), written)


def _read_list(text: str, name: str, index: EntryIndex, readers: Sequence[ReadGender], found: Found) -> None:
    """Takes the labels of a list of files whose own name says the gender, such as `male_names.txt`."""
    gender = read_with_first(readers)(_list_stem(name))
    if gender is None:
        return
    path = fold_path(name)
    for line in islice(text.splitlines(), _MAX_ROWS):
        named = index.find(line.split(",")[0], path)
        if len(named) == 1:
            found.add(named[0], Label(UNKNOWN, gender, UNKNOWN), base_name(name))


def _list_stem(name: str) -> str:
    return base_name(name).rpartition(".")[0].replace("names", "").replace("list", "")


def _read_yes(yes: int) -> ReadGender:
    """Returns what reads a column that is true of one gender."""

    def read(text: str) -> int | None:
        answer = words.is_true(text)
        return None if answer is None else yes if answer else 1 - yes

    return read

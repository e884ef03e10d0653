"""Recognises where the labels of an archive's files stand: in their names, their folders, or tables beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.archives.archive import Archive
from shared.archives.entry import Entry
from shared.faces.labelling import LabelReport, LabelSpec, LabelValue
from shared.faces.labels import GENDERS, UNKNOWN, Label, LabelError, parse_label
from shared.faces.rejects import Reject, clipped
from trainer.data.labelling.folders import read_folders
from trainer.data.labelling.names import read_names
from trainer.data.labelling.source import Found
from trainer.data.labelling.tables import read_tables

_EXAMPLES: Final = 5
_SHOWN_VALUES: Final = 20

Outcome = Label | Reject


@dataclass(frozen=True)
class Labelling:
    """What is known of the faces of an archive before they are decoded.

    Attributes:
        entries: of the archive.
        outcomes: of each entry, its label or why it is left out; None for a table that the labels were taken from.
        report: the source of the labels, its columns and values, and how many files it labels.
    """

    entries: Sequence[Entry]
    outcomes: list[Outcome | None]
    report: LabelReport


def recognize_labels(archive: Archive, spec: LabelSpec | None = None) -> Labelling:
    """Finds the labels of an archive's files.

    Args:
        archive: opened.
        spec: what the message says of them. A table or a column implies the source `table`; `male` or `female` rules
            out `names`. Where the source is open, the one that labels the most files is taken: names before tables
            before folders, where they label as many.

    Raises:
        InvalidDataset: code `invalid_params`, where the table or a column that `spec` names is not there.
    """
    spec = spec or LabelSpec()
    entries = _mark_superseded(archive.entries)
    # Of a superseded entry nothing is read, and no row of a table means it.
    named = [entry._replace(name="") if _is_superseded(entry) else entry for entry in entries]
    source = spec.source or ("table" if spec.table or spec.names_columns else None)
    told = bool(spec.male or spec.female)
    found = []
    if source == "names" or (source is None and not told):
        found.append(read_names(named))
    complete = bool(found) and len(found[0].labels) == sum(
        bool(entry.name) for entry in named
    )  # as in UTKFace: nothing can say more
    if source in {None, "table"} and not complete:
        found.append(read_tables(archive, named, spec))
    if source in {None, "folders"} and not complete:
        found.append(read_folders(named, spec))
    # Where none has labels, a table whose column is not understood says most.
    best = max(found, key=lambda source: (len(source.labels), 0 if source.labels else len(source.unknown)))
    return _labelling(entries, best)


def _mark_superseded(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the entries; of those that share a name, all but the last are rejected.

    Programs that add to an archive leave the older file in it, and whatever unpacks it ends with the newer one.
    """
    marked = list(entries)
    last = {entry.name: index for index, entry in enumerate(marked) if entry.reject is None}
    for index, entry in enumerate(marked):
        if entry.reject is None and last[entry.name] != index:
            reject = Reject("superseded", f"found {clipped(entry.name)!r} again later in the archive, which counts")
            marked[index] = entry._replace(reject=reject)
    return marked


def _is_superseded(entry: Entry) -> bool:
    return entry.reject is not None and entry.reject.reason == "superseded"


def _labelling(entries: Sequence[Entry], best: Found) -> Labelling:
    tables = set(best.tables)
    outcomes: list[Outcome | None] = []
    examples: list[str] = []
    unlabelled = 0
    for index, entry in enumerate(entries):
        label = best.labels.get(index)
        if label is None and index not in tables and not _is_superseded(entry):
            unlabelled += 1
            if len(examples) < _EXAMPLES:
                examples.append(clipped(entry.name))
        if index in tables:
            outcomes.append(None)
        elif entry.reject is not None:  # it says more than that its name has no label
            outcomes.append(entry.reject)
        elif label is not None:
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


def _reject(name: str, best: Found, unknown: str | None) -> Reject:
    if best.labels and best.source == "folders":
        return Reject("no_label", f"found {clipped(name)!r}, expected a folder that names a gender")
    if (best.labels or unknown) and best.source == "table":
        return Reject("no_label", unknown or f"found no row for {clipped(name)!r} in the table, expected one")
    try:
        parse_label(name)
    except LabelError as error:
        return error.reject
    return Reject("no_label", f"found {clipped(name)!r}, expected labels in the {best.source}")

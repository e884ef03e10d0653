"""Labels in the names of the files, as in UTKFace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shared.archives.entry import Entry
from shared.faces.labels import LabelError, parse_label
from trainer.data.labelling.source import Found


def read_names(entries: Sequence[Entry]) -> Found:
    """Takes the labels from the names of the files."""
    found = Found("names")
    for index, entry in enumerate(entries):
        try:
            label = parse_label(entry.name)
        except LabelError:
            continue
        found.labels[index] = label
    genders = Counter(label.gender for label in found.labels.values())
    found.values.update({(str(gender), gender): files for gender, files in genders.items()})
    return found

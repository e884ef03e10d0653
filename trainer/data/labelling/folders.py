"""Labels in the names of the folders that the files lie in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

from shared.archives.entry import Entry
from shared.faces import label_words as words
from shared.faces.labelling import LabelSpec
from shared.faces.labels import GENDERS, UNKNOWN, Label
from trainer.data.labelling.source import Found, make_readers

_LONGEST_CODE: Final = 2
"""Characters of a number that may stand for a gender, as the name of a folder; longer ones are years and the like."""


def read_folders(entries: Sequence[Entry], spec: LabelSpec) -> Found:
    """Takes the deepest folder that names a gender; letters and digits only where no words do."""
    paths = [entry.name.replace("\\", "/").split("/")[:-1] for entry in entries]
    names = set(chain.from_iterable(paths))
    numbers = {name for name in names if words.is_number(name) and len(name) <= _LONGEST_CODE}
    # Nested numbers, such as 0/1, are ambiguous: joined, they are a code that no reader takes.
    digits = {"/".join(name for name in path if name in numbers) for path in paths}
    best = Found("folders")
    for gender_of in make_readers(spec, names, digits):
        genders = {name: gender for name in names if (gender := gender_of(name)) is not None}
        found = Found("folders")
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

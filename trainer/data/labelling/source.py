"""What one source says of the files of an archive, and how it reads a gender."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from shared.faces import label_words as words
from shared.faces.labelling import LabelSource, LabelSpec
from shared.faces.labels import Label

ReadGender = Callable[[str], int | None]
"""Text → the gender that it names, or None."""


@dataclass
class Found:
    """What one source says.

    Attributes:
        labels: by the index of the entry.
        values: (value as written, gender) → files.
        unknown: why an entry that the source speaks of has no label, by its index.
        contradicted: indices of entries that are called male and female.
        tables: indices of entries that are tables which were read.
    """

    source: LabelSource
    labels: dict[int, Label] = field(default_factory=dict)
    values: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    unknown: dict[int, str] = field(default_factory=dict)
    contradicted: set[int] = field(default_factory=set)
    tables: list[int] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)

    def add(self, entry: int, label: Label, value: str) -> None:
        """Takes a label for an entry; none for one that is called male here and female there.

        Args:
            entry: its index.
            label: what is said of it; where it is said again, the first counts.
            value: the gender as written.
        """
        before = self.labels.get(entry)
        if before is None:
            if entry not in self.contradicted:
                self.labels[entry] = label
                self.values[value, label.gender] += 1
        elif before.gender != label.gender:
            del self.labels[entry]
            self.contradicted.add(entry)
            self.unknown[entry] = "found rows that call it male and rows that call it female, expected one gender"


def make_readers(spec: LabelSpec, letters: Collection[str], digits: Collection[str]) -> list[ReadGender]:
    """Returns what may read a gender, the surest first.

    Args:
        spec: what the message says, which wins.
        letters: what `read_letters` is to judge letters by.
        digits: what `read_digits` is to judge digits by.
    """
    if spec.male or spec.female:
        meanings = {
            words.fold_number(word): gender for gender, of in enumerate((spec.male, spec.female)) for word in of
        }
        return [lambda text: meanings.get(words.fold_number(text))]
    return [words.gender_by_word, words.read_letters(letters), words.read_digits(digits)]


def read_with_first(readers: Sequence[ReadGender]) -> ReadGender:
    """Returns what reads a gender with the first of the readers that can."""
    return lambda text: next((gender for reader in readers if (gender := reader(text)) is not None), None)

"""Labels, and how file names carry them as in UTKFace: `age_gender_ethnicity[_anything].ext`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from shared.faces.rejects import RejectError, clipped

GENDERS: Final = ("male", "female")
"""Genders by their number in file names, model outputs and tables."""

ETHNICITIES: Final = ("White", "Black", "Asian", "Indian", "Other")
"""Ethnicities by their number in file names, as UTKFace defines them."""

MAX_AGE: Final = 120

UNKNOWN: Final = -1
"""An age or an ethnicity that nobody gave."""

# Three numbers, then anything after a further underscore, or an extension, or nothing. A third number of many digits
# is the date and time that follows the labels in UTKFace: one label is missing, as in
# `61_1_20170109142408075.jpg.chip.jpg`.
# The blank before the extension and the missing dot (`…357jpg.chip.jpg`) are UTKFace's own. Blanks after an underscore
# are part of anything: two parts of the form that both take them would share them out in every possible way.
_FORM: Final = re.compile(r"([0-9]{1,9})_([0-9]{1,9})_([0-9]{1,3})(?:_.*|\s*(?:\.\w+\s*)?)", re.DOTALL)


class LabelError(RejectError):
    """The file name carries no label, or one out of range."""


class Label(NamedTuple):
    """What is known of a face.

    Attributes:
        age: in years, 0-120, or `UNKNOWN`.
        gender: index into `GENDERS`.
        ethnicity: index into `ETHNICITIES`, or `UNKNOWN`.
    """

    age: int
    gender: int
    ethnicity: int


def base_name(name: str) -> str:
    """Returns the last part of an archive entry's name, whichever separators wrote it."""
    return name.replace("\\", "/").rpartition("/")[2]


def parse_label(name: str) -> Label:
    """Reads the label from an archive entry's name.

    Args:
        name: the entry's whole name, with folders.

    Raises:
        LabelError: reason `no_label` where the name lacks the form or a field, `invalid_label` where a field is out
            of range.
    """
    base = base_name(name)
    match = _FORM.fullmatch(base)
    if match is None:
        raise LabelError("no_label", f"found {clipped(base)!r}, expected age_gender_ethnicity[_anything].ext")
    age, gender, ethnicity = (int(field) for field in match.groups())
    if age > MAX_AGE:
        raise LabelError("invalid_label", f"found age {age}, expected 0-{MAX_AGE}")
    if gender >= len(GENDERS):
        raise LabelError("invalid_label", f"found gender {gender}, expected 0 (male) or 1 (female)")
    if ethnicity >= len(ETHNICITIES):
        raise LabelError("invalid_label", f"found ethnicity {ethnicity}, expected 0-{len(ETHNICITIES) - 1}")
    return Label(age, gender, ethnicity)


def label_or_none(name: str) -> Label | None:
    """Returns the label of `name`, or None where it carries no valid one: labels are optional in prediction jobs."""
    try:
        return parse_label(name)
    except LabelError:
        return None

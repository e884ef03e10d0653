"""A job's results: a row an image, and the CSV that the rows of all shards make."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from shared.errors import GenderlineError, InvalidImage
from shared.faces.labels import GENDERS, label_or_none
from shared.faces.rejects import reject_for
from shared.messages import prediction
from shared.records.cells import to_cell
from shared.records.jobs import RESULT_COLUMNS

_JUDGED: Final = ("false", "true")
"""The column `correct`."""


def result_row(name: str, outcome: float | GenderlineError) -> tuple[object, ...]:
    """Returns one line of the results, of `RESULT_COLUMNS`; the true gender only where the file name has one."""
    label = label_or_none(name)
    truth = GENDERS[label.gender] if label else None
    shown = to_cell(name)
    if not isinstance(outcome, float):
        reason = reject_for(outcome).reason if isinstance(outcome, InvalidImage) else outcome.code
        return shown, None, None, None, truth, None, to_cell(f"{reason}: {outcome}")
    told = prediction(None, outcome)
    correct = None if truth is None else _JUDGED[told["gender"] == truth]
    return shown, told["gender"], told["probability_female"], told["confidence"], truth, correct, None


def assemble(path: Path, parts: Iterable[str]) -> tuple[dict[str, int], float | None]:
    """Joins the parts into one CSV.

    Returns:
        (counts of images and errors; the accuracy over labelled images with a prediction, None where there are none).
    """
    images = correct = wrong = unlabelled = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(RESULT_COLUMNS)
        for part in parts:
            file.write(part)
            # A row is a line, and only one without an error ends with a comma: CSV quotes a text with commas.
            images += part.count("\n")
            correct += part.count(f",{_JUDGED[True]},\n")
            wrong += part.count(f",{_JUDGED[False]},\n")
            unlabelled += part.count(",,\n")
    labelled = correct + wrong
    errors = images - labelled - unlabelled
    return {"images": images, "errors": errors}, correct / labelled if labelled else None

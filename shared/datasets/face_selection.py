"""The faces of a dataset that fit a filter, in its order: read from the store, and written as CSV or as images."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.datasets.columns import Dataset, load_dataset, with_corrections
from shared.datasets.face_filter import FaceFilter, Facet, count_facets, face_view, select_faces
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.faces.png import encode_png
from shared.measures.labels import ARCHIVE_LABELS
from shared.records.cells import to_cell
from shared.records.dataset import find_summary
from shared.records.edits import Edits
from shared.records.predictions import read_out_of_fold, read_predictions
from shared.records.registry import Registry
from shared.store.base import Store

COLUMNS: Final = (
    "index",
    "name",
    "gender",
    "age",
    "ethnicity",
    "split",
    "predicted",
    "probability_female",
    "confidence",
    "correct",
)
"""Of the table of faces."""


@dataclass(frozen=True, slots=True)
class FaceSelection:
    """A dataset as a filter wants to see it.

    Attributes:
        data: with the labels that the filter asks for.
        wanted: the filter, with the model in it whose predictions count.
        probabilities: that model's, float32 (N,); None where there are none.
        others: the filter's second model's, float32 (N,); None where there are none.
        out_of_fold: float32 (N,), to rank suspects by; None where there are none, or the order is another one.
    """

    data: Dataset
    wanted: FaceFilter
    probabilities: NDArray[np.float32] | None
    others: NDArray[np.float32] | None
    out_of_fold: NDArray[np.float32] | None

    def select(self) -> NDArray[np.intp]:
        """Returns the indices of the faces that fit, in the wanted order."""
        return select_faces(self.data, self.probabilities, self.wanted, self.others, self.out_of_fold)

    def count_facets(self) -> list[Facet]:
        """Returns how many faces there would be of each value, were the filter to name it."""
        return count_facets(self.data, self.probabilities, self.wanted, self.others)

    def view(self, index: int) -> dict[str, Any]:
        """Returns what a page says of one face."""
        return face_view(self.data, self.probabilities, index, self.wanted.threshold)

    def as_csv(self) -> str:
        """Returns the faces that fit as CSV, a row each, in the wanted order."""
        views = (self.view(int(i)) for i in self.select())
        return csv_text(COLUMNS, ([view.get(name) for name in COLUMNS] for view in views))

    def write_zip(self, file: IO[bytes]) -> None:
        """Writes the faces that fit, as the network sees them, in a folder a gender, with a table of all about them."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for index in self.select():
                gender = GENDERS[self.data.gender[index]]
                archive.writestr(f"{gender}/{index:06d}.png", encode_png(self.data.faces[index]))
            archive.writestr("faces.csv", self.as_csv(), zipfile.ZIP_DEFLATED)


def read_selection(store: Store, sha256: str, wanted: FaceFilter) -> FaceSelection:
    """Returns a dataset as a filter wants to see it.

    Where the filter names no model, one whose predictions are there is taken, the champion before others.

    Raises:
        NotFound: there is no such dataset, it is not processed yet, or it has no edits of the hash in the filter.
    """
    summary = find_summary(store, sha256)
    if summary is None:
        raise NotFound(f"dataset {sha256[:12]} does not exist, or is not processed yet")
    registry = Registry(store)
    cards = {card.version: card for card in registry.cards().records}

    @functools.cache  # the search for a model reads what is then shown
    def predictions(version: int | None) -> NDArray[np.float32] | None:
        with contextlib.suppress(NotFound):
            return None if version not in cards else read_predictions(store, sha256, cards[version])
        return None

    if wanted.version not in cards:
        order = [registry.find_aliases()[0].champion, *sorted(cards, reverse=True)]
        wanted = wanted.with_version(next((version for version in order if predictions(version) is not None), None))
    data, edits = load_dataset(store, sha256, summary), Edits(store)
    if wanted.labels != ARCHIVE_LABELS:
        frozen = edits.frozen(sha256, wanted.labels) if wanted.labels else edits.history(sha256).corrections()
        data = data if frozen.is_empty else with_corrections(data, frozen, frozen.sha256)
    out_of_fold = None
    if wanted.version is not None and wanted.sort == "suspects" and cards[wanted.version].dataset.sha256 == sha256:
        with contextlib.suppress(NotFound):
            out_of_fold = read_out_of_fold(store, cards[wanted.version].run_id)
    others = None if wanted.other == wanted.version else predictions(wanted.other)
    return FaceSelection(data, wanted, predictions(wanted.version), others, out_of_fold)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table as CSV, with cells that no spreadsheet takes for a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([to_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()

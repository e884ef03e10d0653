"""The faces of a dataset that fit a filter, in its order: read from the store, and written as CSV or as images."""

from __future__ import annotations

import contextlib
import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.datasets.columns import Dataset, load_dataset, with_corrections
from shared.datasets.face_filter import FaceFilter, Facet, count_facets, face_view, select_faces
from shared.errors import Conflict, NotFound
from shared.faces.png import encode_png
from shared.records.cells import to_cell
from shared.records.dataset import DatasetSummary, find_summary
from shared.records.edits import Edits
from shared.records.model_card import ModelCard
from shared.records.predictions import list_predicting_versions, read_out_of_fold, read_predictions
from shared.records.record import Listing
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

    @property
    def unanswered(self) -> list[str]:
        """The filter's fields that ask for predictions which there are none of; `select` passes over them."""
        unanswered = self.wanted.about_predictions if self.probabilities is None else []
        return unanswered + (self.wanted.about_two_models if self.others is None else [])

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
        """Writes the faces that fit, as the network sees them, in a folder a gender, with a table of all about them.

        The table's first column names each file as the zip does. Trained on, the zip gives every face its own label,
        whatever the images were called before.
        """
        rows: list[list[object]] = []
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for index in map(int, self.select()):
                view = self.view(index)
                name = f"{view['gender']}/{index:06d}.png"
                archive.writestr(name, encode_png(self.data.faces[index]))
                rows.append([name, *(view.get(column) for column in COLUMNS)])
            archive.writestr("faces.csv", csv_text(("file", *COLUMNS), rows), zipfile.ZIP_DEFLATED)


class FaceSource(Protocol):
    """The source of a selection's data: a store, or the dashboard's cache of one."""

    def cards(self) -> Listing[ModelCard]:
        """Returns the cards of all models."""

    def champion(self) -> int | None:
        """Returns the version that serves; None where there is none."""

    def edited(self, sha256: str, labels: str) -> Dataset:
        """Returns a decoded dataset with the labels that `Edits.corrections` names, or raises `NotFound`."""

    def predicting_versions(self, sha256: str) -> list[int]:
        """Returns the models that may have predictions for a dataset, newest first."""

    def predictions(self, sha256: str, version: int) -> NDArray[np.float32] | None:
        """Returns float32 (N,), a model's predictions; None where there are none."""

    def out_of_fold_predictions(self, sha256: str, version: int) -> NDArray[np.float32] | None:
        """Returns float32 (N,), by weights that have not learned from the face; None where there are none."""


def read_selection(source: FaceSource, sha256: str, wanted: FaceFilter) -> FaceSelection:
    """Returns a dataset as a filter wants to see it.

    Where the filter names no model, that of `find_predictions` is taken.

    Raises:
        NotFound: there is no such dataset, it is not processed yet, or it has no edits of the hash in the filter.
    """
    data = source.edited(sha256, wanted.labels)
    version, others, out_of_fold = wanted.version, None, None
    if version is not None and version in {card.version for card in source.cards().records}:
        probabilities = source.predictions(sha256, version)
    else:
        version, probabilities = find_predictions(source, sha256)
    if version is not None and wanted.sort == "suspects":
        out_of_fold = source.out_of_fold_predictions(sha256, version)
    if wanted.other is not None and wanted.other != version:
        others = source.predictions(sha256, wanted.other)
    return FaceSelection(data, wanted.with_version(version), probabilities, others, out_of_fold)


def select_strictly(source: FaceSource, sha256: str, wanted: FaceFilter) -> FaceSelection:
    """Returns a dataset as a filter wants to see it, and refuses a filter that cannot be answered in full.

    Raises:
        NotFound: as `read_selection`, or a model that it names does not exist.
        Conflict: it asks for predictions that no model, or no second one, has made.
    """
    versions = {card.version for card in source.cards().records}
    for version in (wanted.version, wanted.other):
        if version is not None and version not in versions:
            raise NotFound(f"model {version} does not exist")
    selection = read_selection(source, sha256, wanted)
    if unanswered := selection.unanswered:
        needs = "`other`, a second model" if unanswered[0] in wanted.about_two_models else "a model"
        raise Conflict(f"{unanswered[0]} needs {needs} that has predicted dataset {sha256[:12]}")
    return selection


def find_predictions(source: FaceSource, sha256: str) -> tuple[int | None, NDArray[np.float32] | None]:
    """Returns a model that has predicted a dataset, the champion before newer ones, and its predictions.

    They are float32 (N,); both are None where no model has.
    """
    champion = source.champion()
    for version in sorted(source.predicting_versions(sha256), key=lambda version: version != champion):
        if (probabilities := source.predictions(sha256, version)) is not None:
            return version, probabilities
    return None, None


class StoredFaces(FaceSource):
    """Reads each part from a store when it is asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._registry = Registry(store)

    def cards(self) -> Listing[ModelCard]:
        return self._registry.cards()

    def champion(self) -> int | None:
        return self._registry.find_aliases()[0].champion

    def edited(self, sha256: str, labels: str) -> Dataset:
        summary = self._summary(sha256)
        corrections = Edits(self._store).corrections(sha256, labels)
        return with_corrections(load_dataset(self._store, sha256, summary), corrections)

    def predicting_versions(self, sha256: str) -> list[int]:
        return list_predicting_versions(self._store, sha256, self.cards().records)

    def predictions(self, sha256: str, version: int) -> NDArray[np.float32] | None:
        with contextlib.suppress(NotFound):
            return read_predictions(self._store, sha256, self._registry.card(version), self._summary(sha256).faces)
        return None

    def out_of_fold_predictions(self, sha256: str, version: int) -> NDArray[np.float32] | None:
        with contextlib.suppress(NotFound):
            return read_out_of_fold(self._store, sha256, self._registry.card(version), self._summary(sha256).faces)
        return None

    def _summary(self, sha256: str) -> DatasetSummary:
        if (summary := find_summary(self._store, sha256)) is None:
            raise NotFound(f"dataset {sha256[:12]} does not exist, or is not processed yet")
        return summary


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table as CSV, with cells that no spreadsheet takes for a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([to_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()

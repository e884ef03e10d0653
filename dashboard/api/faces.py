"""The faces that a request asks for, by the filter in its address; the same as CSV; and one face with all about it."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from flask import Response, request
from numpy.typing import NDArray

from dashboard.context import dashboard
from dashboard.face_grid import FaceFilter, Facet, count_facets, face_view, select_faces
from dashboard.store_cache import Dataset
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.records.cells import to_cell
from shared.records.dataset import SPLITS

_VERSIONS: Final = 8
"""Models whose predictions are shown of a face."""
_ROLES: Final = {
    "train": "trained on this face",
    "validation": "tuned on this face",
    "test": "tested on this face",
}
_COLUMNS: Final = (
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


def requested_filter(sha256: str) -> tuple[FaceFilter, NDArray[np.float32] | None]:
    """Returns the request's filter, with the model in it whose predictions count, and that model's predictions.

    Where the request names no model, one whose predictions are there is taken, the champion before others.
    """
    parts = dashboard()
    wanted = FaceFilter.from_query(request.args)
    version = wanted.version
    if version not in [card.version for card in parts.store_cache.cards().records]:
        predicting = parts.store_cache.predicting_versions(sha256)
        champion = parts.client.registry.find_aliases()[0].champion
        version = champion if champion in predicting else next(iter(predicting), None)
    probabilities = None if version is None else parts.store_cache.predictions(sha256, version)
    return wanted.with_version(version), probabilities


def predictions_to_compare(sha256: str, wanted: FaceFilter) -> NDArray[np.float32] | None:
    """Returns the predictions of the filter's second model; None where it has none, or is the first one."""
    if wanted.other is None or wanted.other == wanted.version:
        return None
    return dashboard().store_cache.predictions(sha256, wanted.other)


@dataclass(frozen=True, slots=True)
class RequestedFaces:
    """A dataset as a request wants to see it.

    Attributes:
        data: with the labels that the filter asks for.
        wanted: the filter, with the model in it whose predictions count.
        probabilities: that model's, float32 (N,); None where there are none.
        others: the filter's second model's, float32 (N,); None where there are none.
    """

    data: Dataset
    wanted: FaceFilter
    probabilities: NDArray[np.float32] | None
    others: NDArray[np.float32] | None

    def select(self) -> NDArray[np.intp]:
        """Returns the indices of the faces that fit, in the wanted order."""
        cache, out_of_fold = dashboard().store_cache, None
        if self.wanted.sort == "suspects" and self.wanted.version is not None:
            out_of_fold = cache.out_of_fold_predictions(self.data.sha256, self.wanted.version)
        return select_faces(self.data, self.probabilities, self.wanted, self.others, out_of_fold)

    def count_facets(self) -> list[Facet]:
        """Returns how many faces there would be of each value, were the filter to name it."""
        return count_facets(self.data, self.probabilities, self.wanted, self.others)

    def view(self, index: int) -> dict[str, Any]:
        """Returns what a page says of one face."""
        return face_view(self.data, self.probabilities, index, self.wanted.threshold)


def requested_faces(sha256: str) -> RequestedFaces:
    """Returns the dataset as the request's filter wants to see it.

    Raises:
        NotFound: there is no such dataset, it is not decoded yet, or it has no edits of the hash in the filter.
    """
    wanted, probabilities = requested_filter(sha256)
    data = dashboard().store_cache.edited(sha256, wanted.labels)
    return RequestedFaces(data, wanted, probabilities, predictions_to_compare(sha256, wanted))


def list_faces(sha256: str, offset: int, limit: int, as_of: int | None) -> dict[str, Any]:
    """Returns some of the faces that fit the request's filter, and how many there are of each kind.

    Args:
        sha256: the dataset.
        offset: faces to pass over.
        limit: the most faces.
        as_of: which faces fit, and their order, are as after so many edits; what is said of each is as it is now. So
            no face is passed over by somebody who edits some and then asks for the next. None takes all edits.
    """
    asked = requested_faces(sha256)
    before = asked
    if as_of is not None:
        before = dataclasses.replace(asked, data=dashboard().store_cache.edited(sha256, asked.wanted.labels, as_of))
    found = before.select()
    return {
        "total": len(found),
        "faces": [_face_record(asked.view(int(i))) for i in found[offset : offset + limit]],
        "facets": [dataclasses.asdict(facet) for facet in asked.count_facets()],
        "version": asked.wanted.version if asked.probabilities is not None else None,
        "edits": asked.data.corrections,
    }


def describe_face(sha256: str, index: int) -> dict[str, Any]:
    """Returns one face: every model's prediction, the faces that look the same, and its edits, newest first."""
    cache = dashboard().store_cache
    asked = requested_faces(sha256)
    data = asked.data
    require_face(data, index)
    group = data.groups[index]
    alike = np.flatnonzero(data.groups == group) if group >= 0 else np.array([], np.intp)
    return {
        "face": _face_record(asked.view(index)),
        "archive_gender": GENDERS[cache.dataset(sha256).gender[index]],
        "predictions": list_predictions(data, index, asked.wanted.threshold),
        "near_duplicates": alike[alike != index].tolist(),
        "edits": [edit.as_dict() for edit in cache.edit_history(sha256).of_face(index)],
    }


def list_predictions(data: Dataset, index: int, threshold: float) -> list[dict[str, Any]]:
    """Returns what the newest models predict for a face, and whether each has learned from it."""
    cache = dashboard().store_cache
    found = []
    split = cache.dataset(data.sha256).split[index]
    for version in cache.predicting_versions(data.sha256)[:_VERSIONS]:
        probabilities = cache.predictions(data.sha256, version)
        if probabilities is not None:
            view = face_view(data, probabilities, index, threshold)
            own = cache.card(version).dataset.sha256 == data.sha256
            answer = {name: view[name] for name in ("predicted", "probability_female", "confidence", "correct")}
            role = _ROLES[SPLITS[split]] if own else "not part of its training"
            found.append({"version": version, **answer, "role": role})
    return found


def require_face(data: Dataset, index: int) -> None:
    """Raises `NotFound` where a dataset has no face of that index."""
    if index >= len(data):
        raise NotFound(
            f"face {index} does not exist: dataset {data.sha256[:12]} has {len(data):,} faces, numbered from 0"
        )


def _face_record(view: Mapping[str, Any]) -> dict[str, Any]:
    return {name: view.get(name) for name in (*_COLUMNS, "edited")}


def send_faces(sha256: str) -> Response:
    """Sends the faces that fit the request's filter, a row each, in its order."""
    return _send_csv(faces_csv(requested_faces(sha256)), f"{sha256[:12]}-faces.csv")


def faces_csv(asked: RequestedFaces) -> str:
    """Returns the faces that fit a filter as CSV, a row each, in its order."""
    views = (asked.view(int(i)) for i in asked.select())
    return _csv(_COLUMNS, ([view.get(name) for name in _COLUMNS] for view in views))


def send_rejects(sha256: str) -> Response:
    """Sends the rejected files of a dataset with their reasons, in archive order."""
    rows = ([row.name, row.reason, row.detail] for row in dashboard().store_cache.rejects(sha256))
    return _send_csv(_csv(("name", "reason", "detail"), rows), f"{sha256[:12]}-rejects.csv")


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([to_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def _send_csv(text: str, name: str) -> Response:
    answer = Response(text, mimetype="text/csv")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer

"""The faces that a request asks for, by the filter in its address; the same as CSV; and one face with all about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from flask import Response, request

from dashboard.context import dashboard
from shared.datasets.columns import Dataset
from shared.datasets.face_filter import FaceFilter, face_view
from shared.datasets.face_selection import COLUMNS, FaceSelection, csv_text, read_selection
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.records.dataset import SPLITS

_VERSIONS: Final = 8
"""Models whose predictions are shown of a face."""
_ROLES: Final = {
    "train": "trained on this face",
    "validation": "tuned on this face",
    "test": "tested on this face",
}


def requested_faces(sha256: str) -> FaceSelection:
    """Returns the dataset as the request's filter wants to see it; see `read_selection`."""
    return read_selection(dashboard().store_cache, sha256, FaceFilter.from_query(request.args))


def list_faces(sha256: str, offset: int, limit: int, as_of: int | None) -> dict[str, Any]:
    """Returns some of the faces that fit the request's filter, and how many there are of each kind.

    Args:
        sha256: the dataset.
        offset: faces to pass over.
        limit: the most faces.
        as_of: a number of edits. The selection and its order take only the first so many edits into account; the
            details of each face take all. Faces keep their places while somebody edits them. None takes all edits.
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
    return {name: view.get(name) for name in (*COLUMNS, "edited")}


def send_faces(sha256: str) -> Response:
    """Sends the faces that fit the request's filter, a row each, in its order."""
    return _send_csv(requested_faces(sha256).as_csv(), f"{sha256[:12]}-faces.csv")


def send_rejects(sha256: str) -> Response:
    """Sends the rejected files of a dataset with their reasons, in archive order."""
    rows = ([row.name, row.reason, row.detail] for row in dashboard().store_cache.rejects(sha256))
    return _send_csv(csv_text(("name", "reason", "detail"), rows), f"{sha256[:12]}-rejects.csv")


def _send_csv(text: str, name: str) -> Response:
    answer = Response(text, mimetype="text/csv")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer

"""The faces that a request asks for, by the filter in its address; the same as CSV; and one face with all about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from flask import Response, request
from numpy.typing import NDArray

from dashboard.api.uploads import parse_integer
from dashboard.context import dashboard
from shared.datasets.columns import EXCLUDED, Dataset
from shared.datasets.face_filter import FaceFilter, face_view
from shared.datasets.face_selection import COLUMNS, FaceSelection, csv_text, select_strictly
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.records.dataset import SPLITS

_VERSIONS: Final = 8
"""Models whose predictions are shown of a face."""
_ROLES: Final = {
    SPLITS.index("train"): "trained on this face",
    SPLITS.index("validation"): "tuned on this face",
    SPLITS.index("test"): "tested on this face",
    EXCLUDED: "left out of its training",
}


def requested_faces(sha256: str) -> FaceSelection:
    """Returns the dataset as the request's filter wants to see it, or raises as `FaceFilter.parse`, `select_strictly`.

    Pages pass over what makes no sense in an address. A program must not take all faces for those that it meant.
    """
    fields = FaceFilter.__dataclass_fields__.keys()
    wanted = FaceFilter.parse({name: text for name, text in request.args.items() if name in fields and text})
    return select_strictly(dashboard().store_cache, sha256, wanted)


def requested_as_of() -> int | None:
    """Returns the number of edits and undos that the request wants faces to be selected by; None for all."""
    return parse_integer(request.args.get("as_of"), "as_of", 0, 10**9)


def select_as_of(asked: FaceSelection, as_of: int | None) -> NDArray[np.intp]:
    """Returns the indices of the faces that fit, in their order, as after so many edits and undos; None for all.

    Edits made since then move no face.
    """
    if as_of is None:
        return asked.select()
    data = dashboard().store_cache.edited(asked.data.sha256, asked.wanted.labels, as_of)
    return dataclasses.replace(asked, data=data).select()


def list_faces(sha256: str, offset: int, limit: int, as_of: int | None) -> dict[str, Any]:
    """Returns some of the faces that fit the request's filter, and how many there are of each kind.

    Args:
        sha256: the dataset.
        offset: faces to pass over.
        limit: the most faces.
        as_of: as `select_as_of` takes it; the details of each face take all edits.
    """
    asked = requested_faces(sha256)
    found = select_as_of(asked, as_of)
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
    for version in cache.predicting_versions(data.sha256)[:_VERSIONS]:
        probabilities = cache.predictions(data.sha256, version)
        if probabilities is not None:
            view = face_view(data, probabilities, index, threshold)
            answer = {name: view[name] for name in ("predicted", "probability_female", "confidence", "correct")}
            found.append({"version": version, **answer, "role": _describe_role(data, index, version)})
    return found


def _describe_role(data: Dataset, index: int, version: int) -> str:
    """Returns what a face was to a model in its training."""
    cache = dashboard().store_cache
    trained = cache.card(version).dataset
    if trained.sha256 != data.sha256:
        return "not part of the dataset that it learned from"
    return _ROLES[cache.edited(data.sha256, trained.labels).split[index]]


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

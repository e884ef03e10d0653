"""The faces that a request asks for, by the filter in its address; and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from flask import Response, request
from numpy.typing import NDArray

from dashboard.context import dashboard
from dashboard.face_grid import FaceFilter, face_view, select_faces
from shared.records.cells import to_cell

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
    """Returns the predictions of the filter's second model; None where it names none, or that model has none."""
    return None if wanted.other is None else dashboard().store_cache.predictions(sha256, wanted.other)


def send_faces(sha256: str) -> Response:
    """Sends the faces that fit the request's filter, a row each, in its order."""
    data = dashboard().store_cache.dataset(sha256)
    wanted, probabilities = requested_filter(sha256)
    found = select_faces(data, probabilities, wanted, predictions_to_compare(sha256, wanted))
    views = (face_view(data, probabilities, int(i), wanted.threshold) for i in found)
    return _send_csv(_COLUMNS, ([view.get(name) for name in _COLUMNS] for view in views), f"{sha256[:12]}-faces.csv")


def send_rejects(sha256: str) -> Response:
    """Sends the rejected files of a dataset with their reasons, in archive order."""
    rows = ([row.name, row.reason, row.detail] for row in dashboard().store_cache.rejects(sha256))
    return _send_csv(("name", "reason", "detail"), rows, f"{sha256[:12]}-rejects.csv")


def _send_csv(columns: Sequence[str], rows: Iterable[Sequence[object]], name: str) -> Response:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([to_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    answer = Response(text.getvalue(), mimetype="text/csv")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer

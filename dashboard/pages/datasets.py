"""Datasets: the list, what one holds, its faces with their predictions, and a page for each face."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any, Final

import cv2
from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.api.uploads import parse_number
from dashboard.context import dashboard
from dashboard.face_grid import SORTS, FaceFilter, encode_png, face_view, select_faces
from dashboard.pages.originals import send_original
from dashboard.store_cache import Dataset
from shared.errors import InvalidMessage, NotFound
from shared.faces.labels import ETHNICITIES, GENDERS
from shared.faces.rejects import REJECT_REASONS
from shared.records.dataset import AGE_BANDS, SPLITS
from shared.records.runs import Run

_PAGE: Final = 60
_EXAMPLES: Final = 5
_VERSIONS: Final = 8
_FOREVER: Final = "private, max-age=31536000, immutable"

blueprint = Blueprint("datasets", __name__)


@blueprint.get("/datasets")
def list_datasets() -> str:
    """Shows all datasets."""
    cache = dashboard().store_cache
    runs_of: dict[str, list[Run]] = defaultdict(list)
    for run in cache.runs().records:
        if run.dataset:
            runs_of[run.dataset].append(run)
    items: list[dict[str, Any]] = []
    for sha256 in cache.dataset_ids():
        found = runs_of[sha256]
        summary = cache.summary(sha256)
        items.append({"sha256": sha256, "summary": summary, "runs": found, "unread": _unread(found)})
    # The newest run says when a dataset was last used.
    items.sort(key=lambda item: item["runs"][0].created if item["runs"] else "", reverse=True)
    return render_template("datasets.html", datasets=items)


@blueprint.get("/datasets/<sha256>")
def show_dataset(sha256: str) -> str:
    """Shows what a dataset holds, and its faces."""
    cache = dashboard().store_cache
    found_runs = [run for run in cache.runs().records if run.dataset == sha256]
    summary = cache.summary(sha256)
    if summary is None:
        if sha256 not in cache.dataset_ids():
            raise NotFound(f"there is no dataset {sha256[:12]!r}")
        return render_template("dataset_waiting.html", sha256=sha256, runs=found_runs, unread=_unread(found_runs))
    data = cache.dataset(sha256)
    predicting = cache.predicting_versions(sha256)
    version = _version(predicting)
    probabilities = None if version is None else cache.predictions(sha256, version)
    wanted = FaceFilter.from_query(request.args)
    found = select_faces(data, probabilities, wanted)
    pages = max(1, -(-len(found) // _PAGE))
    page = min(max(1, request.args.get("page", 1, int)), pages)
    shown = found[(page - 1) * _PAGE : page * _PAGE]
    return render_template(
        "dataset.html",
        data=data,
        summary=summary,
        runs=found_runs,
        rejects=_rejects(sha256),
        versions=[card.version for card in cache.cards().records],
        version=version,
        predicted=probabilities is not None,
        scoring=dashboard().scoring.state,
        wanted=wanted,
        faces=[face_view(data, probabilities, int(i)) for i in shown],
        found=len(found),
        page=page,
        pages=pages,
        link=lambda number: _link(sha256, page=number),
        genders=GENDERS,
        ethnicities=ETHNICITIES,
        bands=AGE_BANDS,
        splits=SPLITS,
        sorts=SORTS,
    )


@blueprint.post("/datasets/<sha256>/predict")
def score_dataset(sha256: str) -> WsgiResponse:
    """Starts predicting all faces by a model that was trained on others."""
    version = parse_number(request.form.get("version"), "version", 1, 10**9)
    if version is None:
        raise InvalidMessage("version is missing; expected a model's number")
    dashboard().scoring.score(sha256, int(version))
    return redirect(url_for("datasets.show_dataset", sha256=sha256, version=int(version)) + "#faces", 303)


@blueprint.get("/datasets/<sha256>/summary.json")
def summary_json(sha256: str) -> Response:
    """Returns what a dataset holds, for the plots."""
    summary = dashboard().store_cache.summary(sha256)
    if summary is None:
        raise NotFound(f"there is no decoded dataset {sha256[:12]!r}")
    return jsonify(summary.model_dump(mode="json"))


@blueprint.get("/datasets/<sha256>/faces/<int:index>")
def show_face(sha256: str, index: int) -> str:
    """Shows one face: its label beside what each model says."""
    cache = dashboard().store_cache
    data = _with_face(sha256, index)
    versions = cache.predicting_versions(sha256)[:_VERSIONS]
    views = [(number, face_view(data, cache.predictions(sha256, number), index)) for number in versions]
    return render_template("face.html", data=data, face=face_view(data, None, index), views=views)


@blueprint.get("/datasets/<sha256>/faces/<int:index>.png")
def face_image(sha256: str, index: int) -> Response:
    """Sends a face as the network sees it, 128 x 128 pixels or the `size` asked for."""
    face = _with_face(sha256, index).faces[index]
    size = request.args.get("size", 128, int)
    if 16 <= size < 128:
        face = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA).astype("uint8")
    answer = Response(encode_png(face), mimetype="image/png")
    # The address holds the archive's hash, so what it names never changes.
    answer.headers["Cache-Control"] = _FOREVER
    return answer


@blueprint.get("/datasets/<sha256>/faces/<int:index>/original")
def face_original(sha256: str, index: int) -> Response:
    """Sends a face's image as it stands in the archive."""
    data = _with_face(sha256, index)
    answer = send_original(f"datasets/{sha256}/archive.zip", data.names[index])
    answer.headers["Cache-Control"] = _FOREVER
    return answer


def _unread(found: list[Run]) -> Run | None:
    """Returns the newest of some runs if all have ended: why their archive was not read; None where one may read it."""
    return found[0] if found and all(run.state.is_final for run in found) else None


def _with_face(sha256: str, index: int) -> Dataset:
    data = dashboard().store_cache.dataset(sha256)
    if index >= len(data):
        raise NotFound(f"dataset {sha256[:12]} has {len(data):,} faces; there is no face {index}")
    return data


def _version(predicting: list[int]) -> int | None:
    """Returns the version that the request chose; else one whose predictions are there, the champion before others."""
    parts = dashboard()
    chosen = request.args.get("version", None, int)
    if chosen in [card.version for card in parts.store_cache.cards().records]:
        return chosen
    champion = parts.client.registry.find_aliases()[0].champion
    return champion if champion in predicting else next(iter(predicting), None)


def _rejects(sha256: str) -> list[dict[str, Any]]:
    """Returns the rejects by reason, most frequent first, with some examples each."""
    groups: dict[str, list[Any]] = defaultdict(list)
    with contextlib.suppress(NotFound):
        for row in dashboard().store_cache.rejects(sha256):
            groups[row.reason].append(row)
    return [
        {"reason": reason, "meaning": REJECT_REASONS.get(reason, ""), "count": len(rows), "examples": rows[:_EXAMPLES]}
        for reason, rows in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def _link(sha256: str, **changes: Any) -> str:
    query = {key: value for key, value in request.args.items() if value} | changes
    return url_for("datasets.show_dataset", sha256=sha256, **query) + "#faces"

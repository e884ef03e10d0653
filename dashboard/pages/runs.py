"""Training runs: the list, one run as it trains and when it is done, and several side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.context import dashboard
from dashboard.face_grid import FaceFilter, face_view, select_faces
from dashboard.pages.filters import parameters, progress_view
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.records.dataset import SPLITS
from shared.records.evaluation import MIN_GROUP
from shared.records.runs import Run

_PAGE = 50
_COMPARED = 6
_SCORE_BINS = 200
_SUSPECTS = 12

blueprint = Blueprint("runs", __name__)


@blueprint.get("/runs")
def list_runs() -> str:
    """Shows all runs, newest first."""
    listing = dashboard().store_cache.runs()
    found = listing.records
    page = max(1, request.args.get("page", 1, int))
    return render_template(
        "runs.html",
        damaged=listing.damaged,
        runs=[(run, progress_view(run.progress, run.state)) for run in found[(page - 1) * _PAGE : page * _PAGE]],
        total=len(found),
        page=page,
        pages=-(-len(found) // _PAGE),
        link=lambda number: url_for("runs.list_runs", page=number),
    )


@blueprint.get("/runs/<run_id>")
def show_run(run_id: str) -> str:
    """Shows a run: its curves while it trains, how well it does when done."""
    parts = dashboard()
    run = parts.store_cache.run(run_id)
    evaluation = parts.client.runs.evaluation(run_id)
    version = run.model.version if run.model else None
    return render_template(
        "run.html",
        run=run,
        parameters=_parameters(run),
        progress=progress_view(run.progress, run.state),
        ended=run.state.is_final,
        epochs=len(parts.client.runs.history(run_id)),
        evaluation=evaluation,
        version=version,
        summary=parts.store_cache.summary(run.dataset) if run.dataset else None,
        suspects=_suspects(run.dataset, version) if version else [],
        kinds=("gender", "ethnicity", "age"),
        min_group=MIN_GROUP,
    )


@blueprint.post("/runs/<run_id>/cancel")
def cancel_run(run_id: str) -> WsgiResponse:
    """Asks for a run to stop."""
    dashboard().client.runs.request_cancel(run_id)
    flash("Asked to stop. The trainer ends the run within a few seconds.")
    return redirect(url_for("runs.show_run", run_id=run_id), 303)


@blueprint.get("/runs/<run_id>/history.csv")
def history_csv(run_id: str) -> Response:
    """Sends the curves' figures."""
    parts = dashboard()
    parts.store_cache.run(run_id)
    key = f"runs/{run_id}/history.csv"
    if not parts.store.exists(key):
        raise NotFound("this run has no finished epoch yet")
    answer = Response(parts.store.get(key), mimetype="text/csv")
    answer.headers["Content-Disposition"] = f'attachment; filename="{run_id}-history.csv"'
    return answer


@blueprint.get("/runs/<run_id>/scores.json")
def scores(run_id: str) -> Response:
    """Returns how many held-out faces of each label have which probability: what the threshold's slider counts."""
    parts = dashboard()
    run = parts.store_cache.run(run_id)
    version = run.model.version if run.model else None
    probabilities = parts.store_cache.predictions(run.dataset, version) if run.dataset and version else None
    if run.dataset is None or probabilities is None:
        raise NotFound("this run has no predictions in the store")
    data = parts.store_cache.dataset(run.dataset)
    held_out = data.split == SPLITS.index("test")
    bins = np.minimum((probabilities * _SCORE_BINS).astype(int), _SCORE_BINS - 1)
    counts = {
        gender: np.bincount(bins[held_out & (data.gender == i)], minlength=_SCORE_BINS).tolist()
        for i, gender in enumerate(GENDERS)
    }
    return jsonify({"bins": _SCORE_BINS, **counts})


@blueprint.get("/runs/compare")
def compare() -> str:
    """Shows some runs on the same axes."""
    parts = dashboard()
    chosen = list(dict.fromkeys(request.args.getlist("run")))[:_COMPARED]
    found = [parts.store_cache.run(run_id) for run_id in chosen]
    evaluations = {run.run_id: parts.client.runs.evaluation(run.run_id) for run in found}
    values = {run.run_id: _parameters(run) for run in found}
    names = sorted({name for params in values.values() for name in params})
    differing = [name for name in names if len({params.get(name) for params in values.values()}) > 1]
    return render_template("compare.html", runs=found, evaluations=evaluations, differing=differing, parameters=values)


def _parameters(run: Run) -> dict[str, str]:
    """Returns a run's parameters, and what became of those left to the recipe: its model's card says all of them."""
    asked = run.params.as_dict() if run.params else None
    if run.model:
        return parameters(asked, dashboard().store_cache.card(run.model.version).params)
    epochs = run.progress.epochs if run.progress else None  # of a training under way
    return parameters(asked, {"epochs": epochs} if epochs else None)


def _suspects(sha256: str | None, version: int) -> list[dict[str, Any]]:
    """Returns the faces whose label the model contradicts most firmly: likely label errors."""
    cache = dashboard().store_cache
    if sha256 is None or cache.summary(sha256) is None:
        return []
    probabilities = cache.predictions(sha256, version)
    if probabilities is None:
        return []
    try:
        data = cache.dataset(sha256)
    except NotFound:  # deleted since its summary was read
        return []
    order = select_faces(data, probabilities, FaceFilter(result="wrong", sort="wrong"))
    return [face_view(data, probabilities, int(i)) for i in order[:_SUSPECTS]]

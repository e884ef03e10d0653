"""Training runs: the list, one run as it trains and when it is done, and several side by side."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from numpy.typing import NDArray
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.context import dashboard
from dashboard.face_grid import THRESHOLD, FaceFilter, face_view, predict_female, read_threshold, select_faces
from dashboard.group_metrics import measure_groups, measured_before
from dashboard.pages.filters import parameters, progress_view
from dashboard.pages.train_fields import parameter_fields
from dashboard.store_cache import Dataset
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.records.dataset import SPLITS
from shared.records.evaluation import MIN_GROUP
from shared.records.runs import Run, RunState

_PAGE: Final = 50
_COMPARED: Final = 6
_STEPS: Final = 200
"""Of the threshold's slider, from 0 to 1."""
_SUSPECTS: Final = 12
_METRICS: Final = (
    ("accuracy", "Accuracy", "percent"),
    ("balanced_accuracy", "Balanced accuracy", "percent"),
    ("auc", "AUC", "number"),
    ("ece", "Calibration error", "percent"),
    ("log_loss", "Log loss", "number"),
    ("gap", "Accuracy gap between groups", "percent"),
)

blueprint = Blueprint("runs", __name__)


@blueprint.get("/runs")
def list_runs() -> str:
    """Shows all runs, newest first."""
    page = max(1, request.args.get("page", 1, int))
    listing = dashboard().store_cache.runs(_PAGE, (page - 1) * _PAGE)
    return render_template(
        "runs.html",
        runs=[(run, _progress(run)) for run in listing.records],
        damaged=listing.damaged,
        total=listing.total,
        page=page,
        pages=-(-listing.total // _PAGE),
        link=lambda number: url_for("runs.list_runs", page=number),
    )


@blueprint.get("/runs/<run_id>")
def show_run(run_id: str) -> str:
    """Shows a run: how well it does when done, its curves while it trains."""
    parts = dashboard()
    run = parts.store_cache.run(run_id)
    evaluation = parts.client.runs.evaluation(run_id)
    version = run.model.version if run.model else None
    threshold = read_threshold(request.args)
    view: dict[str, Any] = {"suspects": []}
    if evaluation:
        view |= {"confusion": evaluation.confusion, "groups": measured_before(evaluation), "group_errors": False}
        view["groups_threshold"] = THRESHOLD
    if evaluation and (scored := _scored_dataset(run)) is not None:
        data, probabilities = scored
        view |= {
            "confusion": _confusion(data, probabilities, threshold),
            "groups": measure_groups(data, probabilities, threshold),
            "group_errors": True,
            "groups_threshold": threshold,
            "suspects": _suspects(data, probabilities),
        }

    def faces_url(**filters: Any) -> str:
        query = FaceFilter(version=version, split="test", threshold=threshold, **filters).as_query()
        return url_for("datasets.show_dataset", sha256=run.dataset, **query) + "#faces"

    trainable = run.dataset is not None and parts.store.exists(f"datasets/{run.dataset}/archive.zip")
    return render_template(
        "run.html",
        run=run,
        parameters=_parameters(run),
        progress=_progress(run),
        abandoned=parts.workers.abandoned(run_id),
        cancelling=not run.state.is_final and parts.client.runs.cancel_requested(run_id),
        ended=run.state.is_final,
        retry=run.state is RunState.FAILED,
        epochs=len(parts.client.runs.history(run_id)),
        evaluation=evaluation,
        version=version,
        threshold=threshold,
        faces_url=faces_url,
        suspects_query=FaceFilter(version=version, result="wrong", sort="largest_error").as_query(),
        min_group=MIN_GROUP,
        fields=parameter_fields(run.params) if trainable else [],
        ahead=parts.runs_ahead(),
        **view,
    )


@blueprint.post("/runs/<run_id>/cancel")
def cancel_run(run_id: str) -> WsgiResponse:
    """Asks for a run to stop."""
    dashboard().client.runs.request_cancel(run_id)
    flash("Cancelling…")
    return redirect(url_for("runs.show_run", run_id=run_id), 303)


@blueprint.post("/runs/<run_id>/retry")
def retry_run(run_id: str) -> WsgiResponse:
    """Sends a failed run back to its queue."""
    again = dashboard().client.retry_run(run_id)
    return redirect(url_for("runs.show_run", run_id=again), 303)


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
    """Returns, by label, how many test faces have a probability of at least 0, 0.005, … 1: what the slider counts."""
    scored = _scored_dataset(dashboard().store_cache.run(run_id))
    if scored is None:
        raise NotFound("this run has no predictions in the store")
    data, probabilities = scored
    test = data.split == SPLITS.index("test")
    thresholds = [step / _STEPS for step in range(_STEPS + 1)]
    return jsonify(
        {
            gender: [int(predict_female(probabilities[test & (data.gender == i)], at).sum()) for at in thresholds]
            for i, gender in enumerate(GENDERS)
        }
    )


@blueprint.get("/runs/compare")
def compare() -> str:
    """Shows some runs on the same axes."""
    parts = dashboard()
    selected = list(dict.fromkeys(request.args.getlist("run")))
    found = [parts.store_cache.run(run_id) for run_id in selected[:_COMPARED]]
    names = Counter(run.name for run in found)
    # Runs of one name are told apart by the end of their ids, as their charts' legends do.
    labels = {
        run.run_id: f"{run.name[:24]} · {run.run_id[-5:]}" if names[run.name] > 1 else run.name[:40] for run in found
    }
    values = {run.run_id: _parameters(run) for run in found}
    parameter_names = sorted({name for params in values.values() for name in params})
    return render_template(
        "compare.html",
        runs=found,
        left_out=max(0, len(selected) - _COMPARED),
        labels=labels,
        metrics=_METRICS,
        evaluations={run.run_id: parts.client.runs.evaluation(run.run_id) for run in found},
        differing=[name for name in parameter_names if len({params.get(name) for params in values.values()}) > 1],
        parameters=values,
    )


def _progress(run: Run) -> dict[str, Any]:
    return progress_view(run.progress, run.state, abandoned=dashboard().workers.abandoned(run.run_id))


def _parameters(run: Run) -> dict[str, str]:
    """Returns a run's parameters, and what became of those left to the recipe, as far as that is known."""
    asked = run.params.as_dict() if run.params else None
    if run.model:
        return parameters(asked, dashboard().store_cache.card(run.model.version).params)
    epochs = run.progress.epochs if run.progress else None  # of a training under way
    if epochs is None and run.state.is_final:
        epochs = len(dashboard().client.runs.history(run.run_id)) or None  # of one that ended without a model
    return parameters(asked, {"epochs": epochs} if epochs else None)


def _scored_dataset(run: Run) -> tuple[Dataset, NDArray[np.float32]] | None:
    """Returns a run's dataset and its model's predictions for it; None where one of them is not there."""
    cache = dashboard().store_cache
    if run.dataset is None or run.model is None:
        return None
    try:
        probabilities = cache.predictions(run.dataset, run.model.version)
        return None if probabilities is None else (cache.dataset(run.dataset), probabilities)
    except NotFound:
        return None


def _confusion(data: Dataset, probabilities: NDArray[np.float32], threshold: float) -> dict[str, int]:
    test = data.split == SPLITS.index("test")
    female = predict_female(probabilities, threshold)
    return {
        f"{label}_as_{predicted}": int((test & (data.gender == i) & (female == bool(j))).sum())
        for i, label in enumerate(GENDERS)
        for j, predicted in enumerate(GENDERS)
    }


def _suspects(data: Dataset, probabilities: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Returns the faces where the model most confidently disagrees with the label: likely label errors."""
    order = select_faces(data, probabilities, FaceFilter(result="wrong", sort="largest_error"))
    return [face_view(data, probabilities, int(i)) for i in order[:_SUSPECTS]]

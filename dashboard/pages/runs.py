"""Training runs: the list, one run as it trains and when it is done, and several side by side."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.context import dashboard
from dashboard.pages.answer import answer_view, find_scored
from dashboard.pages.filters import parameters, progress_view
from dashboard.pages.manage import annotation_view, read_list_page, tag_filter
from dashboard.pages.train_fields import label_choices, parameter_fields
from shared.datasets.face_filter import read_threshold
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.measures.at_threshold import female_counts
from shared.records.dataset import SPLITS
from shared.records.runs import Run, RunState

_PAGE: Final = 50
_COMPARED: Final = 6
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
    tagged = tag_filter("run")
    listing, page, pages = read_list_page(dashboard().store_cache.runs, _PAGE, tagged["tag"] or None)
    return render_template(
        "runs.html",
        runs=[(run, _progress(run)) for run in listing.records],
        damaged=listing.damaged + tagged["damaged_annotations"],
        **tagged,
        total=listing.total,
        page=page,
        pages=pages,
        link=lambda number: url_for("runs.list_runs", page=number, tag=tagged["tag"] or None),
    )


@blueprint.get("/runs/<run_id>")
def show_run(run_id: str) -> str:
    """Shows a run: how well it does when done, its curves while it trains."""
    parts = dashboard()
    run = parts.store_cache.run(run_id)
    evaluation = parts.client.runs.evaluation(run_id)
    card = parts.store_cache.find_card(run.model.version) if run.model else None
    threshold = read_threshold(request.args)
    answer = answer_view(evaluation, run.dataset, card, threshold) if evaluation else {"evaluation": None}
    trainable = run.dataset is not None and parts.store.exists(f"datasets/{run.dataset}/archive.zip")
    return render_template(
        "run.html",
        run=run,
        about=annotation_view("run", run_id, run.name),
        parameters=_parameters(run),
        progress=_progress(run),
        abandoned=parts.workers.abandoned(run_id),
        cancelling=not run.state.is_final and parts.client.runs.cancel_requested(run_id),
        ended=run.state.is_final,
        retry=run.state is RunState.FAILED,
        epochs=len(parts.client.runs.history(run_id)),
        version=card.version if card else None,
        scores_url=url_for("runs.scores", run_id=run_id),
        threshold_url=lambda value: url_for("runs.show_run", run_id=run_id, threshold=value),
        rival=_find_rival(run, request.args.get("against", None, int)),
        fields=parameter_fields(run.params) if trainable else [],
        labels=label_choices(_current_edits(run), run),
        ahead=parts.runs_ahead(),
        **answer,
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
    cache = dashboard().store_cache
    run = cache.run(run_id)
    card = cache.find_card(run.model.version) if run.model else None
    scored = find_scored(run.dataset, card) if run.dataset and card else None
    if scored is None:
        raise NotFound("this run has no predictions in the store")
    data, probabilities = scored
    test = data.split == SPLITS.index("test")
    counts = female_counts(data.gender[test] == 1, probabilities[test])
    return jsonify(dict(zip(GENDERS, counts, strict=True)))


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
    if run.model and (card := dashboard().store_cache.find_card(run.model.version)):
        return parameters(asked, card.params)
    epochs = run.progress.epochs if run.progress else None  # of a training under way
    if epochs is None and run.state.is_final:
        epochs = len(dashboard().client.runs.history(run.run_id)) or None  # of one that ended without a model
    return parameters(asked, {"epochs": epochs} if epochs else None)


def _current_edits(run: Run) -> str | None:
    """Returns the hash of the edits of a run's dataset that are in force; None where there are none."""
    if run.dataset is None:
        return None
    corrections = dashboard().store_cache.corrections(run.dataset)
    return None if corrections.is_empty else corrections.sha256


def _find_rival(run: Run, version: int | None) -> Run | None:
    """Returns the run of the model that a run with corrected labels is to be compared with.

    That is the version that is asked for; otherwise the newest one of the same dataset that is older than the run's.
    """
    if run.edits is None or run.model is None or run.dataset is None:
        return None
    cache = dashboard().store_cache
    older = [number for number in cache.predicting_versions(run.dataset) if number < run.model.version]
    chosen = version if version in older else next(iter(older), None)
    return None if chosen is None else cache.find_run(cache.card(chosen).run_id)

"""The overview: everything at a glance, and what to do first."""

from __future__ import annotations

import dataclasses
import statistics
from itertools import islice
from typing import Any, Final

from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.api.uploads import parse_integer
from dashboard.context import Dashboard, dashboard
from dashboard.pages.filters import progress_view
from dashboard.pages.issues import NEWEST, find_issues
from dashboard.tasks.samples import SAMPLE_BOUNDS, SAMPLE_IMAGES
from dashboard.workers import Speed, WorkerStates
from shared.broker.base import Depth
from shared.errors import Retryable
from shared.records.dismissals import dismiss_failures
from shared.records.record import list_records

_SHOWN: Final = 6

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
def overview() -> str:
    """Shows the model in use, training runs, services, queues and what needs attention."""
    parts = dashboard()
    cache = parts.store_cache
    runs, jobs, open_runs, cards = cache.runs(NEWEST), cache.jobs(NEWEST), cache.open_runs(), cache.cards(NEWEST)
    aliases, damaged = parts.client.registry.find_aliases()
    champion = list_records([] if aliases.champion is None else [aliases.champion], cache.card)
    for found in (runs, jobs, open_runs, cards, champion):
        damaged += found.damaged
    damaged_once = {damage.key: damage for damage in damaged}.values()
    depths = _depths(parts)
    issues = find_issues(parts, runs.records, jobs.records, open_runs.records, depths, damaged_once, aliases)
    return render_template(
        "overview.html",
        champion=next(iter(champion.records), None),
        running=[
            (run, progress_view(run.progress, run.state, abandoned=parts.workers.abandoned(run.run_id)))
            for run in open_runs.records
        ],
        recent=list(islice(cache.ended_runs(open_runs.records), _SHOWN)),
        jobs=jobs.records[:_SHOWN],
        workers=parts.workers.states(),
        speed=parts.workers.speed(),
        lately=_summarize_speed(parts.workers),
        depths=depths,
        issues=issues[:_SHOWN],
        more_issues=max(0, len(issues) - _SHOWN),
        sample=parts.samples.state,
        is_new=not runs.total and aliases.champion is None,
        predictions=_recent_predictions(parts),
    )


@blueprint.get("/speed.json")
def speed_json() -> Response:
    """Sends the speed over the last ten minutes, as columns; `minutes` are before now, so at most 0."""
    history = dashboard().workers.speed_history()
    columns = [field.name for field in dataclasses.fields(Speed)]
    return jsonify(
        {
            "minutes": [round(-ago_s / 60, 3) for ago_s, _ in history],
            **{key: [getattr(speed, key) for _, speed in history] for key in columns},
        }
    )


@blueprint.post("/samples")
def generate_sample() -> WsgiResponse:
    """Starts with the sample dataset."""
    images = parse_integer(request.form.get("images"), "images", *SAMPLE_BOUNDS) or SAMPLE_IMAGES
    dashboard().samples.generate(images)
    flash("Generating the sample dataset; training starts automatically.")
    return redirect(url_for("overview.overview"), 303)


@blueprint.post("/issues/dismiss")
def dismiss_issue() -> WsgiResponse:
    """Takes an issue off the list."""
    dismiss_failures(dashboard().store, request.form.getlist("key")[: _SHOWN * 20])
    return redirect(url_for("overview.overview"), 303)


def _depths(parts: Dashboard) -> dict[str, Depth] | None:
    """Returns the queues' depths by short name; None while the broker is away."""
    try:
        found = parts.broker.depths()
    except Retryable:
        return None
    return {parts.broker.topology.short(queue): depth for queue, depth in found.items()}


def _summarize_speed(workers: WorkerStates) -> dict[str, float | None]:
    """Returns the mean and highest speed, and the worst latency, of the last ten minutes; None without any."""
    history = [speed for _, speed in workers.speed_history()]
    rates = [speed.images_per_second for speed in history]
    return {
        "mean_rate": statistics.fmean(rates) if rates else None,
        "top_rate": max(rates, default=None),
        "worst_ms": max((ms for speed in history if (ms := speed.latency_p99_ms) is not None), default=None),
    }


def _recent_predictions(parts: Dashboard) -> list[dict[str, Any]]:
    """Returns the newest predictions of all clients, newest first; those made here carry the image's name.

    A worker tells no names: one of its answers is taken for one made here where model and probability are the same.
    """
    own = list(parts.recent_predictions)[:_SHOWN]
    known = {(entry["version"], entry["probability_female"]) for entry in parts.recent_predictions}
    others = [
        entry
        for entry in parts.workers.recent_predictions()
        if entry["images"] > 1 or (entry["version"], entry["probability_female"]) not in known
    ]
    return sorted(own + others, key=lambda entry: str(entry["at"]), reverse=True)[:_SHOWN]

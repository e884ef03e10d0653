"""The overview: everything at a glance, and what to do first."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.context import Dashboard, dashboard
from dashboard.pages.filters import progress_view
from dashboard.workers import Speed, WorkerStates
from shared.broker.base import Depth
from shared.errors import Retryable
from shared.records.jobs import Job
from shared.records.record import DamagedRecord
from shared.records.runs import Run

_SHOWN = 6

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
def overview() -> str:
    """Shows models, trainings, workers, queues and what wants attention."""
    parts = dashboard()
    all_runs, all_jobs = parts.store_cache.runs(), parts.store_cache.jobs()
    aliases, damaged = parts.client.registry.find_aliases()
    cards = parts.store_cache.cards()
    damaged += [*cards.damaged, *all_runs.damaged, *all_jobs.damaged]
    champion = next((card for card in cards.records if card.version == aliases.champion), None)
    return render_template(
        "overview.html",
        champion=champion,
        running=[(run, progress_view(run.progress, run.state)) for run in all_runs.records if not run.state.is_final],
        recent=[run for run in all_runs.records if run.state.is_final][:_SHOWN],
        jobs=all_jobs.records[:_SHOWN],
        workers=parts.workers.states(),
        speed=parts.workers.speed(),
        lately=_lately(parts.workers),
        depths=_depths(parts),
        attention=_attention(parts, all_runs.records, all_jobs.records, damaged),
        sample=parts.samples.state,
        is_new=not all_runs.records and champion is None,
        predictions=_newest_predictions(parts),
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
def draw_sample() -> WsgiResponse:
    """Starts with the sample dataset."""
    dashboard().samples.generate(int(request.form.get("images", 1500)))
    flash("The sample dataset is being drawn; its training starts by itself.")
    return redirect(url_for("overview.overview"), 303)


def _depths(parts: Dashboard) -> dict[str, Depth] | None:
    """Returns the queues' depths by short name; None while the broker is away."""
    try:
        found = parts.broker.depths()
    except Retryable:
        return None
    return {parts.broker.topology.short(queue): depth for queue, depth in found.items()}


def _attention(
    parts: Dashboard, all_runs: list[Run], all_jobs: list[Job], damaged: list[DamagedRecord]
) -> list[tuple[str, str, str]]:
    """Returns (what is wrong, what to do, where) for each thing that wants a person."""
    found = []
    depths = _depths(parts)
    if depths is None:
        found.append(("The broker does not answer.", "Check that it runs; this page recovers by itself.", "/"))
    elif dead := depths["dead"].ready:
        words = "One message" if dead == 1 else f"{dead:,} messages"
        found.append((f"{words} could not be processed.", "Look at why, then retry or drop.", "/dead"))
    found += [(str(damage), "See the list.", f"/{damage.key.split('/')[0]}") for damage in damaged]
    for run in all_runs[:20]:
        if run.state.is_retryable:
            error = run.error.message if run.error else "no reason given"
            found.append((f"Run {run.name[:60]} was {run.state}: {error}", "See the run.", f"/runs/{run.run_id}"))
    for job in all_jobs[:20]:
        if job.state.is_retryable:
            error = job.error.message if job.error else "no reason given"
            found.append((f"Job {job.name[:60]} was {job.state}: {error}", "See the job.", f"/jobs/{job.job_id}"))
    alive = {str(worker.state.get("service")) for worker in parts.workers.states() if worker.alive}
    if depths is not None:
        for service, queue in (("trainer", "datasets"), ("inference", "predictions"), ("inference", "jobs")):
            if depths[queue].ready and service not in alive:
                found.append(
                    (f"Work waits in {queue}, and no {service} is alive.", f"Start one: python -m {service}", "/")
                )
    return found[:_SHOWN]


def _lately(workers: WorkerStates) -> dict[str, float | None]:
    """Returns the mean and highest speed, and the worst latency, of the last ten minutes; None without any."""
    history = [speed for _, speed in workers.speed_history()]
    rates = [speed.images_per_second for speed in history]
    return {
        "mean_rate": statistics.fmean(rates) if rates else None,
        "top_rate": max(rates, default=None),
        "worst_ms": max((ms for speed in history if (ms := speed.latency_p99_ms) is not None), default=None),
    }


def _newest_predictions(parts: Dashboard) -> list[dict[str, Any]]:
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

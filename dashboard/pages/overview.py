"""The overview: everything at a glance, and what to do first."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from dashboard.context import Dashboard, dashboard
from dashboard.formats import progress_view
from shared import jobs, runs
from shared.broker.base import Depth
from shared.errors import Retryable

_SHOWN = 6

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
def overview() -> str:
    """Shows models, trainings, workers, queues and what wants attention."""
    parts = dashboard()
    all_runs, all_jobs = parts.catalog.runs(), parts.catalog.jobs()
    aliases = parts.client.registry.aliases()
    champion = None if aliases.champion is None else parts.catalog.card(aliases.champion)
    speed = parts.presence.speed()
    return render_template(
        "overview.html",
        champion=champion,
        running=[(run, progress_view(run["progress"])) for run in all_runs if run["state"] not in runs.FINAL_STATES],
        recent=[run for run in all_runs if run["state"] in runs.FINAL_STATES][:_SHOWN],
        jobs=all_jobs[:_SHOWN],
        workers=parts.presence.workers(),
        speed=speed,
        spark=_spark(parts),
        depths=_depths(parts),
        attention=_attention(parts, all_runs, all_jobs),
        sample=parts.samples.state,
        is_new=not all_runs and champion is None,
        predictions=list(parts.recent_predictions)[:_SHOWN],
    )


@blueprint.post("/samples")
def draw_sample() -> Response:
    """Starts with the sample dataset."""
    dashboard().samples.draw(int(request.form.get("images", 1500)))
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
    parts: Dashboard, all_runs: list[dict[str, Any]], all_jobs: list[dict[str, Any]]
) -> list[tuple[str, str, str]]:
    """Returns (what is wrong, what to do, where) for each thing that wants a person."""
    found = []
    depths = _depths(parts)
    if depths is None:
        found.append(("The broker does not answer.", "Check that it runs; this page recovers by itself.", "/"))
    elif dead := depths["dead"].ready:
        words = "One message" if dead == 1 else f"{dead:,} messages"
        found.append((f"{words} could not be processed.", "Look at why, then retry or drop.", "/dead"))
    for run in all_runs[:20]:
        if run["state"] in {runs.FAILED, runs.REJECTED}:
            error = (run["error"] or {}).get("message", "no reason given")
            found.append(
                (f"Run {run['name'][:60]} was {run['state']}: {error}", "See the run.", f"/runs/{run['run_id']}")
            )
    for job in all_jobs[:20]:
        if job["state"] in {jobs.FAILED, jobs.REJECTED}:
            error = (job["error"] or {}).get("message", "no reason given")
            found.append(
                (f"Job {job['name'][:60]} was {job['state']}: {error}", "See the job.", f"/jobs/{job['job_id']}")
            )
    alive = {str(worker.state.get("service")) for worker in parts.presence.workers() if worker.alive}
    if depths is not None:
        for service, queue in (("trainer", "datasets"), ("inference", "predictions"), ("inference", "jobs")):
            if depths[queue].ready and service not in alive:
                found.append(
                    (f"Work waits in {queue}, and no {service} is alive.", f"Start one: python -m {service}", "/")
                )
    return found[:_SHOWN]


def _spark(parts: Dashboard) -> str:
    """Returns the points of a line of images a second over the last ten minutes, in a box of 300 x 48."""
    history = parts.presence.speed_history()
    most = max((rate for _, rate, _ in history), default=0.0) or 1.0
    return " ".join(f"{300 - ago / 2:.1f},{46 - 44 * rate / most:.1f}" for ago, rate, _ in history if ago <= 600)

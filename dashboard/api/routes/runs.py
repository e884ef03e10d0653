"""Calls about runs."""

from __future__ import annotations

from flask import Response, jsonify, url_for

from dashboard.api.answers import accept_run, accepted, describe_damaged
from dashboard.api.blueprint import blueprint
from dashboard.api.exports import send_export
from dashboard.api.fields import read_page
from dashboard.api.managing import annotate, delete, describe_annotation, read_tag
from dashboard.context import dashboard
from shared.records.dismissals import dismiss_failure


@blueprint.get("/runs")
def list_runs() -> Response:
    """Lists runs, newest first."""
    cache = dashboard().store_cache
    found, annotations = cache.runs(*read_page(), read_tag()), cache.annotations("run")
    runs = [{**run.as_dict(), "annotation": describe_annotation(annotations.get(run.run_id))} for run in found.records]
    return jsonify({"runs": runs, "total": found.total, "damaged": describe_damaged(found.damaged)})


@blueprint.get("/runs/<run_id>")
def get_run(run_id: str) -> Response:
    """Returns a run's record, with its history and evaluation."""
    parts = dashboard()
    record, evaluation = parts.store_cache.run(run_id), parts.client.runs.evaluation(run_id)
    return jsonify(
        {
            **record.as_dict(),
            "annotation": describe_annotation(parts.store_cache.annotation("run", run_id)),
            "history": [row.as_dict() for row in parts.client.runs.history(run_id)],
            "evaluation": evaluation and evaluation.as_dict(),
        }
    )


@blueprint.post("/runs/<run_id>/cancel")
def cancel_run(run_id: str) -> tuple[Response, int]:
    """Asks for a run to stop."""
    dashboard().client.runs.request_cancel(run_id)
    return accepted({"run_id": run_id}, url_for("api.get_run", run_id=run_id))


@blueprint.post("/runs/<run_id>/retry")
def retry_run(run_id: str) -> tuple[Response, int]:
    """Sends a failed run back to its queue."""
    parts = dashboard()
    ahead = parts.runs_ahead()
    return accept_run(parts.client.retry_run(run_id), ahead)


@blueprint.post("/runs/<run_id>/dismiss")
def dismiss_run(run_id: str) -> tuple[str, int]:
    """Takes a failed run off what needs attention."""
    parts = dashboard()
    dismiss_failure(parts.store, parts.store_cache.run(run_id))
    return "", 204


@blueprint.get("/runs/<run_id>/export.zip")
def export_run(run_id: str) -> Response:
    """Sends a run's record, curves, evaluation and predictions, and its model's card."""
    return send_export("run", run_id)


@blueprint.patch("/runs/<run_id>")
def annotate_run(run_id: str) -> Response:
    """Changes a run's name, note and tags."""
    return annotate("run", run_id)


@blueprint.delete("/runs/<run_id>")
def delete_run(run_id: str) -> Response:
    """Deletes a run."""
    return delete("run", run_id)

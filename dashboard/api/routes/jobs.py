"""Calls about prediction jobs."""

from __future__ import annotations

from flask import Response, jsonify, url_for

from dashboard.api.answers import accepted, describe_damaged, send_stored_file
from dashboard.api.blueprint import blueprint
from dashboard.api.fields import read_field, read_idempotency_key, read_page
from dashboard.api.managing import annotate, delete, describe_annotation, read_tag
from dashboard.api.uploads import is_upload_used, parse_integer, receive_archive
from dashboard.context import dashboard
from shared.archives.archive import ArchiveLimits
from shared.errors import Conflict
from shared.messages import job_id_of
from shared.records.dismissals import dismiss_failure
from shared.records.jobs import Jobs


@blueprint.post("/jobs")
def submit_job() -> tuple[Response, int]:
    """Takes an archive of images to predict."""
    parts = dashboard()
    key = read_idempotency_key()
    if key is not None and is_upload_used() and parts.client.jobs.find(job_id_of(key)) is not None:
        return _accept_job(job_id_of(key))  # once more: the first answer did not arrive
    with receive_archive(ArchiveLimits.from_settings(parts.settings)) as archive:
        job_id = parts.client.submit_job(
            archive.path,
            name=archive.name,
            model_version=parse_integer(read_field("model_version"), "model_version", 1, 10**9),
            message_id=key,
            move=True,
            sha256=archive.sha256,
        )
    return _accept_job(job_id)


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """Lists jobs, newest first."""
    cache = dashboard().store_cache
    found, annotations = cache.jobs(*read_page(), read_tag()), cache.annotations("job")
    jobs = [{**job.as_dict(), "annotation": describe_annotation(annotations.get(job.job_id))} for job in found.records]
    return jsonify({"jobs": jobs, "total": found.total, "damaged": describe_damaged(found.damaged)})


@blueprint.get("/jobs/<job_id>")
def get_job(job_id: str) -> Response:
    """Returns a job's record and how many of its images are done."""
    parts = dashboard()
    record = parts.store_cache.job(job_id)
    progress = parts.client.jobs.progress(record).model_dump(include={"done", "total"})
    annotation = describe_annotation(parts.store_cache.annotation("job", job_id))
    return jsonify({**record.as_dict(), "annotation": annotation, "progress": progress})


@blueprint.post("/jobs/<job_id>/cancel")
def cancel_job(job_id: str) -> tuple[Response, int]:
    """Asks for a job to stop."""
    dashboard().client.jobs.request_cancel(job_id)
    return _accept_job(job_id)


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> tuple[Response, int]:
    """Sends a failed job back to its queue."""
    dashboard().client.retry_job(job_id)
    return _accept_job(job_id)


@blueprint.post("/jobs/<job_id>/dismiss")
def dismiss_job(job_id: str) -> tuple[str, int]:
    """Takes a failed job off what needs attention."""
    parts = dashboard()
    dismiss_failure(parts.store, parts.store_cache.job(job_id))
    return "", 204


@blueprint.get("/jobs/<job_id>/results.csv")
def job_results(job_id: str) -> Response:
    """Sends a finished job's results."""
    parts = dashboard()
    record = parts.store_cache.job(job_id)
    key = Jobs.results_key(job_id)
    if not parts.store.exists(key):
        raise Conflict(f"job {job_id} is {record.state}, so it has no results")
    return send_stored_file(key, "text/csv", f"{job_id}.csv")


@blueprint.patch("/jobs/<job_id>")
def annotate_job(job_id: str) -> Response:
    """Changes a job's name, note and tags."""
    return annotate("job", job_id)


@blueprint.delete("/jobs/<job_id>")
def delete_job(job_id: str) -> Response:
    """Deletes a job."""
    return delete("job", job_id)


def _accept_job(job_id: str) -> tuple[Response, int]:
    return accepted({"job_id": job_id}, url_for("api.get_job", job_id=job_id))

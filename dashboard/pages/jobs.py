"""Batch jobs: dropping an archive, watching it, and its results as a table with pictures."""

from __future__ import annotations

import csv
import io
from typing import Any, Final

import cv2
from flask import Blueprint, Response, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.context import dashboard
from dashboard.pages.manage import annotation_view, read_list_page, tag_filter
from shared.archives.archive import ArchiveLimits
from shared.errors import NotFound
from shared.faces.decode import ImageLimits, decode_face
from shared.faces.png import encode_png
from shared.records.cells import from_cell
from shared.records.jobs import Job, Jobs, JobState

_PAGE: Final = 50
_THUMB: Final = 64

blueprint = Blueprint("jobs", __name__)


@blueprint.get("/jobs")
def list_jobs() -> str:
    """Shows all jobs, newest first."""
    tagged = tag_filter("job")
    listing, page, pages = read_list_page(dashboard().store_cache.jobs, _PAGE, tagged["tag"] or None)
    return render_template(
        "jobs.html",
        jobs=[(job, _progress(job)) for job in listing.records],
        damaged=listing.damaged + tagged["damaged_annotations"],
        **tagged,
        page=page,
        pages=pages,
        link=lambda number: url_for("jobs.list_jobs", page=number, tag=tagged["tag"] or None),
    )


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> str:
    """Shows a job and, once there are any, its results."""
    parts = dashboard()
    job = parts.store_cache.job(job_id)
    rows = _results(job_id) if job.state is JobState.FINISHED else []
    kind = request.args.get("show", "")
    wanted = {"wrong": lambda row: row["correct"] in {"False", "false", "0"}, "errors": lambda row: bool(row["error"])}
    chosen = [row for row in rows if kind not in wanted or wanted[kind](row)]
    pages = max(1, -(-len(chosen) // _PAGE))
    page = min(max(1, request.args.get("page", 1, int)), pages)
    return render_template(
        "job.html",
        job=job,
        about=annotation_view("job", job_id, job.name),
        progress=_progress(job),
        ended=job.state.is_final,
        retry=job.state is JobState.FAILED,
        rows=chosen[(page - 1) * _PAGE : page * _PAGE],
        pictures=parts.store.exists(Jobs.archive_key(job_id)),
        kind=kind,
        page=page,
        pages=pages,
        link=lambda number: url_for("jobs.show_job", job_id=job_id, page=number, show=kind or None) + "#results",
    )


@blueprint.post("/jobs/<job_id>/cancel")
def cancel_job(job_id: str) -> WsgiResponse:
    """Asks for a job to stop."""
    dashboard().client.jobs.request_cancel(job_id)
    flash("Cancelling… The workers stop after the slices they are working on.")
    return redirect(url_for("jobs.show_job", job_id=job_id), 303)


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> WsgiResponse:
    """Sends a failed job back to its queue."""
    dashboard().client.retry_job(job_id)
    return redirect(url_for("jobs.show_job", job_id=job_id), 303)


@blueprint.get("/jobs/<job_id>/images/<int:row>.png")
def thumbnail(job_id: str, row: int) -> Response:
    """Sends the image of a row of the results, small and as the network sees it."""
    parts = dashboard()
    archive = parts.store_cache.archive(Jobs.archive_key(job_id), ArchiveLimits.from_settings(parts.settings))
    if row >= len(archive.entries):  # results have a row an entry, in archive order
        raise NotFound(f"job {job_id} has {len(archive.entries):,} images; there is no row {row}")
    data = archive.read(archive.entries[row])
    face = decode_face(data, ImageLimits.from_settings(parts.settings)).pixels
    small = cv2.resize(face, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA).astype("uint8")
    answer = Response(encode_png(small), mimetype="image/png")
    answer.headers["Cache-Control"] = "private, max-age=86400"
    return answer


def _results(job_id: str) -> list[dict[str, Any]]:
    """Returns the results' rows, each with its place as `row`."""
    text = dashboard().store.get(Jobs.results_key(job_id)).decode()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{**row, "name": from_cell(row["name"]), "row": i} for i, row in enumerate(rows)]


def _progress(job: Job) -> dict[str, Any]:
    progress = dashboard().client.jobs.progress(job)
    done, total = progress.done, progress.total
    share = done / total if total else 0.0
    words = f"{done:,} of {total:,} images" if total else ("Queued" if job.state is JobState.QUEUED else "")
    return {"share": round(share, 4), "percent": f"{int(100 * share)} %" if total else "", "text": words, "eta": ""}

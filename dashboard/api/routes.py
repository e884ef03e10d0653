"""The HTTP API of the contract, under `/api/v1`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, get_args

from flask import Blueprint, Response, jsonify, request, send_file, url_for
from werkzeug.datastructures import Headers

from dashboard.api import faces
from dashboard.api.comparing import accuracy_matrix, measure_requested, requested_comparison
from dashboard.api.comparing import compare_models as run_comparison
from dashboard.api.document import document, query_parameters
from dashboard.api.exports import send_export, send_face_images
from dashboard.api.uploads import parse_number, receive_archive, receive_images
from dashboard.auth import current_user
from dashboard.context import dashboard
from dashboard.incoming import Upload
from shared.archives.archive import ArchiveLimits
from shared.client import CURRENT_EDITS, Client
from shared.errors import Conflict, InvalidMessage, NotFound, short_repr
from shared.faces.labelling import LabelSpec
from shared.messages import SCHEMA
from shared.params import TrainingParams
from shared.records.annotations import Annotation, Kind
from shared.records.deletion import Dependent
from shared.records.jobs import Jobs
from shared.records.model_card import ServedPrecision
from shared.records.record import DamagedRecord
from shared.records.registry import Registry

ANSWER_S: Final = 30.0
"""How long a request waits for predictions unless it says otherwise."""

_LONGEST_ANSWER_S: Final = 120.0
_PAGE: Final = 1000
_FACES: Final = 120
_SAMPLE_IMAGES: Final = 1500
_REASON_LENGTH: Final = 500
_UNDO: Final = "undo"
_SHA256: Final = re.compile("[0-9a-f]{64}")

_MODEL_SUMMARY: Final = {"name", "version", "run_id", "created", "dataset", "metrics", "params", "file"}

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")


@blueprint.before_request
def _refuse_unknown_parameters() -> None:
    """A misspelt parameter is not one that was left out."""
    # An `operationId` is the name of its view.
    known = query_parameters()[str(request.endpoint).removeprefix("api.")]
    if unknown := [short_repr(name) for name in request.args if name not in known]:
        raise InvalidMessage(
            f"found {', '.join(unknown)} in the query; expected {' or '.join(known) or 'nothing'} there"
        )


# -- uploads in parts: the core of tus 1.0, https://tus.io/protocols/resumable-upload


@blueprint.post("/uploads")
def create_upload() -> tuple[Response, int]:
    """Begins an upload."""
    size = _read_length("Upload-Length")
    found = dashboard().uploads.create(size)
    answer = _describe_upload(found, jsonify(found))
    answer.headers["Location"] = url_for("api.get_upload", upload_id=found.upload_id)
    return answer, 201


@blueprint.get("/uploads/<upload_id>")
def get_upload(upload_id: str) -> Response:
    """Tells how far an upload is."""
    found = dashboard().uploads.find(upload_id)
    return _describe_upload(found, jsonify(found))


@blueprint.patch("/uploads/<upload_id>")
def append_upload(upload_id: str) -> tuple[Response, int]:
    """Adds bytes to an upload."""
    if request.mimetype not in {"application/offset+octet-stream", "application/octet-stream"}:
        raise InvalidMessage(
            f"content type is {request.mimetype!r}; expected application/offset+octet-stream",
            code="unsupported_content_type",
        )
    parts = dashboard()
    request.max_content_length = parts.settings.max_archive_bytes
    offset = _read_length("Upload-Offset")
    found = parts.uploads.append(upload_id, offset, request.stream, request.content_length)
    return _describe_upload(found, Response()), 204


@blueprint.delete("/uploads/<upload_id>")
def delete_upload(upload_id: str) -> tuple[Response, int]:
    """Gives an upload up."""
    dashboard().uploads.delete(upload_id)
    return Response(), 204


def _read_length(header: str) -> int:
    text = request.headers.get(header, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InvalidMessage(f"header {header} is {short_repr(text)}; expected a number of bytes")
    return int(text)


def _describe_upload(found: Upload, answer: Response) -> Response:
    answer.headers["Tus-Resumable"] = "1.0.0"
    answer.headers["Upload-Offset"] = str(found.offset)
    answer.headers["Upload-Length"] = str(found.size)
    return answer


# -- datasets and runs


@blueprint.get("/datasets")
def list_datasets() -> Response:
    """Lists datasets, those with the newest runs first."""
    cache = dashboard().store_cache
    annotations, (limit, offset) = cache.annotations("dataset"), _page()
    page = [
        {
            "sha256": sha256,
            "name": name,
            "summary": summary.model_dump(mode="json") if (summary := cache.readable_summary(sha256)) else None,
            "annotation": _annotation(annotations.get(sha256)),
        }
        for sha256, name in islice(cache.named_datasets(_tag()), offset, offset + limit)
    ]
    return jsonify({"datasets": page, "total": len(cache.dataset_ids(_tag()))})


@blueprint.post("/datasets")
def submit_dataset() -> tuple[Response, int]:
    """Takes an archive to train on."""
    parts = dashboard()
    ahead = parts.runs_ahead()
    with receive_archive(ArchiveLimits.from_settings(parts.settings)) as archive:
        params = TrainingParams.parse(_read_field("params") or None)
        labels = LabelSpec.parse(_read_field("labels") or None)
        train = _read_flag("train", True)
        run_id = parts.client.submit_dataset(
            archive.path,
            name=archive.name,
            params=params.as_dict(),
            labels=None if labels is None else labels.as_dict(),
            train=train,
            message_id=_idempotency_key(),
            move=True,
            sha256=archive.sha256,
        )
    return _accept_run(run_id, ahead)


@blueprint.post("/datasets/<sha256>/runs")
def train_dataset(sha256: str) -> tuple[Response, int]:
    """Starts a run on a dataset that is here already."""
    parts = dashboard()
    ahead = parts.runs_ahead()
    params = TrainingParams.parse(_read_field("params") or None)
    name = _read_field("name") or None
    run_id = parts.client.train_dataset(
        sha256, name=name, params=params.as_dict(), edits=_read_edits(), message_id=_idempotency_key()
    )
    return _accept_run(run_id, ahead)


@blueprint.get("/datasets/<sha256>/edits")
def list_edits(sha256: str) -> Response:
    """Lists the edits of a dataset's labels, and what they make of its faces."""
    history = dashboard().client.edits.history(sha256)
    corrections = history.corrections()
    return jsonify(
        {
            "edits": [edit.as_dict() for edit in history.edits],
            "corrections": corrections.as_dict(),
            "sha256": None if corrections.is_empty else corrections.sha256,
        }
    )


@blueprint.post("/datasets/<sha256>/edits")
def edit_dataset(sha256: str) -> Response:
    """Makes an edit of a dataset's labels, or undoes one."""
    edits, change = dashboard().client.edits, _read_field("change")
    if change == _UNDO:
        number = parse_number(_read_field("number"), "number", 1, 10**9)
        history, edit = edits.undo(sha256, None if number is None else int(number), user=current_user())
    else:
        history = edits.add(sha256, change, _read_faces(), user=current_user())
        edit = history.edits[-1]
    corrections = history.corrections()
    return jsonify({"edit": edit.as_dict(), "sha256": None if corrections.is_empty else corrections.sha256})


@blueprint.get("/datasets/<sha256>/faces")
def list_faces(sha256: str) -> Response:
    """Lists faces with their predictions, and counts them by what they can be chosen by."""
    limit = parse_number(request.args.get("limit"), "limit", 1, _PAGE) or _FACES
    offset = parse_number(request.args.get("offset"), "offset", 0, 10**9) or 0
    return jsonify(faces.list_faces(sha256, int(offset), int(limit)))


@blueprint.get("/datasets/<sha256>/faces/<int:index>")
def get_face(sha256: str, index: int) -> Response:
    """Returns one face: every model's prediction, the faces that look the same, and its edits."""
    return jsonify(faces.describe_face(sha256, index))


@blueprint.get("/datasets/<sha256>/faces.csv")
def dataset_faces(sha256: str) -> Response:
    """Sends faces with their predictions."""
    return faces.send_faces(sha256)


@blueprint.get("/datasets/<sha256>/rejects.csv")
def dataset_rejects(sha256: str) -> Response:
    """Sends the rejected files with their reasons."""
    return faces.send_rejects(sha256)


@blueprint.post("/datasets/<sha256>/predictions")
def score_dataset(sha256: str) -> tuple[Response, int]:
    """Starts predicting all faces of a dataset."""
    parts = dashboard()
    version = parse_number(_read_field("version"), "version", 1, 10**9) or parts.client.registry.aliases().champion
    if version is None:
        raise Conflict("there is no model yet; train one first")
    parts.scoring.score(sha256, int(version))
    return _accepted_answer(dataclasses.asdict(parts.scoring.state), url_for("api.get_scoring"))


@blueprint.get("/scoring")
def get_scoring() -> Response:
    """Tells how far the prediction of a dataset's faces is."""
    return jsonify(dataclasses.asdict(dashboard().scoring.state))


@blueprint.post("/samples")
def generate_sample() -> tuple[Response, int]:
    """Starts generating the sample dataset, which is then submitted."""
    images = parse_number(_read_field("images"), "images", 40, 20_000) or _SAMPLE_IMAGES
    params = TrainingParams.parse(_read_field("params") or None)
    dashboard().samples.generate(int(images), params.as_dict())
    return _accepted_answer(dataclasses.asdict(dashboard().samples.state), url_for("api.get_sample"))


@blueprint.get("/samples")
def get_sample() -> Response:
    """Tells how far the sample dataset is."""
    return jsonify(dataclasses.asdict(dashboard().samples.state))


@blueprint.get("/runs")
def list_runs() -> Response:
    """Lists runs, newest first."""
    cache = dashboard().store_cache
    found, annotations = cache.runs(*_page(), _tag()), cache.annotations("run")
    runs = [{**run.as_dict(), "annotation": _annotation(annotations.get(run.run_id))} for run in found.records]
    return jsonify({"runs": runs, "total": found.total, "damaged": _damaged(found.damaged)})


@blueprint.get("/runs/<run_id>")
def get_run(run_id: str) -> Response:
    """Returns a run's record, with its history and evaluation."""
    parts = dashboard()
    record, evaluation = parts.store_cache.run(run_id), parts.client.runs.evaluation(run_id)
    return jsonify(
        {
            **record.as_dict(),
            "annotation": _annotation(parts.store_cache.annotation("run", run_id)),
            "history": [row.as_dict() for row in parts.client.runs.history(run_id)],
            "evaluation": evaluation and evaluation.as_dict(),
        }
    )


@blueprint.post("/runs/<run_id>/cancel")
def cancel_run(run_id: str) -> tuple[Response, int]:
    """Asks for a run to stop."""
    dashboard().client.runs.request_cancel(run_id)
    return _accepted_answer({"run_id": run_id}, url_for("api.get_run", run_id=run_id))


@blueprint.post("/runs/<run_id>/retry")
def retry_run(run_id: str) -> tuple[Response, int]:
    """Sends a failed run back to its queue."""
    parts = dashboard()
    ahead = parts.runs_ahead()
    return _accept_run(parts.client.retry_run(run_id), ahead)


# -- predictions


@blueprint.post("/predictions")
def predict() -> Response:
    """Predicts images through the queue and waits for the answer."""
    parts = dashboard()
    names, images = receive_images(parts.settings.max_image_bytes)
    version = parse_number(_read_field("model_version"), "model_version", 1, 10**9)
    timeout_s = parse_number(_read_field("timeout_s"), "timeout_s", 0.05, _LONGEST_ANSWER_S) or ANSWER_S
    return jsonify(predict_images(parts.client, names, images, version, timeout_s))


def predict_images(
    client: Client, ids: Sequence[str | None], images: Sequence[bytes], version: float | None, timeout_s: float
) -> dict[str, Any]:
    """Returns the contract's reply for some images, each under its id."""
    entries, model = client.predict(
        images, model_version=None if version is None else int(version), timeout_s=timeout_s
    )
    return {
        "schema": SCHEMA,
        "model": model,
        "predictions": [{**entry, "id": key} for key, entry in zip(ids, entries, strict=True)],
    }


# -- jobs


@blueprint.post("/jobs")
def submit_job() -> tuple[Response, int]:
    """Takes an archive of images to predict."""
    parts = dashboard()
    with receive_archive(ArchiveLimits.from_settings(parts.settings)) as archive:
        version = parse_number(_read_field("model_version"), "model_version", 1, 10**9)
        job_id = parts.client.submit_job(
            archive.path,
            name=archive.name,
            model_version=None if version is None else int(version),
            message_id=_idempotency_key(),
            move=True,
        )
    return _accepted_answer({"job_id": job_id}, url_for("api.get_job", job_id=job_id))


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """Lists jobs, newest first."""
    cache = dashboard().store_cache
    found, annotations = cache.jobs(*_page(), _tag()), cache.annotations("job")
    jobs = [{**job.as_dict(), "annotation": _annotation(annotations.get(job.job_id))} for job in found.records]
    return jsonify({"jobs": jobs, "total": found.total, "damaged": _damaged(found.damaged)})


@blueprint.get("/jobs/<job_id>")
def get_job(job_id: str) -> Response:
    """Returns a job's record and how many of its images are done."""
    parts = dashboard()
    record = parts.store_cache.job(job_id)
    progress = parts.client.jobs.progress(record).model_dump(include={"done", "total"})
    annotation = _annotation(parts.store_cache.annotation("job", job_id))
    return jsonify({**record.as_dict(), "annotation": annotation, "progress": progress})


@blueprint.post("/jobs/<job_id>/cancel")
def cancel_job(job_id: str) -> tuple[Response, int]:
    """Asks for a job to stop."""
    dashboard().client.jobs.request_cancel(job_id)
    return _accepted_answer({"job_id": job_id}, url_for("api.get_job", job_id=job_id))


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> tuple[Response, int]:
    """Sends a failed job back to its queue."""
    dashboard().client.retry_job(job_id)
    return _accepted_answer({"job_id": job_id}, url_for("api.get_job", job_id=job_id))


@blueprint.get("/jobs/<job_id>/results.csv")
def job_results(job_id: str) -> Response:
    """Sends a finished job's results."""
    parts = dashboard()
    record = parts.store_cache.job(job_id)
    key = Jobs.results_key(job_id)
    if not parts.store.exists(key):
        raise Conflict(f"job {job_id} is {record.state}, so it has no results")
    return _send_stored_file(key, "text/csv", f"{job_id}.csv")


# -- models


@blueprint.get("/models")
def list_models() -> Response:
    """Lists the versions, newest first, and which of them are in use."""
    parts = dashboard()
    aliases, damaged = parts.client.registry.find_aliases()
    found, annotations = parts.store_cache.cards(*_page(), _tag()), parts.store_cache.annotations("model")
    models = [
        {
            **card.model_dump(mode="json", include=_MODEL_SUMMARY),
            "annotation": _annotation(annotations.get(str(card.version))),
        }
        for card in found.records
    ]
    figures = parts.client.shadow()
    return jsonify(
        {
            "aliases": aliases.as_dict(),
            "shadow": figures.summary() if figures else None,
            "models": models,
            "total": found.total,
            "damaged": _damaged(damaged + found.damaged),
        }
    )


@blueprint.get("/models/<int:version>")
def get_model(version: int) -> Response:
    """Returns a version's card."""
    cache = dashboard().store_cache
    return jsonify(
        {**cache.card(version).as_dict(), "annotation": _annotation(cache.annotation("model", str(version)))}
    )


@blueprint.get("/models/<int:version>/model.onnx")
def get_model_file(version: int) -> Response:
    """Sends a version's ONNX file, or a variant of it."""
    cache = dashboard().store_cache
    cache.card(version)
    asked = request.args.get("precision") or "float32"
    precision = next((known for known in get_args(ServedPrecision) if known == asked), None)
    if precision is None:
        raise InvalidMessage(f"precision is {short_repr(asked)}; expected {', '.join(get_args(ServedPrecision))}")
    name = f"gender-{version}.onnx" if precision == "float32" else f"gender-{version}-{precision}.onnx"
    return _send_stored_file(Registry.model_key(version, precision), "application/octet-stream", name)


@blueprint.get("/models/<int:version>/card.md")
def get_model_card(version: int) -> Response:
    """Sends a version's card for people."""
    dashboard().store_cache.card(version)
    return _send_stored_file(Registry.card_text_key(version), "text/markdown", f"gender-{version}.md")


@blueprint.get("/models/<int:version>/export.zip")
def export_model(version: int) -> Response:
    """Sends a version with all of its variants and its card."""
    return send_export("model", str(version))


@blueprint.get("/runs/<run_id>/export.zip")
def export_run(run_id: str) -> Response:
    """Sends a run's record, curves, evaluation and predictions, and its model's card."""
    return send_export("run", run_id)


@blueprint.get("/datasets/<sha256>/export.zip")
def export_dataset(sha256: str) -> Response:
    """Sends a dataset's tables: faces, rejects, summary, edits, predictions."""
    return send_export("dataset", sha256)


@blueprint.get("/datasets/<sha256>/faces.zip")
def dataset_face_images(sha256: str) -> Response:
    """Sends faces as images with their predictions."""
    return send_face_images(sha256)


@blueprint.get("/models/<int:version>/measures")
def measure_model(version: int) -> Response:
    """Tells how well a version predicts the faces of a dataset at a decision threshold."""
    measures = measure_requested(version)
    return jsonify(measures.as_dict())


@blueprint.get("/compare")
def compare_models() -> Response:
    """Compares two versions on the same faces."""
    chosen = requested_comparison()
    if chosen is None:
        raise InvalidMessage("first or second is missing; expected two versions to compare")
    found = run_comparison(chosen)
    if found.comparison is None:
        versions = " and ".join(str(version) for version in found.missing)
        raise Conflict(
            f"model {versions} has not predicted dataset {chosen.dataset[:12]}; "
            f"start that with POST /api/v1/datasets/{chosen.dataset}/predictions?version={found.missing[0]}"
        )
    sentence = found.comparison.describe(chosen.first, chosen.second)
    asked = {"versions": [chosen.first, chosen.second], **chosen.as_query()}
    asked = {key: asked[key] for key in ("versions", "dataset", "split", "threshold", "labels")}
    return jsonify({**asked, "sentence": sentence, **found.comparison.as_dict()})


@blueprint.get("/compare/matrix")
def get_matrix() -> Response:
    """Tells the accuracy of the newest versions on the newest datasets."""
    return jsonify(accuracy_matrix().as_dict())


@blueprint.post("/models/<int:version>/promote")
def promote_model(version: int) -> Response:
    """Makes a version the champion."""
    parts = dashboard()
    parts.client.promote(version, read_reason(), user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


@blueprint.post("/models/<int:version>/challenge")
def challenge_model(version: int) -> Response:
    """Makes a version the challenger."""
    parts = dashboard()
    parts.client.challenge(version, read_reason(), user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


@blueprint.delete("/models/<int:version>/challenge")
def dismiss_model(version: int) -> Response:
    """Takes the challenger's alias away from a version."""
    parts = dashboard()
    parts.client.dismiss(read_reason(), version, user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


@blueprint.post("/models/rollback")
def roll_back_model() -> Response:
    """Makes the previous champion the champion again."""
    parts = dashboard()
    parts.client.rollback(read_reason(), user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


def read_reason() -> str:
    """Returns why, as the request says it: kept with the promotion."""
    text = (_read_field("reason") or "").strip()
    if len(text) > _REASON_LENGTH:
        raise InvalidMessage(f"reason has {len(text)} characters; expected at most {_REASON_LENGTH}")
    return text or "by hand, over HTTP"


# -- names, notes, tags, and the end


@blueprint.patch("/datasets/<sha256>")
def annotate_dataset(sha256: str) -> Response:
    """Changes a dataset's name, note and tags."""
    return _annotate("dataset", sha256)


@blueprint.patch("/runs/<run_id>")
def annotate_run(run_id: str) -> Response:
    """Changes a run's name, note and tags."""
    return _annotate("run", run_id)


@blueprint.patch("/models/<int:version>")
def annotate_model(version: int) -> Response:
    """Changes a model's name, note and tags."""
    return _annotate("model", str(version))


@blueprint.patch("/jobs/<job_id>")
def annotate_job(job_id: str) -> Response:
    """Changes a job's name, note and tags."""
    return _annotate("job", job_id)


@blueprint.delete("/datasets/<sha256>")
def delete_dataset(sha256: str) -> Response:
    """Deletes a dataset."""
    return _delete("dataset", sha256)


@blueprint.delete("/runs/<run_id>")
def delete_run(run_id: str) -> Response:
    """Deletes a run."""
    return _delete("run", run_id)


@blueprint.delete("/models/<int:version>")
def delete_model(version: int) -> Response:
    """Deletes a model."""
    return _delete("model", str(version))


@blueprint.delete("/jobs/<job_id>")
def delete_job(job_id: str) -> Response:
    """Deletes a job."""
    return _delete("job", job_id)


def _annotate(kind: Kind, which: str) -> Response:
    name, note = _read_field("name"), _read_field("note")
    annotation = dashboard().client.annotate(kind, which, name=name, note=note, tags=_read_tags(), user=current_user())
    return jsonify({"annotation": annotation.as_dict()})


def _read_tags() -> list[str] | None:
    """Returns the tags that the request gives, as a list in JSON or as a text with commas; None where it gives none."""
    listed = _read_json_object().get("tags")
    if isinstance(listed, list):
        return [str(tag) for tag in listed]
    text = _read_field("tags")
    return None if text is None else split_tags(text)


def split_tags(text: str) -> list[str]:
    """Returns the tags in a text that separates them by commas."""
    return [tag for part in text.split(",") if (tag := part.strip())]


def _delete(kind: Kind, which: str) -> Response:
    client = dashboard().client
    dependents = client.dependents(kind, which)
    if dependents and not _says_yes("confirm"):
        raise Conflict(f"{describe_dependents(dependents)} Expected confirm=true to delete {kind} {which}")
    client.delete(kind, which, user=current_user())
    dashboard().store_cache.forget(kind, which)
    told = [{"kind": found.kind, "id": found.which, "loss": found.loss} for found in dependents]
    return jsonify({"deleted": which, "dependents": told})


def describe_dependents(dependents: Sequence[Dependent]) -> str:
    """Returns what stays and what it loses, as sentences."""
    return " ".join(f"{found.kind.capitalize()} {found.which} stays, but loses {found.loss}." for found in dependents)


def _tag() -> str | None:
    return request.args.get("tag") or None


def _annotation(found: Annotation | None) -> dict[str, Any] | None:
    return None if found is None else found.as_dict()


# -- failed messages and events


@blueprint.get("/dead")
def list_dead() -> Response:
    """Lists the oldest failed messages, without their bodies."""
    letters = dashboard().broker.dead_letters(_PAGE)
    return jsonify({"dead_letters": [letter.summary() for letter in letters]})


@blueprint.post("/dead/retry")
def retry_dead() -> Response:
    """Re-queues failed messages: those named `dead_id`, or all."""
    return jsonify({"count": dashboard().broker.retry_dead(read_dead_ids())})


@blueprint.post("/dead/drop")
def drop_dead() -> Response:
    """Deletes failed messages: those named `dead_id`, or all."""
    return jsonify({"count": dashboard().broker.drop_dead(read_dead_ids())})


def read_dead_ids() -> list[str] | None:
    """Returns the failed messages that the request names; None for all, which it must say.

    Raises:
        InvalidMessage: it names none, and does not say `all=true`.
    """
    chosen = request.values.getlist("dead_id")
    if isinstance(body := _read_json_object().get("dead_id"), list):
        chosen += [str(item) for item in body]
    if chosen:
        return chosen
    if _says_yes("all"):
        return None
    raise InvalidMessage("found neither dead_id nor all=true; expected one of them")


@blueprint.get("/status")
def status() -> Response:
    """Returns what the overview shows: workers, queues, speed and aliases."""
    parts = dashboard()
    return jsonify(
        {
            "workers": [
                {**worker.state, "silent_s": round(worker.silent_s, 1), "alive": worker.alive}
                for worker in parts.workers.states()
            ],
            "queues": {
                parts.broker.topology.short(queue): dataclasses.asdict(depth)
                for queue, depth in parts.broker.depths().items()
            },
            "speed": dataclasses.asdict(parts.workers.speed()),
            "aliases": parts.client.registry.find_aliases()[0].as_dict(),
        }
    )


@blueprint.get("/events")
def events() -> Response:
    """Streams the broker's events."""
    topics = request.args.get("topics", "#").split(",")
    last = request.headers.get("Last-Event-ID") or request.args.get("last_event_id")
    gone = request.environ.get("waitress.client_disconnected", lambda: False)
    stream = dashboard().event_hub.open_stream(topics, last, gone)
    # Buffering proxies would hold events back.
    headers = Headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    return Response(stream, mimetype="text/event-stream", headers=headers)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """Describes this API."""
    return jsonify(document())


# -- how


def _read_faces() -> list[int]:
    """Returns the faces that the request names, each by its index."""
    given = [*request.values.getlist("faces")]
    if isinstance(body := _read_json_object().get("faces"), list):
        given += [str(item) for item in body]
    numbers = [parse_number(text, "faces", 0, 10**9) for text in given if text]
    if any(number != int(number) for number in numbers if number is not None):
        raise InvalidMessage("found a face that is no whole number; expected the indices of faces")
    return [int(number) for number in numbers if number is not None]


def _read_edits() -> str | None:
    """Returns the hash of the edits to train with, or `current`; None for the labels of the archive."""
    edits = _read_field("edits") or None
    if edits is not None and edits != CURRENT_EDITS and not _SHA256.fullmatch(edits):
        raise InvalidMessage(f"edits is {short_repr(edits)}; expected {CURRENT_EDITS} or a SHA-256")
    return edits


def _read_flag(name: str, default: bool) -> bool:
    text = (_read_field(name) or str(default)).lower()
    if text not in {"true", "false"}:
        raise InvalidMessage(f"{name} is {short_repr(text)}; expected true or false")
    return text == "true"


def _read_field(name: str) -> str | None:
    """Returns a value from the query, the form or a JSON body."""
    found = request.args.get(name)
    if found is None and request.mimetype in {"multipart/form-data", "application/x-www-form-urlencoded"}:
        found = request.form.get(name)
    if found is None and (value := _read_json_object().get(name)) is not None:
        found = value if isinstance(value, str) else _json_text(value)
    return found


def _says_yes(name: str) -> bool:
    return (_read_field(name) or "").lower() in {"true", "1", "yes"}


def _read_json_object() -> dict[str, Any]:
    if not request.is_json or not request.content_length:  # many clients always say that they send JSON
        return {}
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"the body is no JSON ({error}); expected a JSON object") from None
    if not isinstance(body, dict):
        raise InvalidMessage(f"the body is {short_repr(body)}; expected a JSON object")
    return body


def _json_text(value: object) -> str:
    return jsonify(value).get_data(as_text=True).strip()


def _idempotency_key() -> str | None:
    """Returns the client's `Idempotency-Key`: the same one twice makes one run or job."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 200 and key.isprintable()):
        raise InvalidMessage(f"header Idempotency-Key has {len(key)} characters; expected 1 to 200 printable ones")
    return key


def _page() -> tuple[int, int]:
    """Returns the request's limit and offset."""
    limit = int(parse_number(request.args.get("limit"), "limit", 1, _PAGE) or _PAGE)
    return limit, int(parse_number(request.args.get("offset"), "offset", 0, 10**9) or 0)


def _damaged(found: list[DamagedRecord]) -> list[dict[str, Any]]:
    return [{"file": damage.key, "error": damage.as_dict()} for damage in found]


def _accept_run(run_id: str, ahead: int) -> tuple[Response, int]:
    return _accepted_answer({"run_id": run_id, "ahead": ahead}, url_for("api.get_run", run_id=run_id))


def _accepted_answer(body: dict[str, Any], location: str) -> tuple[Response, int]:
    answer = jsonify(body)
    answer.headers["Location"] = location
    return answer, 202


def _send_stored_file(key: str, mimetype: str, name: str) -> Response:
    store = dashboard().store
    if not store.exists(key):
        raise NotFound(f"{key} does not exist in the store")
    with store.local(key) as path:
        # Opened while the context lasts: an open file outlives a temporary copy.
        return send_file(path.open("rb"), mimetype=mimetype, as_attachment=True, download_name=name)

"""Calls about datasets: sending, looking, correcting, training, predicting."""

from __future__ import annotations

import dataclasses
import re
from itertools import islice
from typing import Final

from flask import Response, jsonify, request, url_for

from dashboard.api import faces
from dashboard.api.answers import accept_run, accepted
from dashboard.api.blueprint import blueprint
from dashboard.api.exports import send_export, send_face_images
from dashboard.api.fields import PAGE, read_field, read_idempotency_key, read_page, read_texts
from dashboard.api.managing import annotate, delete, describe_annotation, read_tag
from dashboard.api.uploads import is_upload_used, parse_integer, receive_archive
from dashboard.auth import current_user
from dashboard.context import dashboard
from dashboard.tasks.samples import SAMPLE_BOUNDS, SAMPLE_IMAGES
from shared.archives.archive import ArchiveLimits
from shared.client import CURRENT_EDITS
from shared.errors import Conflict, InvalidMessage, short_repr
from shared.faces.labelling import LabelSpec
from shared.messages import run_id_of
from shared.params import TrainingParams

_FACES: Final = 120


_UNDO: Final = "undo"


_SHA256: Final = re.compile("[0-9a-f]{64}")


@blueprint.get("/datasets")
def list_datasets() -> Response:
    """Lists datasets, those with the newest runs first."""
    cache = dashboard().store_cache
    annotations, (limit, offset) = cache.annotations("dataset"), read_page()
    page = [
        {
            "sha256": sha256,
            "name": name,
            "summary": summary.model_dump(mode="json") if (summary := cache.readable_summary(sha256)) else None,
            "annotation": describe_annotation(annotations.get(sha256)),
        }
        for sha256, name in islice(cache.named_datasets(read_tag()), offset, offset + limit)
    ]
    return jsonify({"datasets": page, "total": len(cache.dataset_ids(read_tag()))})


@blueprint.post("/datasets")
def submit_dataset() -> tuple[Response, int]:
    """Takes an archive to train on."""
    parts = dashboard()
    ahead = parts.runs_ahead()
    key = read_idempotency_key()
    if key is not None and is_upload_used() and parts.client.runs.find(run_id_of(key)) is not None:
        return accept_run(run_id_of(key), ahead)  # once more: the first answer did not arrive
    with receive_archive(ArchiveLimits.from_settings(parts.settings)) as archive:
        params = TrainingParams.parse(read_field("params") or None)
        labels = LabelSpec.parse(read_field("labels") or None)
        train = _read_flag("train", True)
        run_id = parts.client.submit_dataset(
            archive.path,
            name=archive.name,
            params=params.as_dict(),
            labels=None if labels is None else labels.as_dict(),
            train=train,
            message_id=key,
            move=True,
            sha256=archive.sha256,
        )
    return accept_run(run_id, ahead)


@blueprint.post("/datasets/<sha256>/runs")
def train_dataset(sha256: str) -> tuple[Response, int]:
    """Starts a run on a dataset that is here already."""
    parts = dashboard()
    ahead = parts.runs_ahead()
    params = TrainingParams.parse(read_field("params") or None)
    name = read_field("name") or None
    run_id = parts.client.train_dataset(
        sha256, name=name, params=params.as_dict(), edits=_read_edits(), message_id=read_idempotency_key()
    )
    return accept_run(run_id, ahead)


@blueprint.get("/datasets/<sha256>/edits")
def list_edits(sha256: str) -> Response:
    """Lists the edits of a dataset, and the corrected faces."""
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
    edits, change = dashboard().client.edits, read_field("change")
    if change == _UNDO:
        number = parse_integer(read_field("number"), "number", 1, 10**9)
        history, edit = edits.undo(sha256, number, user=current_user())
    else:
        history = edits.add(sha256, change, _read_faces(), user=current_user())
        edit = history.edits[-1]
    corrections = history.corrections()
    return jsonify({"edit": edit.as_dict(), "sha256": None if corrections.is_empty else corrections.sha256})


@blueprint.get("/datasets/<sha256>/faces")
def list_faces(sha256: str) -> Response:
    """Lists faces with their predictions, and counts for each property."""
    limit = parse_integer(request.args.get("limit"), "limit", 1, PAGE) or _FACES
    offset = parse_integer(request.args.get("offset"), "offset", 0, 10**9) or 0
    return jsonify(faces.list_faces(sha256, offset, limit, faces.requested_as_of()))


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
    version = parse_integer(read_field("version"), "version", 1, 10**9) or parts.client.registry.aliases().champion
    if version is None:
        raise Conflict("there is no model yet; train one first")
    parts.scoring.score(sha256, version)
    return accepted(dataclasses.asdict(parts.scoring.state), url_for("api.get_scoring"))


@blueprint.get("/scoring")
def get_scoring() -> Response:
    """Tells how far the prediction of a dataset's faces is."""
    return jsonify(dataclasses.asdict(dashboard().scoring.state))


@blueprint.post("/samples")
def generate_sample() -> tuple[Response, int]:
    """Starts generating the sample dataset, which is then submitted."""
    images = parse_integer(read_field("images"), "images", *SAMPLE_BOUNDS) or SAMPLE_IMAGES
    params = TrainingParams.parse(read_field("params") or None)
    dashboard().samples.generate(images, params.as_dict())
    return accepted(dataclasses.asdict(dashboard().samples.state), url_for("api.get_sample"))


@blueprint.get("/samples")
def get_sample() -> Response:
    """Tells how far the sample dataset is."""
    return jsonify(dataclasses.asdict(dashboard().samples.state))


@blueprint.get("/datasets/<sha256>/export.zip")
def export_dataset(sha256: str) -> Response:
    """Sends a dataset's tables: faces, rejects, summary, edits, predictions."""
    return send_export("dataset", sha256)


@blueprint.get("/datasets/<sha256>/faces.zip")
def dataset_face_images(sha256: str) -> Response:
    """Sends faces as images with their predictions."""
    return send_face_images(sha256)


@blueprint.patch("/datasets/<sha256>")
def annotate_dataset(sha256: str) -> Response:
    """Changes a dataset's name, note and tags."""
    return annotate("dataset", sha256)


@blueprint.delete("/datasets/<sha256>")
def delete_dataset(sha256: str) -> Response:
    """Deletes a dataset."""
    return delete("dataset", sha256)


def _read_faces() -> list[int]:
    """Returns the faces that the request names, each by its index."""
    return [index for text in read_texts("faces") if (index := parse_integer(text, "faces", 0, 10**9)) is not None]


def _read_edits() -> str | None:
    """Returns the hash of the edits to train with, or `current`; None for the labels of the archive."""
    edits = read_field("edits") or None
    if edits is not None and edits != CURRENT_EDITS and not _SHA256.fullmatch(edits):
        raise InvalidMessage(f"edits is {short_repr(edits)}; expected {CURRENT_EDITS} or a SHA-256")
    return edits


def _read_flag(name: str, default: bool) -> bool:
    text = (read_field(name) or str(default)).lower()
    if text not in {"true", "false"}:
        raise InvalidMessage(f"{name} is {short_repr(text)}; expected true or false")
    return text == "true"

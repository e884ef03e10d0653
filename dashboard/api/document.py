"""The API's description, `openapi.json`: made from the types of its answers and one table of its calls."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from pydantic import TypeAdapter

from dashboard.api import views
from dashboard.api.comparing import Matrix
from dashboard.incoming import Upload
from dashboard.tasks.samples import SampleState
from dashboard.tasks.scoring import ScoringState
from shared.datasets.columns import EDITED
from shared.datasets.face_filter import AGREEMENTS, CONFIDENCE_BANDS, DUPLICATES, MODELS, RESULTS, SORTS
from shared.errors import CODES
from shared.faces.labels import ETHNICITIES, GENDERS
from shared.measures.at_threshold import Measures
from shared.measures.labels import ALL_FACES
from shared.messages import ARCHIVES, IMAGES
from shared.params import TrainingParams
from shared.records.dataset import AGE_BANDS, SPLITS
from shared.records.edits import CHANGES
from shared.records.model_card import ServedPrecision

_REF: Final = "#/components/schemas/{model}"
_CSV: Final = "text/csv"
_ZIP: Final = "application/zip"
_FILE: Final = {"type": "string", "format": "binary"}

Schema = dict[str, Any]
_Query = Mapping[str, tuple[str, Schema]]
"""Parameters of a query by name: their meaning and their values."""


@dataclass(frozen=True)
class _Call:
    """One call.

    Attributes:
        method: of HTTP.
        path: below `/api/v1`; what stands in braces is a parameter.
        name: of the view that answers, and the `operationId`.
        summary: what it does.
        answer: the type of its JSON, or a media type; None where the answer has no body.
        status: of the answer.
        query: its parameters.
        body: what it takes, by media type.
        headers: which it looks at, with their meaning.
    """

    method: str
    path: str
    name: str
    summary: str
    answer: type[Any] | str | None
    status: int = 200
    query: _Query = field(default_factory=dict)
    body: Schema = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def _text(meaning: str, *choices: str) -> tuple[str, Schema]:
    return meaning, {"type": "string", **({"enum": list(choices)} if choices else {})}


def _number(meaning: str, low: float, high: float, kind: str = "integer") -> tuple[str, Schema]:
    return meaning, {"type": kind, "minimum": low, "maximum": high}


def _archive(*fields: str) -> Schema:
    properties: Schema = {"file": _FILE, **{name: {"type": "string"} for name in fields}}
    return {
        **dict.fromkeys(ARCHIVES, _FILE),
        "multipart/form-data": {"type": "object", "properties": properties, "required": ["file"]},
    }


_PARAMS: Final = _text("Training parameters as JSON; see the schema TrainingParams")
_LABELS: Final = _text("Where the labels stand, as JSON; see `labels` in docs/messages.md")
_PAGING: Final = {
    "limit": _number("The most items to return", 1, 1000),
    "offset": _number("Items to pass over", 0, 10**9),
}
_LISTED: Final = {**_PAGING, "tag": _text("Only those that have this tag")}
_ANNOTATION: Final = {
    "name": _text("Its name; an empty text gives back the name that it came with"),
    "note": _text("Any text"),
    "tags": _text("Its tags, separated by commas, in place of all that it has; in a JSON body also a list"),
}
_CONFIRM: Final[_Query] = {"confirm": ("`true` to delete it also where something depends on it", {"type": "boolean"})}
_MODEL_VERSION: Final = {"model_version": _number("A version; the champion by default", 1, 10**9)}
_MEASURED: Final = {
    "dataset": _text("SHA-256 of a dataset; that of the last version named by default"),
    "split": _text("A part of the dataset; test by default", *SPLITS, ALL_FACES),
    "threshold": _number("Predicted female from this probability on; 0.5 by default", 0, 1, "number"),
    "labels": _text("The hash of the edits that make the labels, or `archive`; those in force now by default"),
}
_REASON: Final = {"reason": _text("Why; it is recorded")}
_SELECTED: Final[_Query] = {
    "dead_id": ("A message; may be given several times", {"type": "array", "items": {"type": "string"}}),
    "all": ("`true` for all messages", {"type": "boolean"}),
}
_FACES: Final = {
    "version": _number("The model whose predictions count; the champion by default", 1, 10**9),
    "other": _number("A second model to compare it with", 1, 10**9),
    "agreement": _text("Which of the two models are correct", *AGREEMENTS),
    "models": _text("Whether the two models predict the same", *MODELS),
    "gender": _text("The label", *GENDERS),
    "predicted": _text("The prediction", *GENDERS),
    "ethnicity": _text("The label", *ETHNICITIES),
    "age": _text("A band of ages", *AGE_BANDS),
    "split": _text("A part of the dataset, or all faces that no edit left out", *SPLITS, ALL_FACES),
    "result": _text("Whether prediction and label agree", *RESULTS),
    "confidence": _text("A band of the confidence, in percent", *CONFIDENCE_BANDS),
    "duplicates": _text("Whether another face looks the same", *DUPLICATES),
    "edited": _text("What edits have made of the label", *EDITED),
    "labels": _text("`archive`, or the hash of the edits that correct the labels; by default those in force"),
    "low": _number("The lowest confidence", 0, 1, "number"),
    "high": _number("The highest confidence", 0, 1, "number"),
    "threshold": _number("Predicted female from this probability on; 0.5 by default", 0, 1, "number"),
    "search": _text("A part of the file name"),
    "sort": _text("The order", *SORTS),
}
_ONCE: Final = {"Idempotency-Key": "The same key twice makes one run or job; 409 with another archive or parameters"}

_DISMISS: Final = "Take a failed {} off what needs attention"
_UPLOAD: Final = _text("A finished upload, in place of a body; see /uploads")

_CALLS: Final = (
    _Call(
        "POST",
        "/uploads",
        "create_upload",
        "Begin an upload in parts, which can be resumed (tus 1.0)",
        Upload,
        201,
        headers={"Upload-Length": "Bytes that it will have"},
    ),
    _Call("GET", "/uploads/{upload_id}", "get_upload", "How far an upload is", Upload),
    _Call(
        "PATCH",
        "/uploads/{upload_id}",
        "append_upload",
        "Add bytes to an upload",
        None,
        204,
        body={"application/offset+octet-stream": _FILE},
        headers={"Upload-Offset": "Bytes that are there already"},
    ),
    _Call("DELETE", "/uploads/{upload_id}", "delete_upload", "Give an upload up", None, 204),
    _Call("GET", "/datasets", "list_datasets", "Datasets, newest first", views.Datasets, query=_LISTED),
    _Call(
        "POST",
        "/datasets",
        "submit_dataset",
        "Train on an archive of labelled faces",
        views.RunAccepted,
        202,
        {
            "name": _text("The name of the run"),
            "params": _PARAMS,
            "labels": _LABELS,
            "train": _text("`false` only reads the archive, so that its faces can be looked at", "true", "false"),
            "upload": _UPLOAD,
        },
        _archive("name", "params", "labels", "train"),
        _ONCE,
    ),
    _Call(
        "POST",
        "/datasets/{sha256}/runs",
        "train_dataset",
        "Train on a dataset that is here already",
        views.RunAccepted,
        202,
        {
            "name": _text("The name of the run"),
            "params": _PARAMS,
            "edits": _text("The hash of the edits to train with, or `current`; by default the archive's own labels"),
        },
        headers=_ONCE,
    ),
    _Call("GET", "/datasets/{sha256}/edits", "list_edits", "The edits of a dataset's labels", views.EditList),
    _Call(
        "POST",
        "/datasets/{sha256}/edits",
        "edit_dataset",
        "Correct labels, exclude faces, restore them, or undo an edit",
        views.EditMade,
        query={
            "change": _text("What to do with the faces", *CHANGES, "undo"),
            "faces": (
                "The index of a face; may be given several times",
                {"type": "array", "items": {"type": "integer", "minimum": 0}},
            ),
            "number": _number("The edit to undo; by default the newest that is in force", 1, 10**9),
        },
    ),
    _Call(
        "GET",
        "/datasets/{sha256}/faces",
        "list_faces",
        "Faces with their predictions, and how many there are by label, prediction, age and so on",
        views.Faces,
        query={
            **_FACES,
            **_PAGING,
            "as_of": _number(
                "Which faces, and their order, as after so many edits and undos; after all by default", 0, 10**9
            ),
        },
    ),
    _Call(
        "GET",
        "/datasets/{sha256}/faces/{index}",
        "get_face",
        "One face with every model's prediction and its edits",
        views.FaceDetails,
        query=_FACES,
    ),
    _Call("GET", "/datasets/{sha256}/faces.csv", "dataset_faces", "Faces with their predictions", _CSV, query=_FACES),
    _Call("GET", "/datasets/{sha256}/rejects.csv", "dataset_rejects", "Rejected files with their reasons", _CSV),
    _Call(
        "POST",
        "/datasets/{sha256}/predictions",
        "score_dataset",
        "Predict all faces by a model that was trained on others",
        ScoringState,
        202,
        {"version": _number("The model; the champion by default", 1, 10**9)},
    ),
    _Call("GET", "/scoring", "get_scoring", "How far that prediction is", ScoringState),
    _Call(
        "POST",
        "/samples",
        "generate_sample",
        "Generate a synthetic dataset and train on it",
        SampleState,
        202,
        {"images": _number("How many faces", 40, 20000), "params": _PARAMS},
    ),
    _Call("GET", "/samples", "get_sample", "How far the synthetic dataset is", SampleState),
    _Call("GET", "/runs", "list_runs", "Runs, newest first", views.Runs, query=_LISTED),
    _Call("GET", "/runs/{run_id}", "get_run", "A run with its history and evaluation", views.RunDetails),
    _Call("POST", "/runs/{run_id}/cancel", "cancel_run", "Ask for a run to stop", views.RunCancelled, 202),
    _Call("POST", "/runs/{run_id}/retry", "retry_run", "Send a failed run back to its queue", views.RunAccepted, 202),
    _Call("POST", "/runs/{run_id}/dismiss", "dismiss_run", _DISMISS.format("run"), None, 204),
    _Call(
        "POST",
        "/predictions",
        "predict",
        "Predict one image or several",
        views.Predictions,
        query={
            **_MODEL_VERSION,
            "timeout_s": _number("How long to wait, in seconds", 0.05, 120, "number"),
        },
        body={
            **dict.fromkeys(IMAGES, _FILE),
            "multipart/form-data": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": _FILE}},
                "required": ["file"],
            },
        },
    ),
    _Call(
        "POST",
        "/explanations",
        "explain",
        "Explain the prediction of an image: which areas of it mattered",
        views.Explanation,
        query=_MODEL_VERSION,
        body=dict.fromkeys(IMAGES, _FILE),
    ),
    _Call(
        "POST",
        "/jobs",
        "submit_job",
        "Predict an archive of images",
        views.JobAccepted,
        202,
        {"name": _text("The name of the job"), **_MODEL_VERSION, "upload": _UPLOAD},
        _archive("name", "model_version"),
        _ONCE,
    ),
    _Call("GET", "/jobs", "list_jobs", "Jobs, newest first", views.Jobs, query=_LISTED),
    _Call("GET", "/jobs/{job_id}", "get_job", "A job and its progress", views.JobDetails),
    _Call("POST", "/jobs/{job_id}/cancel", "cancel_job", "Ask for a job to stop", views.JobAccepted, 202),
    _Call("POST", "/jobs/{job_id}/retry", "retry_job", "Send a failed job back to its queue", views.JobAccepted, 202),
    _Call("POST", "/jobs/{job_id}/dismiss", "dismiss_job", _DISMISS.format("job"), None, 204),
    _Call("GET", "/jobs/{job_id}/results.csv", "job_results", "A finished job's results, a row an image", _CSV),
    _Call("GET", "/models", "list_models", "Versions and aliases", views.Models, query=_LISTED),
    _Call("GET", "/models/{version}", "get_model", "A version's card", views.ModelDetails),
    _Call(
        "GET",
        "/models/{version}/model.onnx",
        "get_model_file",
        "A version's file, or a variant of it",
        "application/octet-stream",
        query={"precision": _text("float32 by default", *get_args(ServedPrecision))},
    ),
    _Call("GET", "/models/{version}/card.md", "get_model_card", "A version's card for people", "text/markdown"),
    _Call("GET", "/models/{version}/export.zip", "export_model", "A version, its variants and its card", _ZIP),
    _Call("GET", "/runs/{run_id}/export.zip", "export_run", "A run's record, curves, evaluation, predictions", _ZIP),
    _Call("GET", "/datasets/{sha256}/export.zip", "export_dataset", "A dataset's tables", _ZIP),
    _Call(
        "GET",
        "/datasets/{sha256}/faces.zip",
        "dataset_face_images",
        "Faces as images, with a table of their predictions",
        _ZIP,
        query=_FACES,
    ),
    _Call(
        "GET",
        "/models/{version}/measures",
        "measure_model",
        "How well a version predicts a dataset at a decision threshold",
        Measures,
        query=_MEASURED
        | {"labels": _text("As for `/compare`; by default those that the model was trained with, on its own dataset")},
    ),
    _Call(
        "GET",
        "/compare",
        "compare_models",
        "Two versions on the same faces",
        views.ComparisonDetails,
        query={
            "first": _number("The version before", 1, 10**9),
            "second": _number("The version after", 1, 10**9),
            **_MEASURED,
        },
    ),
    _Call("GET", "/compare/matrix", "get_matrix", "The newest versions on the newest datasets", Matrix),
    _Call("POST", "/models/{version}/promote", "promote_model", "Promote a version", views.AliasesNow, query=_REASON),
    _Call(
        "POST",
        "/models/{version}/challenge",
        "challenge_model",
        "Let a version predict beside the champion, unseen",
        views.AliasesNow,
        query=_REASON,
    ),
    _Call("DELETE", "/models/{version}/challenge", "dismiss_model", "End that", views.AliasesNow, query=_REASON),
    _Call(
        "POST",
        "/models/rollback",
        "roll_back_model",
        "Promote the one before",
        views.AliasesNow,
        query={**_REASON, "version": _number("The version it must be, or the answer is 409", 1, 10**9)},
    ),
    *(
        call
        for noun, path in (
            ("dataset", "/datasets/{sha256}"),
            ("run", "/runs/{run_id}"),
            ("model", "/models/{version}"),
            ("job", "/jobs/{job_id}"),
        )
        for call in (
            _Call(
                "PATCH",
                path,
                f"annotate_{noun}",
                f"Change a {noun}'s name, note or tags; the others stay",
                views.AnnotationChanged,
                query=_ANNOTATION,
            ),
            _Call(
                "DELETE",
                path,
                f"delete_{noun}",
                f"Delete a {noun}, unless it is in use",
                views.Deleted,
                query=_CONFIRM,
            ),
        )
    ),
    _Call("GET", "/dead", "list_dead", "Failed messages", views.DeadLetters),
    _Call("POST", "/dead/retry", "retry_dead", "Re-queue failed messages", views.Count, query=_SELECTED),
    _Call("POST", "/dead/drop", "drop_dead", "Delete failed messages", views.Count, query=_SELECTED),
    _Call("GET", "/status", "status", "Services, queues and speed", views.Status),
    _Call(
        "GET",
        "/events",
        "events",
        "Server-sent events: the topic as `event`, the payload as JSON in `data`; `away` says that the broker does not "
        "answer, `resync` that events were missed",
        "text/event-stream",
        query={
            "topics": _text("Topic patterns, separated by commas, such as run.*"),
            "last_event_id": _text("The last id seen, for clients that cannot send the header"),
        },
        headers={"Last-Event-ID": "The last id seen"},
    ),
    _Call("GET", "/openapi.json", "openapi", "This document", views.OpenApi),
)


@functools.cache
def document() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    for call in _CALLS:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Genderline",
            "version": "1",
            "description": "Trains and serves a gender classifier for face images around a message queue. "
            f"Errors carry one of the codes: {', '.join(CODES)}.",
        },
        "security": [{}, {"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
            "responses": {"Error": _answer(views.Error, "What went wrong")},
        },
        "paths": paths,
    }


@functools.cache
def query_parameters() -> dict[str, tuple[str, ...]]:
    """Returns the names that each call takes in its query, by the call's `operationId`."""
    return {call.name: tuple(call.query) for call in _CALLS}


def _schemas() -> dict[str, Any]:
    """Returns the schema of every answer, and of what they refer to, by name."""
    answers = {call.answer for call in _CALLS if isinstance(call.answer, type)} | {views.Error, TrainingParams}
    adapters = [(kind.__name__, "serialization", TypeAdapter(kind)) for kind in answers]
    _, found = TypeAdapter.json_schemas(adapters, ref_template=_REF)  # type: ignore[arg-type]  # invariant tuples
    schemas: dict[str, Any] = dict(sorted(found["$defs"].items()))
    schemas["Fault"]["properties"]["code"]["enum"] = list(CODES)
    return schemas


def _operation(call: _Call) -> Schema:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer" if name in {"version", "index"} else "string"},
        }
        for name in re.findall(r"{(\w+)}", call.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": meaning, "schema": schema}
        for name, (meaning, schema) in call.query.items()
    ]
    parameters += [
        {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}
        for name, meaning in call.headers.items()
    ]
    body = {
        "required": "upload" not in call.query,
        "content": {kind: {"schema": schema} for kind, schema in call.body.items()},
    }
    return {
        "operationId": call.name,
        "summary": call.summary,
        "responses": {
            str(call.status): _answer(call.answer, call.summary),
            "default": {"$ref": "#/components/responses/Error"},
        },
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": body} if call.body else {}),
    }


def _answer(answer: type[Any] | str | None, description: str) -> Schema:
    if answer is None:
        return {"description": description}
    if isinstance(answer, str):
        return {"description": description, "content": {answer: {}}}
    schema = {"$ref": _REF.format(model=answer.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}

"""The API's description, `openapi.json`, made from the same tables as the API where there are any."""

from __future__ import annotations

import functools
from typing import Any, Final

from dashboard.api.schemas import schemas
from shared.errors import CODES
from shared.messages import IMAGES, ZIP

_RUN_ID: Final = {"name": "run_id", "in": "path", "required": True, "schema": {"type": "string"}}
_JOB_ID: Final = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION: Final = {"name": "version", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}


def document() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Genderline",
            "version": "1",
            "description": "Trains and serves a gender classifier for face images around a message queue. "
            f"Errors carry one of the codes: {', '.join(CODES)}.",
        },
        "servers": [{"url": "/api/v1"}],
        "security": [{}, {"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
            "responses": {
                "Error": {"description": "What went wrong", "content": _json("Error")},
            },
        },
        "paths": _paths(),
    }


@functools.cache
def query_parameters() -> dict[str, tuple[str, ...]]:
    """Returns the names that each call takes in its query, by the call's `operationId`."""
    return {
        operation["operationId"]: tuple(
            parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"
        )
        for operations in _paths().values()
        for operation in operations.values()
    }


def _paths() -> dict[str, Any]:
    return {
        "/datasets": {
            "post": _operation(
                "submit_dataset",
                "Train on an archive of labelled faces",
                {"202": _answer("RunAccepted", "The run is queued")},
                parameters=[
                    _query("name", "What the run is called"),
                    _query("params", "Training parameters as JSON; see the schema TrainingParams"),
                    _idempotency(),
                ],
                body=_archive_body(with_params=True),
            )
        },
        "/samples": {
            "post": _operation(
                "draw_sample",
                "Draw a synthetic dataset and train on it",
                {"202": _answer("Sample", "It is being drawn")},
                parameters=[
                    _query("images", "How many faces", {"type": "integer", "minimum": 40, "maximum": 20000}),
                    _query("params", "Training parameters as JSON; see the schema TrainingParams"),
                ],
            ),
            "get": _operation("get_sample", "How far the drawing is", {"200": _answer("Sample", "How far it is")}),
        },
        "/runs": {
            "get": _operation("list_runs", "Runs, newest first", {"200": _answer("Runs", "Runs")}, parameters=_paging())
        },
        "/runs/{run_id}": {
            "get": _operation(
                "get_run",
                "A run with its parameters, history and evaluation",
                {"200": _answer("Run", "The run")},
                parameters=[_RUN_ID],
            )
        },
        "/runs/{run_id}/cancel": {
            "post": _operation(
                "cancel_run",
                "Ask for a run to stop",
                {"202": _answer("RunAccepted", "It will stop")},
                parameters=[_RUN_ID],
            )
        },
        "/predictions": {
            "post": _operation(
                "predict",
                "Predict one image or several",
                {"200": _answer("Predictions", "An entry an image, in order")},
                parameters=[
                    _query("model_version", "A version; the champion by default", {"type": "integer", "minimum": 1}),
                    _query("timeout_s", "How long to wait, in seconds", {"type": "number", "maximum": 120}),
                ],
                body={
                    "required": True,
                    "content": {
                        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGES},
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": ["file"],
                                "properties": {
                                    "file": {"type": "array", "items": {"type": "string", "format": "binary"}}
                                },
                            }
                        },
                    },
                },
            )
        },
        "/jobs": {
            "post": _operation(
                "submit_job",
                "Predict an archive of images",
                {"202": _answer("JobAccepted", "The job is queued")},
                parameters=[_query("name", "What the job is called"), _idempotency()],
                body=_archive_body(with_params=False),
            ),
            "get": _operation(
                "list_jobs", "Jobs, newest first", {"200": _answer("Jobs", "Jobs")}, parameters=_paging()
            ),
        },
        "/jobs/{job_id}": {
            "get": _operation(
                "get_job", "A job and its progress", {"200": _answer("Job", "The job")}, parameters=[_JOB_ID]
            )
        },
        "/jobs/{job_id}/cancel": {
            "post": _operation(
                "cancel_job",
                "Ask for a job to stop",
                {"202": _answer("JobAccepted", "It will stop")},
                parameters=[_JOB_ID],
            )
        },
        "/jobs/{job_id}/results.csv": {
            "get": _operation(
                "job_results",
                "A finished job's results, a row an image",
                {"200": {"description": "The table", "content": {"text/csv": {"schema": {"type": "string"}}}}},
                parameters=[_JOB_ID],
            )
        },
        "/models": {
            "get": _operation(
                "list_models", "Versions and aliases", {"200": _answer("Models", "Models")}, parameters=_paging()
            )
        },
        "/models/{version}": {
            "get": _operation(
                "get_model", "A version's card", {"200": _answer("ModelCard", "The card")}, parameters=[_VERSION]
            )
        },
        "/models/{version}/model.onnx": {
            "get": _operation(
                "get_model_file",
                "A version's ONNX file",
                {"200": {"description": "The file", "content": {"application/octet-stream": {}}}},
                parameters=[_VERSION],
            )
        },
        "/models/{version}/promote": {
            "post": _operation(
                "promote_model",
                "Make a version the champion",
                {"200": _answer("Aliases", "What serves now")},
                parameters=[_VERSION, _query("reason", "Why; it is kept")],
            )
        },
        "/models/{version}/challenge": {
            "post": _operation(
                "challenge_model",
                "Let a version shadow the champion",
                {"200": _answer("Aliases", "What serves now, and what challenges it")},
                parameters=[_VERSION, _query("reason", "Why; it is kept")],
            ),
            "delete": _operation(
                "dismiss_model",
                "Let it challenge no longer",
                {"200": _answer("Aliases", "What serves now")},
                parameters=[_VERSION, _query("reason", "Why; it is kept")],
            ),
        },
        "/models/rollback": {
            "post": _operation(
                "roll_back_model",
                "Make the previous champion the champion again",
                {"200": _answer("Aliases", "What serves now")},
                parameters=[_query("reason", "Why; it is kept")],
            )
        },
        "/dead": {"get": _operation("list_dead", "Dead letters", {"200": _answer("DeadLetters", "The letters")})},
        "/dead/retry": {
            "post": _operation(
                "retry_dead",
                "Send dead letters back",
                {"200": _answer("Count", "How many")},
                parameters=_chosen_dead(),
            )
        },
        "/dead/drop": {
            "post": _operation(
                "drop_dead", "Delete dead letters", {"200": _answer("Count", "How many")}, parameters=_chosen_dead()
            )
        },
        "/status": {"get": _operation("status", "Workers, queues and speed", {"200": _answer("Status", "All that")})},
        "/events": {
            "get": _operation(
                "events",
                "Server-sent events: the topic as `event`, the payload as JSON in `data`; "
                "`away` says that the broker does not answer, `resync` that events were missed",
                {"200": {"description": "The stream", "content": {"text/event-stream": {}}}},
                parameters=[
                    _query("topics", "Topic patterns, separated by commas, such as run.*"),
                    _query("last_event_id", "The last id seen, for clients that cannot send the header"),
                    {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},
                ],
            )
        },
        "/openapi.json": {
            "get": _operation("openapi", "This document", {"200": _answer("OpenApi", "OpenAPI 3.1")}),
        },
    }


def _operation(
    name: str,
    summary: str,
    answers: dict[str, Any],
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {**answers, "default": {"$ref": "#/components/responses/Error"}},
    }
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = body
    return operation


def _archive_body(*, with_params: bool) -> dict[str, Any]:
    properties: dict[str, Any] = {"file": {"type": "string", "format": "binary"}, "name": {"type": "string"}}
    if with_params:
        properties["params"] = {"type": "string", "description": "Training parameters as JSON"}
    return {
        "required": True,
        "content": {
            ZIP: {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {"schema": {"type": "object", "properties": properties, "required": ["file"]}},
        },
    }


def _answer(schema: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": _json(schema)}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _query(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema or {"type": "string"}}


def _paging() -> list[dict[str, Any]]:
    return [
        _query("limit", "The most items to return", {"type": "integer", "minimum": 1, "maximum": 1000}),
        _query("offset", "Items to pass over", {"type": "integer", "minimum": 0}),
    ]


def _chosen_dead() -> list[dict[str, Any]]:
    return [
        _query("dead_id", "A letter; may be given several times", {"type": "array", "items": {"type": "string"}}),
        _query("all", "`true` for all letters", {"type": "boolean"}),
    ]


def _idempotency() -> dict[str, Any]:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key twice makes one run or job",
        "schema": {"type": "string", "maxLength": 200},
    }

"""The API's description is valid OpenAPI, and what the API answers is what it describes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from werkzeug.test import TestResponse

from dashboard.api.document import document
from shared.broker.base import Event, Message
from shared.records.jobs import JobState
from shared.records.runs import RunState
from tests.support.dashboard_app import Site, open_site
from tests.support.services import eventually
from tests.unit.dashboard.api.test_routes import archive
from tests.unit.dashboard.pages.helpers import jpeg

REPOSITORY = Path(__file__).parents[4]
RUN, JOB = "run-a", "job-a"
TWO = {"a.jpg": b"odd", "b.png": b"even"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site on which every call has something to answer."""
    with open_site(tmp_path) as site:
        sha256 = site.builder.dataset(30)
        site.builder.model(sha256, RUN)
        site.builder.model(sha256, "run-b")
        site.builder.model(sha256, "run-c")
        site.parts.client.promote(1, "first")
        site.parts.client.promote(2, "second")
        error = {"code": "single_gender", "message": "all faces are male"}
        site.builder.run("run-rejected", state=RunState.REJECTED, dataset=sha256, error=error)
        progress = {"stage": "training", "done": 2, "total": 10, "epoch": 1, "epochs": 8}
        site.builder.run("run-going", state=RunState.TRAINING, epochs=2, progress=progress)
        site.builder.job(JOB)
        site.builder.jobs.create("job-going", message_id="j", name="j", state=JobState.QUEUED)
        site.parts.workers.on_event(
            Event("worker.heartbeat", {"service": "inference", "worker": "here:1", "version": 1})
        )
        queue = site.broker.topology.jobs
        site.builder.jobs.create("job-failed", message_id="f", name="f", state=JobState.QUEUED)
        site.builder.jobs.update("job-failed", state=JobState.FAILED)
        site.broker.publish(queue, Message(b"x", "text/plain", message_id="f"))
        with site.broker.consume([queue], 1) as consumer:
            (delivery,) = consumer.receive(1, 1.0)
            consumer.dead_letter(delivery, "unsupported_content_type")
        yield site


def answers_of(site: Site) -> dict[tuple[str, str], Callable[[], list[TestResponse]]]:
    """Returns, for each call that answers with JSON, what makes real answers."""
    web, (sha256,) = site.web, site.store.children("datasets")

    def get(*paths: str) -> Callable[[], list[TestResponse]]:
        return lambda: [web.get(f"/api/v1{path}") for path in paths]

    def post(path: str, **body: Any) -> Callable[[], list[TestResponse]]:
        return lambda: [web.post(f"/api/v1{path}", **body)]

    def change(path: str, *bodies: dict[str, Any]) -> Callable[[], list[TestResponse]]:
        return lambda: [web.patch(f"/api/v1{path}", json=body) for body in bodies]

    def delete_dataset() -> list[TestResponse]:
        unused = site.builder.dataset(30)

        def delete_unless_needed() -> list[TestResponse]:
            for run in site.builder.runs.open().records:  # one that goes on may need it; samples become one in a while
                site.builder.runs.update(run.run_id, state=RunState.CANCELLED)
            for job in site.builder.jobs.open().records:
                site.builder.jobs.end(job.job_id, JobState.CANCELLED)
            answer = web.delete(f"/api/v1/datasets/{unused}")
            return [] if answer.status_code == 409 else [answer]

        return eventually(delete_unless_needed, 15, "no run or job goes on")

    def delete(path: str) -> Callable[[], list[TestResponse]]:
        return lambda: [web.delete(f"/api/v1{path}")]

    zipped = {"content_type": "application/zip"}
    return {
        ("/uploads", "post"): post("/uploads", headers={"Upload-Length": "3"}),
        ("/uploads/{upload_id}", "get"): lambda: [web.get(f"/api/v1/uploads/{site.parts.uploads.create(3).upload_id}")],
        ("/datasets", "post"): lambda: [web.post("/api/v1/datasets", data=archive(), **zipped)],
        ("/datasets", "get"): get("/datasets", "/datasets?limit=1"),
        ("/datasets/{sha256}/runs", "post"): post(f"/datasets/{sha256}/runs?name=again"),
        ("/datasets/{sha256}/edits", "post"): lambda: [
            web.post(f"/api/v1/datasets/{sha256}/edits", json={"change": "female", "faces": [1, 2]}),
            web.post(f"/api/v1/datasets/{sha256}/edits?change=undo"),
        ],
        ("/datasets/{sha256}/faces", "get"): get(
            f"/datasets/{sha256}/faces?limit=5&sort=suspects&labels=archive", f"/datasets/{sha256}/faces?other=2"
        ),
        ("/datasets/{sha256}/faces/{index}", "get"): get(f"/datasets/{sha256}/faces/1"),
        ("/datasets/{sha256}/edits", "get"): get(f"/datasets/{sha256}/edits"),
        ("/datasets/{sha256}/predictions", "post"): post(f"/datasets/{sha256}/predictions?version=1"),
        ("/scoring", "get"): get("/scoring"),
        ("/samples", "post"): post("/samples?images=40"),
        ("/samples", "get"): get("/samples"),
        ("/runs", "get"): get("/runs", "/runs?limit=1"),
        ("/runs/{run_id}", "get"): get(*(f"/runs/{run}" for run in (RUN, "run-rejected", "run-going"))),
        ("/runs/{run_id}/cancel", "post"): post("/runs/run-going/cancel"),
        ("/runs/{run_id}/retry", "post"): post("/runs/run-rejected/retry"),
        ("/predictions", "post"): lambda: [
            web.post("/api/v1/predictions", data=b"even", content_type="image/png"),
            web.post("/api/v1/predictions", data={"file": [(io.BytesIO(data), name) for name, data in TWO.items()]}),
        ],
        ("/explanations", "post"): post("/explanations", data=jpeg(), content_type="image/jpeg"),
        ("/jobs", "post"): lambda: [web.post("/api/v1/jobs", data=archive(), **zipped)],
        ("/jobs", "get"): get("/jobs"),
        ("/jobs/{job_id}", "get"): get(f"/jobs/{JOB}", "/jobs/job-going"),
        ("/jobs/{job_id}/cancel", "post"): post("/jobs/job-going/cancel"),
        ("/jobs/{job_id}/retry", "post"): post("/jobs/job-failed/retry"),
        ("/models/{version}/challenge", "post"): post("/models/1/challenge"),
        ("/models", "get"): get("/models"),
        ("/models/{version}/challenge", "delete"): lambda: [web.delete("/api/v1/models/1/challenge")],
        ("/models/{version}", "get"): get("/models/1"),
        ("/models/{version}/measures", "get"): get("/models/1/measures", "/models/1/measures?threshold=0.7&split=all"),
        ("/compare", "get"): get("/compare?first=1&second=2", "/compare?first=2&second=1&split=all&threshold=0.3"),
        ("/compare/matrix", "get"): get("/compare/matrix"),
        ("/models/{version}/promote", "post"): post("/models/1/promote"),
        ("/models/rollback", "post"): post("/models/rollback"),
        ("/datasets/{sha256}", "patch"): change(f"/datasets/{sha256}", {"name": "winter", "tags": ["a", "b"]}),
        ("/runs/{run_id}", "patch"): change(f"/runs/{RUN}", {"note": "with glasses"}, {}),
        ("/models/{version}", "patch"): change("/models/1", {"tags": "a, b"}),
        ("/jobs/{job_id}", "patch"): change(f"/jobs/{JOB}", {"name": "x"}),
        ("/dead", "get"): get("/dead"),
        ("/dead/retry", "post"): post("/dead/retry?all=true"),
        ("/dead/drop", "post"): post("/dead/drop?all=true"),
        ("/status", "get"): get("/status"),
        ("/openapi.json", "get"): get("/openapi.json"),
        ("/jobs/{job_id}", "delete"): delete(f"/jobs/{JOB}"),
        ("/models/{version}", "delete"): delete("/models/3?confirm=true"),
        ("/runs/{run_id}", "delete"): delete("/runs/run-rejected"),
        ("/datasets/{sha256}", "delete"): delete_dataset,
    }


def schema_of(operation: dict[str, Any], status: int) -> dict[str, Any] | None:
    """Returns what an operation says of a JSON answer of a status; None where that is no JSON."""
    described = operation["responses"].get(str(status)) or operation["responses"]["default"]
    if "$ref" in described:
        described = document()["components"]["responses"][described["$ref"].rpartition("/")[2]]
    schema: dict[str, Any] | None = described.get("content", {}).get("application/json", {}).get("schema")
    return schema


def faults(schema: dict[str, Any], body: object) -> list[str]:
    whole = {"components": document()["components"], **schema}
    validator = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]


def test_the_description_is_valid_openapi(site: Site) -> None:
    validate(json.loads(site.web.get("/api/v1/openapi.json").data))


def test_the_description_leads_to_this_dashboard_below_its_prefix_too(site: Site, tmp_path: Path) -> None:
    assert (site.web.get("/api/v1/openapi.json").json or {})["servers"] == [{"url": "/api/v1"}]
    with open_site(tmp_path / "below", url_prefix="/faces") as below:
        document_below = below.web.get("/faces/api/v1/openapi.json").json or {}
    assert document_below["servers"] == [{"url": "/faces/api/v1"}]


def test_every_answer_is_as_described(site: Site) -> None:
    paths = document()["paths"]
    with_json = {
        (path, method)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if any(schema_of(operation, int(status)) for status in operation["responses"] if status != "default")
    }
    calls = answers_of(site)
    assert set(calls) == with_json

    with site.worker():
        for (path, method), call in calls.items():
            for answer in call():
                assert answer.status_code in {200, 201, 202}, (path, answer.text)
                schema = schema_of(paths[path][method], answer.status_code)
                assert schema is not None, path
                assert faults(schema, answer.json) == [], path


@pytest.mark.parametrize(
    ("method", "path", "query", "status"),
    [
        ("get", "/runs/{run_id}", "", 404),
        ("post", "/datasets", "", 415),
        ("post", "/runs/{run_id}/cancel", "", 404),
        ("post", "/predictions", "", 415),
        ("post", "/dead/drop", "", 400),
        ("get", "/runs", "limit=x", 400),
    ],
)
def test_every_error_is_as_described(site: Site, method: str, path: str, query: str, status: int) -> None:
    answer = site.web.open(
        f"/api/v1{path.format(run_id='nope')}?{query}", method=method.upper(), data=b"x", content_type="text/plain"
    )

    assert answer.status_code == status
    schema = schema_of(document()["paths"][path][method], status)
    assert schema is not None
    assert faults(schema, answer.json) == []


def test_the_page_for_people_names_every_call_and_parameter_and_no_other() -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| `([A-Z]+) (/\S+)` \|([^|]*)\|", page, flags=re.MULTILINE)
    paths = document()["paths"]

    assert {(method.lower(), path) for method, path, _ in rows} == {
        (method, path) for path, operations in paths.items() for method in operations
    }
    for method, path, said in rows:
        operation = paths[path][method.lower()]
        query = {item["name"] for item in operation.get("parameters", []) if item["in"] == "query"}
        assert set(re.findall("`([a-z_]+)(?:=true)?`", said)) == query, (method, path)


def test_an_answer_that_lacks_a_field_or_has_one_more_is_noticed(site: Site) -> None:
    run = site.web.get(f"/api/v1/runs/{RUN}").json
    assert run is not None
    schema = {"$ref": "#/components/schemas/RunDetails"}

    assert faults(schema, {**run, "surprise": 1})
    assert faults(schema, {key: value for key, value in run.items() if key != "state"})
    assert faults(schema, {**run, "created": "yesterday"})

"""The HTTP API, on a real embedded broker and a real store."""

from __future__ import annotations

import hashlib
import io
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dashboard.api.document import document
from shared.broker.base import Message, Outgoing
from shared.errors import CODES
from shared.faces.labelling import LabelSpec
from shared.measures.shadow import ShadowFigures, add_shadow_figures
from shared.messages import IMAGES, parse_dataset, parse_job, parse_prediction, run_id_of
from shared.params import TrainingParams
from shared.records.dataset import dataset_id
from shared.records.jobs import JobState
from shared.records.runs import RunState
from tests.support.builders.archives import bmp_of, face_jpeg, face_pixels, zipped
from tests.support.dashboard_app import Site, error_of, open_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def archive(entries: int = 3) -> bytes:
    return zipped((f"{i}_0_0.jpg", b"face" * 1000) for i in range(entries))


def taken(site: Site, queue: str) -> Message:
    with site.broker.consume([queue], 10) as consumer:
        delivery, *_ = consumer.receive(10, 1.0)
        return delivery.message


def test_a_raw_archive_is_stored_and_queued(site: Site) -> None:
    answer = site.web.post("/api/v1/datasets?name=mine", data=archive(), content_type="application/zip")

    assert answer.status_code == 202
    run_id = answer.json["run_id"]  # type: ignore[index]
    assert answer.headers["Location"] == f"/api/v1/runs/{run_id}"
    message = parse_dataset(taken(site, site.broker.topology.datasets))
    assert message.name == "mine"
    assert message.uri is not None
    assert site.store.get(message.uri.removeprefix("store:")) == archive()
    assert site.parts.client.runs.get(run_id).state == RunState.QUEUED


def test_edits_are_made_undone_and_trained_with(site: Site) -> None:
    sha256 = site.builder.dataset(30)
    path = f"/api/v1/datasets/{sha256}"
    web = site.web
    assert web.get(f"{path}/edits").json == {
        "edits": [],
        "corrections": {"schema": 1, "male": [], "female": [], "exclude": []},
        "sha256": None,
    }
    assert error_of(web.post(f"{path}/runs?edits=current").data)[0] == "conflict"

    first = web.post(f"{path}/edits", json={"change": "male", "faces": [4, 2]}).json or {}
    web.post(f"{path}/edits", data={"change": "exclude", "faces": ["7", "8"]})
    undone = web.post(f"{path}/edits?change=undo").json or {}
    assert undone["edit"]["number"] == 2
    assert undone["sha256"] == first["sha256"]
    found = web.get(f"{path}/edits").json or {}
    assert found["corrections"]["male"] == [2, 4]
    assert len(found["edits"]) == 2

    for edits in ("current", first["sha256"]):
        run_id = (web.post(f"{path}/runs?edits={edits}").json or {})["run_id"]
        assert site.parts.client.runs.get(run_id).edits == first["sha256"]
    assert parse_dataset(taken(site, site.broker.topology.datasets)).edits == first["sha256"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("change=male&faces=30", 400),
        ("change=male&faces=1.5", 400),
        ("change=male", 400),
        ("change=boy&faces=1", 400),
        ("faces=1", 400),
        ("change=undo", 409),
        ("change=undo&number=4", 404),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused(site: Site, query: str, status: int) -> None:
    sha256 = site.builder.dataset(30)
    assert site.web.post(f"/api/v1/datasets/{sha256}/edits?{query}").status_code == status
    assert site.web.post(f"/api/v1/datasets/{'0' * 64}/edits?change=male&faces=1").status_code == 404
    assert site.web.post(f"/api/v1/datasets/{sha256}/runs?edits=mine").status_code == 400
    assert site.web.post(f"/api/v1/datasets/{sha256}/runs?edits={'0' * 64}").status_code == 404


def test_an_archive_may_be_sent_only_to_be_looked_at(site: Site) -> None:
    answer = site.web.post("/api/v1/datasets?train=false", data=archive(), content_type="application/zip")
    assert not site.parts.client.runs.get((answer.json or {})["run_id"]).train
    assert not parse_dataset(taken(site, site.broker.topology.datasets)).train
    refused = site.web.post("/api/v1/datasets?train=maybe", data=archive(), content_type="application/zip")
    assert error_of(refused.data)[1] == "train is 'maybe'; expected true or false"


def test_a_multipart_archive_carries_name_and_params(site: Site) -> None:
    form = {"file": (io.BytesIO(archive()), "faces.zip"), "params": '{"epochs": 3}'}

    answer = site.web.post("/api/v1/datasets", data=form)

    assert answer.status_code == 202
    message = parse_dataset(taken(site, site.broker.topology.datasets))
    assert (message.name, message.params.epochs) == ("faces", 3)


def test_the_same_idempotency_key_makes_the_same_run(site: Site) -> None:
    web = site.web
    headers = {"Idempotency-Key": "once"}

    ids = {
        web.post("/api/v1/datasets", data=archive(), content_type="application/zip", headers=headers).json["run_id"]  # type: ignore[index]
        for _ in range(2)
    }

    assert ids == {run_id_of("once")}


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code", "words"),
    [
        (b"7z\xbc\xaf\x27\x1c rest", "application/zip", 400, "invalid_archive", "a 7z archive"),
        (b"", "application/zip", 400, "invalid_archive", "an empty file"),
        (b"x", "text/plain", 415, "unsupported_content_type", "'text/plain'"),
    ],
)
def test_what_is_no_archive_is_refused_with_what_was_found(
    site: Site, body: bytes, content_type: str, status: int, code: str, words: str
) -> None:
    answer = site.web.post("/api/v1/datasets", data=body, content_type=content_type)

    assert answer.status_code == status
    assert error_of(answer.data)[0] == code
    assert words in error_of(answer.data)[1]


def test_an_unknown_parameter_is_refused_before_anything_is_stored(site: Site) -> None:
    answer = site.web.post('/api/v1/datasets?params={"epoch":3}', data=archive(), content_type="application/zip")

    assert (answer.status_code, error_of(answer.data)[0]) == (400, "invalid_params")
    assert "epochs" in error_of(answer.data)[1]
    assert site.store.children("runs") == []


def test_an_archive_over_the_limit_is_refused(tmp_path: Path) -> None:
    with open_site(tmp_path, max_archive_bytes=100) as site:
        answer = site.web.post("/api/v1/datasets", data=archive(), content_type="application/zip")

    assert (answer.status_code, error_of(answer.data)[0]) == (413, "too_large")


class Flowing(io.RawIOBase):
    """A body of `size` bytes that ends as a zip and is never in memory as a whole."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._end = archive()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        in_front = self._left - len(self._end)
        count = min(len(buffer), in_front) if in_front > 0 else min(len(buffer), self._left)
        start = len(self._end) - self._left
        buffer[:count] = bytes(count) if in_front > 0 else self._end[start : start + count]
        self._left -= count
        return count


def test_an_archive_goes_to_disk_as_it_comes_and_never_whole_into_memory(site: Site) -> None:
    size = 48 * 2**20
    tracemalloc.start()
    try:
        body = {"wsgi.input": Flowing(size), "CONTENT_LENGTH": str(size)}
        answer = site.web.post("/api/v1/datasets", content_type="application/zip", environ_overrides=body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert answer.status_code == 202
    assert peak < size / 4
    assert site.store.size(f"datasets/{site.store.children('datasets')[0]}/archive.zip") == size


def test_an_empty_multipart_names_the_field_it_expects(site: Site) -> None:
    form = {"archive": (io.BytesIO(archive()), "a.zip")}

    answer = site.web.post("/api/v1/datasets", data=form)

    assert answer.status_code == 400
    assert "archive" in error_of(answer.data)[1]
    assert "'file'" in error_of(answer.data)[1]


def test_a_part_of_a_form_without_a_name_is_refused(site: Site) -> None:
    body = b'--b\r\nContent-Disposition: form-data; filename="a.zip"\r\n\r\nPK\x03\x04\r\n--b--\r\n'
    for path in ("/api/v1/datasets", "/api/v1/predictions"):
        answer = site.web.post(path, data=body, content_type="multipart/form-data; boundary=b")

        assert (answer.status_code, error_of(answer.data)[0]) == (400, "invalid_message")


def test_runs_are_listed_newest_first_and_paged(site: Site) -> None:
    for i in range(3):
        site.builder.run(f"run-{i}", created=f"2026-01-0{i + 1}T00:00:00.000Z")

    whole = site.web.get("/api/v1/runs").json
    part = site.web.get("/api/v1/runs?limit=1&offset=1").json

    assert whole is not None
    assert [run["run_id"] for run in whole["runs"]] == ["run-2", "run-1", "run-0"]
    assert part is not None
    assert ([run["run_id"] for run in part["runs"]], part["total"]) == (["run-1"], 3)


def test_a_run_shows_params_history_and_evaluation(site: Site) -> None:
    sha256 = site.builder.dataset(30)
    site.builder.model(sha256, "run-a", epochs=5)

    run = site.web.get("/api/v1/runs/run-a").json

    assert run is not None
    assert run["params"]["epochs"] == 8
    assert [row["epoch"] for row in run["history"]] == [1, 2, 3, 4, 5]
    assert run["evaluation"]["accuracy"] == 0.93


def test_a_record_that_still_changes_is_read_again(site: Site) -> None:
    web = site.web
    site.builder.run("run-a", state=RunState.TRAINING)
    before = web.get("/api/v1/runs/run-a").json
    site.builder.runs.update("run-a", state=RunState.EVALUATING)

    after = web.get("/api/v1/runs/run-a").json

    assert (before or {})["state"] == RunState.TRAINING
    assert (after or {})["state"] == RunState.EVALUATING


def test_cancelling_a_run_leaves_word_for_its_trainer(site: Site) -> None:
    site.builder.run("run-a", state=RunState.TRAINING)

    answer = site.web.post("/api/v1/runs/run-a/cancel")

    assert answer.status_code == 202
    assert site.builder.runs.cancel_requested("run-a")


def test_cancelling_what_has_ended_is_a_conflict(site: Site) -> None:
    site.builder.run("run-a", state=RunState.FAILED)

    answer = site.web.post("/api/v1/runs/run-a/cancel")

    assert (answer.status_code, error_of(answer.data)[0]) == (409, "conflict")


@pytest.mark.parametrize(
    "path", ["/api/v1/runs/nope", "/api/v1/jobs/nope", "/api/v1/models/7", "/api/v1/nope", "/api/v1/runs/..%2Fx"]
)
def test_what_is_not_there_is_not_found_as_json(site: Site, path: str) -> None:
    answer = site.web.get(path)

    assert (answer.status_code, error_of(answer.data)[0]) == (404, "not_found")


def test_one_image_body_gets_the_contracts_reply(site: Site) -> None:
    with site.worker():
        answer = site.web.post("/api/v1/predictions", data=b"even", content_type="image/jpeg")

    assert answer.status_code == 200
    assert answer.json == {
        "schema": 1,
        "model": {"name": "gender", "version": 1},
        "predictions": [{"id": None, "gender": "female", "probability_female": 0.9, "confidence": 0.9}],
    }


def test_many_files_are_answered_in_order_under_their_names(site: Site) -> None:
    form = {"file": [(io.BytesIO(b"odd"), "a.jpg"), (io.BytesIO(b"even"), "b.png")]}
    with site.worker():
        answer = site.web.post("/api/v1/predictions", data=form)

    entries = (answer.json or {})["predictions"]
    assert [(entry["id"], entry["gender"]) for entry in entries] == [("a.jpg", "male"), ("b.png", "female")]


def test_a_pinned_version_reaches_the_worker(site: Site) -> None:
    with site.worker():
        answer = site.web.post("/api/v1/predictions?model_version=4", data=b"even", content_type="image/png")

    assert (answer.json or {})["model"]["version"] == 4


def test_an_unknown_version_is_not_found(site: Site) -> None:
    error = {"model": None, "error": {"code": "unknown_model_version", "message": "there is no version 9"}}
    with site.worker(lambda _: error):
        answer = site.web.post("/api/v1/predictions", data=b"even", content_type="image/png")

    assert answer.status_code == 404
    assert error_of(answer.data) == ("unknown_model_version", "there is no version 9")


def test_no_worker_is_a_timeout_and_not_a_hang(site: Site) -> None:
    answer = site.web.post("/api/v1/predictions?timeout_s=0.1", data=b"even", content_type="image/png")

    assert (answer.status_code, error_of(answer.data)[0]) == (504, "timeout")


def test_a_full_queue_is_unavailable(tmp_path: Path) -> None:
    with open_site(tmp_path, queue_limit=1) as site:
        site.broker.publish(site.broker.topology.predictions, Message(b"x", "image/png"))

        answer = site.web.post("/api/v1/predictions", data=b"even", content_type="image/png")

    assert (answer.status_code, error_of(answer.data)[0]) == (503, "unavailable")


def test_an_image_over_the_limit_is_refused(tmp_path: Path) -> None:
    with open_site(tmp_path, max_image_bytes=10) as site:
        answer = site.web.post("/api/v1/predictions", data=b"x" * 11, content_type="image/png")

    assert (answer.status_code, error_of(answer.data)[0]) == (413, "image_too_large")


@pytest.mark.parametrize("query", ["timeout_s=x", "timeout_s=0", "timeout_s=nan", "model_version=-1"])
def test_a_number_out_of_range_is_refused_by_name(site: Site, query: str) -> None:
    answer = site.web.post(f"/api/v1/predictions?{query}", data=b"even", content_type="image/png")

    assert answer.status_code == 400
    assert query.partition("=")[0] in error_of(answer.data)[1]
    assert re.search("expected a number from [0-9.]+ to [0-9,]+$", error_of(answer.data)[1])


def test_a_fraction_is_refused_where_a_whole_number_is_expected(site: Site) -> None:
    answer = site.web.get("/api/v1/runs?limit=2.5")

    assert answer.status_code == 400
    assert error_of(answer.data)[1] == "limit is '2.5'; expected a whole number"
    assert site.web.get("/api/v1/runs?limit=2.0").status_code == 200


def test_a_job_is_stored_and_queued_and_tells_its_progress(site: Site) -> None:
    web = site.web
    answer = web.post("/api/v1/jobs?name=photos", data=archive(), content_type="application/zip")

    assert answer.status_code == 202
    job_id = (answer.json or {})["job_id"]
    assert parse_job(taken(site, site.broker.topology.jobs)).name == "photos"
    site.builder.jobs.update(job_id, state=JobState.ACCEPTED, images=10, shards=3, shard_images=4)
    site.store.put(site.builder.jobs.part_key(job_id, 0), b"rows")
    job = web.get(f"/api/v1/jobs/{job_id}").json
    assert (job or {})["progress"] == {"done": 4, "total": 10}
    assert [item["job_id"] for item in (web.get("/api/v1/jobs").json or {})["jobs"]] == [job_id]


def test_results_come_as_csv_once_there_are_any(site: Site) -> None:
    site.builder.job("job-a")
    site.builder.jobs.create("job-b", message_id="b", name="b", state=JobState.QUEUED)

    done, waiting = (
        site.web.get("/api/v1/jobs/job-a/results.csv", buffered=True),
        site.web.get("/api/v1/jobs/job-b/results.csv"),
    )

    assert (done.status_code, done.mimetype) == (200, "text/csv")
    assert done.data.startswith(b"name,gender,probability_female,confidence,true_gender,correct,error\n")
    assert "job-a.csv" in done.headers["Content-Disposition"]
    assert (waiting.status_code, error_of(waiting.data)[0]) == (409, "conflict")


def test_cancelling_a_job_leaves_word_for_its_workers(site: Site) -> None:
    site.builder.jobs.create("job-b", message_id="b", name="b", state=JobState.QUEUED)

    assert site.web.post("/api/v1/jobs/job-b/cancel").status_code == 202
    assert site.builder.jobs.cancel_requested("job-b")


def test_a_version_that_is_not_whole_is_refused_at_once_and_nobody_is_told_that_it_serves(site: Site) -> None:
    version = site.builder.model(site.builder.dataset(30), "run-a")
    site.store.put(f"models/gender/{version}/model.onnx", b"on")

    with site.broker.subscribe(["model.*"]) as events:
        answer = site.web.post(f"/api/v1/models/{version}/promote")
        told = events.receive(0.1)

    assert (answer.status_code, error_of(answer.data)[0]) == (500, "damaged_record")
    assert f"models/gender/{version}/model.onnx in the store is damaged: found 2 bytes" in error_of(answer.data)[1]
    assert (told, site.builder.registry.aliases().champion) == ([], None)


def test_promotion_and_rollback_keep_their_reason_and_are_announced(site: Site) -> None:
    sha256 = site.builder.dataset(30)
    first, second = site.builder.model(sha256, "run-a"), site.builder.model(sha256, "run-b")
    web = site.web
    with site.broker.subscribe(["model.promoted"]) as events:
        web.post(f"/api/v1/models/{first}/promote", json={"reason": "first one"})
        web.post(f"/api/v1/models/{second}/promote", data={"reason": "better"})
        back = web.post("/api/v1/models/rollback?reason=complaints")
        announced = [event.payload["version"] for event in events.receive(2.0)]

    assert (back.json or {})["aliases"] == {"champion": first, "previous": second, "challenger": None}
    assert [entry.reason for entry in site.builder.registry.history()] == ["first one", "better", "complaints"]
    assert announced == [first, second, first]


def test_a_challenger_is_named_shown_with_its_figures_and_dismissed(site: Site) -> None:
    sha256 = site.builder.dataset(30)
    first, second = site.builder.model(sha256, "run-a"), site.builder.model(sha256, "run-b")
    web, path = site.web, f"/api/v1/models/{second}/challenge"
    too_early = web.post(path)
    web.post(f"/api/v1/models/{first}/promote")
    with site.broker.subscribe(["model.challenged"]) as events:
        named = web.post(path, json={"reason": "faster"})
        add_shadow_figures(site.store, second, first, ShadowFigures(images=200, agreed=190))
        shown = web.get("/api/v1/models").json or {}
        wrong = web.delete(f"/api/v1/models/{first}/challenge")
        dismissed = web.delete(path)
        announced = [event.payload["version"] for event in events.receive(2.0)]

    assert (too_early.status_code, error_of(too_early.data)[0]) == (409, "conflict")
    assert (named.json or {})["aliases"] == {"champion": first, "previous": None, "challenger": second}
    assert (shown["shadow"]["images"], shown["shadow"]["agreement"]) == (200, 0.95)
    assert (wrong.status_code, error_of(wrong.data)[0]) == (409, "conflict")
    assert (dismissed.json or {})["aliases"]["challenger"] is None
    assert (web.get("/api/v1/models").json or {})["shadow"] is None
    assert announced == [second, None]
    assert web.post("/api/v1/models/9/challenge").status_code == 404


def test_rolling_back_to_nothing_is_a_conflict(site: Site) -> None:
    answer = site.web.post("/api/v1/models/rollback")

    assert (answer.status_code, error_of(answer.data)[0]) == (409, "conflict")


def test_a_rollback_over_http_may_say_to_which_version(site: Site) -> None:
    sha256 = site.builder.dataset(30)
    for run_id in ("run-a", "run-b"):
        site.parts.client.promote(site.builder.model(sha256, run_id), "newer")

    other = site.web.post("/api/v1/models/rollback", json={"version": 2})
    right = site.web.post("/api/v1/models/rollback", json={"version": 1})

    assert (other.status_code, error_of(other.data)[0]) == (409, "conflict")
    assert (right.json or {})["aliases"]["champion"] == 1


def test_models_are_listed_with_metrics_and_can_be_downloaded(site: Site) -> None:
    version = site.builder.model(site.builder.dataset(30), "run-a")
    web = site.web

    models = (web.get("/api/v1/models").json or {})["models"]

    assert [(model["version"], model["metrics"]["test_accuracy"]) for model in models] == [(version, 0.93)]
    assert (web.get(f"/api/v1/models/{version}").json or {})["parameters"] == 2_700_000
    assert web.get(f"/api/v1/models/{version}/model.onnx", buffered=True).data == b"onnx"


def bury(site: Site, count: int) -> None:
    queue = site.broker.topology.predictions
    site.broker.publish_many([Outgoing(queue, Message(b"bad", "text/plain", f"m{i}")) for i in range(count)])
    with site.broker.consume([queue], 10) as consumer:
        for delivery in consumer.receive(count, 1.0):
            consumer.dead_letter(delivery, "unsupported_content_type")


def test_chosen_dead_letters_are_sent_back_or_dropped(site: Site) -> None:
    bury(site, 3)
    web = site.web
    letters = (web.get("/api/v1/dead").json or {})["dead_letters"]
    assert {letter["reason"] for letter in letters} == {"unsupported_content_type"}

    retried = web.post("/api/v1/dead/retry", data={"dead_id": letters[0]["dead_id"]}).json
    dropped = web.post("/api/v1/dead/drop", json={"dead_id": [letters[1]["dead_id"]]}).json

    assert (retried, dropped) == ({"count": 1}, {"count": 1})
    left = (web.get("/api/v1/dead").json or {})["dead_letters"]
    assert [letter["dead_id"] for letter in left] == [letters[2]["dead_id"]]
    assert site.broker.depths()[site.broker.topology.predictions].ready == 1


@pytest.mark.parametrize("call", ["retry", "drop"])
def test_one_dead_letter_is_named_by_a_text_as_well_as_by_a_list(site: Site, call: str) -> None:
    bury(site, 2)
    first, _ = site.broker.dead_letters()

    answer = site.web.post(f"/api/v1/dead/{call}", json={"dead_id": first.dead_id})

    assert answer.json == {"count": 1}
    assert first.dead_id not in {letter.dead_id for letter in site.broker.dead_letters()}


def test_an_edit_of_a_single_face_need_not_be_a_list(site: Site) -> None:
    path = f"/api/v1/datasets/{site.builder.dataset(30)}/edits"
    assert (site.web.post(path, json={"change": "male", "faces": 3}).json or {})["edit"]["faces"] == [3]


def test_all_dead_letters_go_only_when_all_is_said(site: Site) -> None:
    bury(site, 2)

    (first, _), drop = site.broker.dead_letters(), "/api/v1/dead/drop"
    both = [site.web.post(drop, json={"dead_id": dead_id, "all": True}) for dead_id in (first.dead_id, [first.dead_id])]
    unsaid, said = site.web.post(drop), site.web.post(f"{drop}?all=true")

    assert [answer.status_code for answer in both] == [400, 400]
    assert error_of(both[0].data)[1] == "found both dead_id and all=true; expected one of them"

    assert unsaid.status_code == 400
    assert said.json == {"count": 2}


def test_status_shows_queues_and_aliases(site: Site) -> None:
    status = site.web.get("/api/v1/status").json

    assert status is not None
    assert status["queues"]["datasets"] == {"ready": 0, "unacknowledged": 0}
    assert status["aliases"] == {"champion": None, "previous": None, "challenger": None}


def test_openapi_describes_every_call_and_nothing_else(site: Site) -> None:
    document = site.web.get("/api/v1/openapi.json").json
    assert document is not None

    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule).removeprefix("/api/v1"), method.lower())
        for rule in site.app.url_map.iter_rules()
        if rule.rule.startswith("/api/v1")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert described == served


def test_openapi_refers_only_to_what_it_defines(site: Site) -> None:
    document = site.web.get("/api/v1/openapi.json").json
    assert document is not None

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                if key == "$ref":
                    yield item
                else:
                    yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    found = set(references(document))
    assert found
    for reference in found:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert document["components"]["schemas"]["Fault"]["properties"]["code"]["enum"] == list(CODES)


def test_a_bug_says_nothing_of_its_details(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.parts.client, "runs", None)
    site.builder.run("run-a")

    answer = site.web.get("/api/v1/runs/run-a")

    assert answer.status_code == 500
    assert error_of(answer.data) == ("internal", "internal error; the service's log has the details")
    assert "AttributeError" in caplog.text


def test_the_sample_dataset_is_drawn_and_submitted(site: Site) -> None:
    answer = site.web.post("/api/v1/samples?images=40", json={"params": {"epochs": 2}})

    assert answer.status_code == 202
    site.parts.samples.wait(30)
    state = site.web.get("/api/v1/samples").json
    assert state is not None
    assert (state["running"], state["error"], state["done"]) == (False, None, 40)
    message = parse_dataset(taken(site, site.broker.topology.datasets))
    assert message.params == TrainingParams(epochs=2)
    assert site.parts.client.runs.get(state["run_id"]).name == "sample"


def test_two_sample_datasets_at_once_are_a_conflict(site: Site) -> None:
    site.web.post("/api/v1/samples?images=2000")

    answer = site.web.post("/api/v1/samples?images=40")

    assert (answer.status_code, error_of(answer.data)[0]) == (409, "conflict")


def test_a_call_that_announces_json_and_sends_nothing_is_taken_by_its_query(site: Site) -> None:
    bury(site, 1)

    answer = site.web.post("/api/v1/dead/drop?all=true", data=b"", content_type="application/json")

    assert answer.json == {"count": 1}


def test_params_of_a_json_body_that_is_no_object_are_refused(site: Site) -> None:
    answer = site.web.post("/api/v1/samples", json=[1])

    assert answer.status_code == 400
    assert error_of(answer.data)[1] == "the body is a list of 1; expected a JSON object"


def test_a_body_that_is_no_json_is_refused_with_what_is_wrong_with_it(site: Site) -> None:
    answer = site.web.post("/api/v1/models/rollback", data=b'{"reason": ', content_type="application/json")

    assert answer.status_code == 400
    assert error_of(answer.data)[1].startswith("the body is no JSON (Expecting value: ")


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/runs?limt=3", "found 'limt' in the query; expected limit or offset or tag there"),
        ("GET", "/runs/run-a?verbose=1&x=2", "found 'verbose', 'x' in the query; expected nothing there"),
        (
            "POST",
            "/datasets?epochs=3",
            "found 'epochs' in the query; expected name or params or labels or train or upload there",
        ),
    ],
)
def test_an_unknown_query_parameter_is_refused_with_what_is_expected(
    site: Site, method: str, path: str, said: str
) -> None:
    answer = site.web.open(f"/api/v1{path}", method=method)

    assert answer.status_code == 400
    assert error_of(answer.data) == ("invalid_message", said)


def test_every_query_parameter_that_is_described_is_taken(site: Site) -> None:
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            query = [item["name"] for item in operation.get("parameters", []) if item["in"] == "query"]
            if path == "/events" or not query:
                continue
            answer = site.web.open(
                f"/api/v1{path.format(version=1, sha256='abc', run_id='run-a', job_id='job-a', index=0)}",
                method=method,
                query_string=dict.fromkeys(query),
            )
            assert "in the query" not in answer.text, path


def test_a_method_that_a_path_does_not_take_is_named_with_those_it_takes(site: Site) -> None:
    answer = site.web.put("/api/v1/jobs")

    assert answer.status_code == 405
    assert error_of(answer.data)[1] == "found the method PUT, expected GET or POST for /api/v1/jobs"


def test_the_labels_of_an_upload_reach_the_message_and_name_the_dataset(site: Site) -> None:
    labels = '{"male": "grupo a", "female": ["grupo b"]}'
    answer = site.web.post(f"/api/v1/datasets?labels={quote(labels)}", data=archive(), content_type="application/gzip")

    assert answer.status_code == 202
    message = parse_dataset(taken(site, site.broker.topology.datasets))
    assert message.labels == LabelSpec(male=("grupo a",), female=("grupo b",))
    assert message.sha256 == hashlib.sha256(archive()).hexdigest()
    assert site.store.children("datasets") == [dataset_id(message.sha256, message.labels)]
    wrong = site.web.post('/api/v1/datasets?labels={"sauce":1}', data=archive(), content_type="application/zip")
    assert (wrong.status_code, error_of(wrong.data)[0]) == (400, "invalid_params")


@pytest.mark.parametrize("front", [b"MZ" + bytes(100), b"\r\n"])
def test_a_zip_with_data_in_front_is_taken_at_this_door_too(site: Site, front: bytes) -> None:
    answer = site.web.post("/api/v1/jobs", data=front + archive(), content_type="application/x-zip")
    assert answer.status_code == 202


@pytest.mark.parametrize("content_type", ["image/jpg", "image/pjpeg", "image/x-ms-bmp", "application/octet-stream"])
def test_an_image_is_taken_under_every_name_that_programs_give_to_its_type(site: Site, content_type: str) -> None:
    bmp = bmp_of(face_pixels(0))
    data = bmp if content_type == "image/x-ms-bmp" else face_jpeg(0)
    with site.worker() as taken:
        answer = site.web.post("/api/v1/predictions", data=data, content_type=content_type)
    assert answer.status_code == 200, answer.text
    assert (answer.json or {})["predictions"][0]["gender"] == ("male" if len(data) % 2 else "female")
    assert parse_prediction(taken[0].message).images == [data]


@pytest.mark.parametrize("content_type", ["text/plain", "application/pdf", "application/json"])
def test_a_type_that_is_no_image_is_refused_with_those_that_are_taken(site: Site, content_type: str) -> None:
    answer = site.web.post("/api/v1/predictions", data=b"x", content_type=content_type)
    assert (answer.status_code, error_of(answer.data)[0]) == (415, "unsupported_content_type")
    for taken in (content_type, *IMAGES, "multipart/form-data"):
        assert taken in error_of(answer.data)[1]

"""Seen and acted on: the threshold in the address, walking a filtered view, training again, retrying, exporting."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html import unescape
from typing import Any

import numpy as np
import pytest

from dashboard.context import EXTENSION
from dashboard.pages.train_fields import parameter_fields, read_parameters
from dashboard.workers import WorkerStates
from shared.broker.base import Event, Message
from shared.datasets.face_filter import FaceFilter, select_faces
from shared.faces.labels import GENDERS
from shared.messages import parse_dataset
from shared.params import TrainingParams
from shared.records.jobs import JobState
from shared.records.runs import RunState
from tests.support.dashboard_app import Site, error_of
from tests.unit.dashboard.pages.helpers import RUN, bury_message, csrf_of, sha_of


def beat(site: Site, worker: str, **state: Any) -> None:
    site.parts.workers.on_event(Event("worker.heartbeat", {"worker": worker, "service": "trainer", **state}))


def cells(text: str) -> dict[str, tuple[int, str]]:
    """Returns what a run's page says of its confusion matrix: by cell, its count and where it leads."""
    found = re.findall(r'data-cell="([a-z-]+)" href="([^"]+)#faces"><strong>([\d,]+)</strong>', text)
    return {cell: (int(count.replace(",", "")), href.replace("&amp;", "&")) for cell, href, count in found}


@pytest.mark.parametrize("threshold", ["0.7", "0.505", "0", "1", "0.5"])
def test_a_cell_leads_to_as_many_faces_as_it_counts_at_any_threshold(filled: Site, threshold: str) -> None:
    found = cells(filled.web.get(f"/runs/{RUN}?threshold={threshold}").text)

    assert len(found) == 4
    for count, href in found.values():
        assert f">{count} of 150<" in filled.web.get(href).text
    scores = filled.web.get(f"/runs/{RUN}/scores.json").json or {}
    assert scores["male"][round(float(threshold) * 200)] == found["male-female"][0]


def test_groups_follow_the_threshold_and_each_leads_to_its_faces(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}?threshold=1").text
    data = filled.parts.store_cache.dataset(sha_of(filled))
    males = int(((data.gender == 0) & (data.split == 2)).sum())

    assert "at a threshold of 1.000" in text
    row = re.search(r'gender</td><td class="grow"><a href="([^"]+)">male</a>.*?Accuracy">([^<]+)<', text)
    assert row is not None
    assert row[2] == "100.0\N{NO-BREAK SPACE}%"  # none is predicted female
    assert f">{males} of 150<" in filled.web.get(row[1].replace("&amp;", "&").removesuffix("#faces")).text


def test_the_worst_group_is_in_the_table_and_leads_to_its_faces(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    row = re.search(
        r'<tr class="worst">.*?href="([^"]+)">([^<]+)</a> <span class="badge bad">worst.*?Faces">(\d+)<', text
    )
    assert row is not None
    assert f">{row[3]} of 150<" in filled.web.get(row[1].replace("&amp;", "&").removesuffix("#faces")).text


def test_a_face_that_no_model_has_learned_from_is_not_called_learned(filled: Site) -> None:
    data, other = filled.parts.store_cache.dataset(sha_of(filled)), filled.builder.dataset(40)
    filled.store.put(f"datasets/{other}/predictions/1.csv", b"index,probability_female\n" + b"0,0.4\n" * 40)
    trained, tested = (int(np.flatnonzero(data.split == split)[0]) for split in (0, 2))

    assert "not part of the dataset that it learned from" in filled.web.get(f"/datasets/{other}/faces/0").text
    assert "trained on this face" in filled.web.get(f"/datasets/{data.sha256}/faces/{trained}").text
    assert "tested on this face" in filled.web.get(f"/datasets/{data.sha256}/faces/{tested}").text


def test_a_faces_page_walks_the_filtered_view(filled: Site) -> None:
    sha256 = sha_of(filled)
    wanted = FaceFilter(version=1, result="wrong", sort="largest_error")
    order = select_faces(
        filled.parts.store_cache.dataset(sha256), filled.parts.store_cache.predictions(sha256, 1), wanted
    )
    query = "version=1&result=wrong&sort=largest_error"

    text = filled.web.get(f"/datasets/{sha256}/faces/{order[2]}?{query}").text

    links = dict(re.findall(r'rel="(prev|next)" href="([^"]+)"', text))
    assert links["prev"] == f"/datasets/{sha256}/faces/{order[1]}?{query.replace('&', '&amp;')}&amp;as_of=0"
    assert links["next"] == f"/datasets/{sha256}/faces/{order[3]}?{query.replace('&', '&amp;')}&amp;as_of=0"
    assert f"3 of {len(order)} faces that match the filters" in " ".join(text.split())
    grid = filled.web.get(f"/datasets/{sha256}?{query}").text
    assert f"/faces/{order[0]}?{query.replace('&', '&amp;')}" in grid


def test_the_next_misclassified_face_is_the_chosen_models(filled: Site) -> None:
    sha256 = sha_of(filled)
    data = filled.parts.store_cache.dataset(sha256)
    first = {}
    for version in (1, 2):
        p = filled.parts.store_cache.predictions(sha256, version)
        assert p is not None
        wrong = np.flatnonzero((p >= 0.5) != (data.gender == 1))
        first[version] = int(wrong[wrong > 0][0])
    assert first[1] != first[2]

    for version, index in first.items():
        text = filled.web.get(f"/predict?dataset={sha256}&face=0&pick=wrong&version={version}").text
        assert f"/datasets/{sha256}/faces/{index}.png" in text
        assert f"Misclassified by model {version}." in text


def test_predict_begins_with_the_newest_dataset(filled: Site) -> None:
    newest = filled.builder.dataset(40)
    filled.builder.run("run-00000000000f", state=RunState.REGISTERED, dataset=newest)

    assert f'value="{newest}" selected' in filled.web.get("/predict").text


def test_what_was_done_stays_known_when_a_run_ends_without_a_model(site: Site) -> None:
    site.builder.run(RUN, state=RunState.CANCELLED, params=TrainingParams(), epochs=7)

    assert '<dt>epochs</dt><dd class="mono">auto → 7</dd>' in site.web.get(f"/runs/{RUN}").text


def test_a_dead_trainer_is_said_after_a_few_heartbeats(filled: Site) -> None:
    run_id, seconds = "run-000000000003", [0.0]
    parts = replace(filled.parts, workers=WorkerStates(clock=lambda: seconds[0]))
    filled.app.extensions[EXTENSION] = parts
    filled = replace(filled, parts=parts)
    beat(filled, "here:1", busy=run_id)
    assert "does not respond" not in filled.web.get("/").text
    seconds[0] = 8.0

    for path in ("/", f"/runs/{run_id}"):
        text = filled.web.get(path).text
        assert "does not respond" in text
        assert "1 min 15 s left" not in text
    beat(filled, "here:2", busy=run_id)  # another one carries on
    assert "does not respond" not in filled.web.get(f"/runs/{run_id}").text


def test_an_issue_is_said_once_and_can_be_dismissed(filled: Site) -> None:
    error = {"code": "internal", "message": "internal error"}
    for i in range(3):
        run_id = filled.builder.run(f"run-00000000001{i}", name="twin", state=RunState.FAILED, error=error)
        bury_message(filled, Message(b"x", "application/zip", message_id=run_id))
    web = filled.web

    text = web.get("/").text
    assert text.count("</span> Run twin failed 3 times: Internal error.") == 1
    assert "could not be processed" not in text  # these messages are told of already
    keys = re.findall(r'name="key" value="([^"]+)"', text)
    web.post("/issues/dismiss", data={"csrf": csrf_of(web), "key": [key for key in keys if "run-00000000001" in key]})

    assert "Run twin" not in web.get("/").text
    assert "was rejected: all faces are male" in web.get("/").text  # the others stay


def test_an_issue_is_dismissed_over_http_until_it_fails_again(filled: Site) -> None:
    error = {"code": "internal", "message": "the disk was full"}
    run_id = filled.builder.run("run-000000000010", name="broken", state=RunState.FAILED, error=error)
    filled.builder.jobs.create("job-broken", message_id="j", name="torn", state=JobState.QUEUED)
    filled.builder.jobs.update("job-broken", state=JobState.FAILED, error=error)
    web = filled.web
    text = unescape(web.get("/").text)
    assert "Run broken failed" in text
    assert "Job torn failed" in text

    assert filled.web.post(f"/api/v1/runs/{run_id}/dismiss").status_code == 204
    assert filled.web.post("/api/v1/jobs/job-broken/dismiss").status_code == 204

    text = unescape(web.get("/").text)
    assert "Run broken failed" not in text
    assert "Job torn failed" not in text
    assert filled.web.post(f"/api/v1/runs/{RUN}/dismiss").status_code == 409  # it has not failed
    filled.builder.runs.reopen(run_id, 1.5)
    filled.builder.runs.update(run_id, state=RunState.FAILED, error=error)
    assert "Run broken failed" in unescape(web.get("/").text)


def test_a_failed_run_says_what_to_look_for_and_is_retried(filled: Site) -> None:
    error = {"code": "internal", "message": "internal error"}
    run_id = filled.builder.run("run-000000000010", name="broken", state=RunState.FAILED, error=error)
    bury_message(filled, Message(b"x", "application/zip", message_id=run_id))
    web = filled.web
    text = unescape(web.get(f"/runs/{run_id}").text)
    assert f"Internal error. Look for {run_id} in the trainer service's log." in text
    assert ">Retry</button>" in text

    answer = web.post(f"/runs/{run_id}/retry", data={"csrf": csrf_of(web)})

    assert answer.headers["Location"] == f"/runs/{run_id}"
    assert filled.broker.dead_letters() == []
    assert ">Retry</button>" not in web.get(f"/runs/{run_id}").text


def test_where_the_message_is_gone_a_retry_is_a_new_run_like_it(filled: Site) -> None:
    params = TrainingParams(epochs=3)
    error = {"code": "internal", "message": "internal error"}
    filled.builder.run(
        "run-000000000010", name="broken", state=RunState.FAILED, dataset=sha_of(filled), error=error, params=params
    )

    again = (filled.web.post("/api/v1/runs/run-000000000010/retry").json or {})["run_id"]

    assert again != "run-000000000010"
    record = filled.parts.client.runs.get(again)
    assert (record.name, record.params) == ("broken", params)


def test_only_six_runs_are_compared_and_that_is_said(site: Site) -> None:
    ids = [site.builder.run(f"run-{i:012d}", name="same", epochs=1) for i in range(9)]

    text = site.web.get("/runs/compare?" + "&".join(f"run={run_id}" for run_id in ids)).text

    assert "At most 6 runs fit side by side. 3 selected runs are not shown." in " ".join(text.split())
    assert len(set(re.findall(r">(same · \d{5})</bdi>", text))) == 6


def sent(site: Site) -> Any:
    with site.broker.consume([site.broker.topology.datasets], 10) as consumer:
        (delivery,) = consumer.receive(10, 1.0)
        return delivery.message


def test_a_dataset_is_trained_again_from_a_form_and_only_what_was_changed_is_sent(filled: Site) -> None:
    sha256, web = sha_of(filled), filled.web
    form = {f"param-{field.name}": field.value for field in parameter_fields()}
    form |= {"csrf": csrf_of(web), "name": "longer", "param-epochs": "40", "param-quantize": "false"}

    answer = web.post(f"/datasets/{sha256}/train", data=form)

    run_id = answer.headers["Location"].rpartition("/")[2]
    message = sent(filled)
    assert b'"params": {"epochs": 40, "quantize": false}' in message.body or parse_dataset(message).params == (
        TrainingParams(epochs=40, quantize=False)
    )
    assert b"learning_rate" not in message.body
    assert filled.parts.client.runs.get(run_id).name == "longer"


def test_training_again_begins_with_what_the_run_was_asked_for(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    epochs = re.search(r'<input id="train-epochs"[^>]*>', text)
    assert epochs is not None
    assert 'value="12"' in epochs[0]
    assert 'min="1" max="1000"' in epochs[0]
    assert 'placeholder="auto"' in epochs[0]
    assert f'action="/datasets/{sha_of(filled)}/train"' in text


def test_every_parameter_has_a_field_that_gives_back_what_it_was_given() -> None:
    params = TrainingParams(network="large", epochs=9, budget_s=60.5, augment=False, mirror=True, seed=4)
    fields = parameter_fields(params)

    assert [field.name for field in fields] == list(TrainingParams.model_fields)
    assert read_parameters({f"param-{field.name}": field.value for field in fields}) == params
    assert read_parameters({}) == TrainingParams()


def test_training_over_http_names_a_wrong_parameter_and_an_unknown_dataset(filled: Site) -> None:
    path = f"/api/v1/datasets/{sha_of(filled)}/runs"
    wrong = filled.web.post(path, json={"params": {"epochs": 0}})
    unknown = filled.web.post("/api/v1/datasets/abc/runs")
    good = filled.web.post(path, json={"params": {"epochs": 5}, "name": "by a program"})

    assert (wrong.status_code, error_of(wrong.data)[0]) == (400, "invalid_params")
    assert (unknown.status_code, error_of(unknown.data)[0]) == (404, "not_found")
    assert (good.status_code, (good.json or {})["ahead"]) == (202, 0)
    assert parse_dataset(sent(filled)).params == TrainingParams(epochs=5)


def test_what_is_seen_is_exported(filled: Site) -> None:
    sha256 = sha_of(filled)
    query = "version=1&result=wrong&sort=largest_error"
    page = filled.web.get(f"/datasets/{sha256}?{query}").text
    (href,) = re.findall(r'href="([^"]+faces\.csv[^"]*)"', page)

    rows = list(csv.DictReader(io.StringIO(filled.web.get(href.replace("&amp;", "&")).text)))

    assert [int(row["index"]) for row in rows][:36] == [int(i) for i in re.findall(r"/faces/(\d+)\.webp", page)]
    assert {row["correct"] for row in rows} == {"False"}
    assert all(row["predicted"] == GENDERS[row["gender"] == "male"] for row in rows)
    rejects = filled.web.get(f"/api/v1/datasets/{sha256}/rejects.csv").text.splitlines()
    assert (rejects[0], len(rejects)) == ("name,reason,detail", 5)


def test_a_dataset_warns_of_what_to_look_at_before_training(filled: Site) -> None:
    sound, small = sha_of(filled), filled.builder.dataset(60)
    lines = "".join(
        f"{i},{0.1 if gender else 0.9}\n" for i, gender in enumerate(filled.parts.store_cache.dataset(small).gender)
    )
    filled.store.put(f"datasets/{small}/predictions/1.csv", f"index,probability_female\n{lines}".encode())

    text = filled.web.get(f"/datasets/{small}?version=1").text

    assert "Few faces: with 60" in text
    assert "The labels look reversed: model 1 agrees with only 0 % of them." in text
    assert "look reversed" not in filled.web.get(f"/datasets/{sound}?version=1").text


def test_the_history_says_who_promoted(filled: Site) -> None:
    filled.parts.client.promote(1, "fairer", user="alice")

    assert 'Promoted <a href="/models/1">1</a> from 2 by alice' in filled.web.get("/models").text

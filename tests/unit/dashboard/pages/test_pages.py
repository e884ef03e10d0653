"""The pages, as a browser without scripts sees them."""

from __future__ import annotations

import gzip
import io
import re
import statistics
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient

from dashboard.face_grid import FaceFilter, choose
from dashboard.pages.predict import GRID, occluded
from shared.broker.base import Delivery, Event, Message
from shared.faces.labels import GENDERS
from shared.messages import PROBE, pack_message
from shared.params import TrainingParams
from shared.records.jobs import JobState
from shared.records.runs import Progress, RunState
from shared.records.shadow import ShadowFigures, add_shadow_figures
from tests.dashboard_app import Site, error_of, open_site
from tests.store_builder import HOSTILE_NAMES

RUN = "run-000000000001"
ASKS_FOR_JSON = {"Accept": "application/json"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


@pytest.fixture
def filled(site: Site) -> Site:
    """A site with a dataset of hostile names, a model, a job, a run that trains and one that was rejected."""
    sha256 = site.builder.dataset(150, names=HOSTILE_NAMES)
    site.builder.model(sha256, RUN)
    site.builder.model(sha256, "run-000000000002", accuracy=0.9)
    site.parts.client.promote(1, "first")
    site.parts.client.promote(2, "newer")
    progress = {"stage": "training", "done": 5, "total": 10, "rate": 400.0, "eta_s": 75, "epoch": 3, "epochs": 6}
    site.builder.run("run-000000000003", name="going", state=RunState.TRAINING, epochs=2, progress=progress)
    error = {"code": "single_gender", "message": "all faces are male"}
    site.builder.run("run-000000000004", name=HOSTILE_NAMES[0], state=RunState.REJECTED, error=error)
    site.builder.job()
    return site


def sha_of(site: Site) -> str:
    return site.store.children("datasets")[0]


def paths(site: Site) -> list[str]:
    sha256 = sha_of(site)
    return [
        "/",
        "/datasets",
        f"/datasets/{sha256}",
        f"/datasets/{sha256}/faces/0",
        "/runs",
        f"/runs/{RUN}",
        "/runs/run-000000000003",
        "/runs/run-000000000004",
        f"/runs/compare?run={RUN}&run=run-000000000002",
        "/models",
        "/models/1",
        "/predict",
        "/jobs",
        "/jobs/job-000000000001",
        "/dead",
        "/nope",
    ]


def bury(site: Site, body: bytes, content_type: str) -> str:
    return bury_message(site, Message(body, content_type))


def bury_message(site: Site, message: Message) -> str:
    queue = site.broker.topology.predictions
    site.broker.publish(queue, message)
    with site.broker.consume([queue], 1) as consumer:
        (delivery,) = consumer.receive(1, 1.0)
        consumer.dead_letter(delivery, "invalid_message")
    return site.broker.dead_letters()[-1].dead_id


def csrf_of(web: FlaskClient) -> str:
    found = re.search(r'name="csrf-token" content="([^"]+)"', web.get("/").text)
    assert found is not None
    return found[1]


class Tags(HTMLParser):
    """Collects the tags of a page, and complains of one that is never closed."""

    VOID = frozenset({"meta", "link", "img", "input", "hr", "br", "line", "circle", "path", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_page_is_well_formed_html_without_inline_script_or_style(filled: Site) -> None:
    bury(filled, b'{"schema": 2}', "application/json")
    for path in paths(filled):
        text = filled.web.get(path).text
        tags = Tags(text).found

        assert not [1 for tag, attrs in tags if tag == "style" or (tag == "script" and "src" not in attrs)], path
        assert not [name for _, attrs in tags for name in attrs if name == "style" or name.startswith("on")], path
        ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
        assert len(ids) == len(set(ids)), path


def test_every_form_that_changes_something_carries_the_csrf_token(filled: Site) -> None:
    bury(filled, b"x", "text/plain")
    seen = 0
    for path in paths(filled):
        for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", filled.web.get(path).text, re.DOTALL):
            seen += 1
            assert 'name="csrf"' in form, path
    assert seen >= 6


def test_every_field_and_image_has_a_name_for_screen_readers(filled: Site) -> None:
    for path in paths(filled):
        tags = Tags(filled.web.get(path).text).found
        labelled = {attrs.get("for") for tag, attrs in tags if tag == "label"}
        for tag, attrs in tags:
            if tag in {"input", "select"} and attrs.get("type") != "hidden":
                assert attrs.get("id") in labelled or attrs.get("aria-label"), (path, attrs)
            if tag == "img":
                assert "alt" in attrs, (path, attrs)
            if tag == "progress":
                assert attrs.get("aria-label"), (path, attrs)


def test_hostile_names_are_shown_as_text(filled: Site) -> None:
    sha256 = sha_of(filled)
    for path in ("/", "/runs", f"/datasets/{sha256}", f"/datasets/{sha256}/faces/0", "/predict?face=0"):
        text = filled.web.get(path).text
        assert "<img src=x" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert '<bdi class="name' in filled.web.get(f"/datasets/{sha256}/faces/1").text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", "Start with some faces"),
        ("/datasets", "No datasets yet"),
        ("/runs", "No runs yet"),
        ("/models", "No models yet"),
        ("/predict", "There is no model yet"),
        ("/jobs", "No jobs yet"),
        ("/dead", "No dead letters"),
        ("/runs/compare", "Choose two runs or more"),
    ],
)
def test_every_empty_list_says_what_to_do(site: Site, path: str, words: str) -> None:
    answer = site.web.get(path)

    assert answer.status_code == 200
    assert words in answer.text


@pytest.mark.parametrize(
    "path", ["/datasets/abc", "/datasets/abc/faces/0", "/runs/nope", "/models/9", "/jobs/nope", "/datasets/..%2f..%2fx"]
)
def test_what_is_not_there_gets_a_page_with_a_next_step(site: Site, path: str) -> None:
    answer = site.web.get(path)

    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "Back to the overview" in answer.text


def test_the_overview_names_what_wants_attention(filled: Site) -> None:
    bury(filled, b"x", "text/plain")
    filled.broker.publish(filled.broker.topology.datasets, Message(b"x", "application/zip"))

    text = filled.web.get("/").text

    assert "One message could not be processed" in text
    assert "was rejected: all faces are male" in text
    assert "Work waits in datasets, and no trainer is alive" in text


def test_the_overview_shows_champion_progress_and_workers(filled: Site) -> None:
    beat = {"service": "inference", "worker": "here:1", "version": 2, "provider": "cpu", "images_per_second": 512.0}
    filled.parts.presence.hear(Event("worker.heartbeat", {**beat, "latency_p99_ms": 31.5}))

    text = filled.web.get("/").text

    assert "90.0\N{NO-BREAK SPACE}%" in text
    assert "Training · epoch 3 of 6 · 400 images/s" in text
    assert "1 min 15 s left" in text
    assert "here:1" in text
    assert "512" in text


def test_the_models_page_shows_drift_and_how_the_challenger_does(filled: Site) -> None:
    registry, page = filled.builder.registry, filled.web.get("/models").text
    assert "challenger" not in page
    assert "Drift" not in page
    champion = registry.aliases().champion
    assert champion is not None
    challenger = next(version for version in registry.versions() if version != champion)
    registry.challenge(challenger, "faster")
    figures = ShadowFigures(images=12_400, agreed=12_065, timed=8, challenger_s=0.8, champion_s=1.0)
    add_shadow_figures(filled.store, challenger, champion, figures)
    for number, (score, problem) in enumerate([(0.31, "it failed <on> an image"), (0.04, None)]):
        beat = {
            "service": "inference",
            "worker": f"here:{number}",
            "version": champion,
            "drift": {"images": 1024, "scores": {"luma": score, "predicted_female": 0.02}},
            "challenger": {"version": challenger, "problem": problem},
        }
        filled.parts.presence.hear(Event("worker.heartbeat", beat))

    text = " ".join(re.sub("<[^>]*>", " ", filled.web.get("/models").text).split())

    assert f"Model {challenger} challenger agrees on 97.3 % of 12,400 images" in text
    assert "takes 0.80 times as long" in text
    assert "it failed &lt;on&gt; an image" in text
    assert "luma 0.31 drifted predicted female 0.02 none" in text
    assert "the last 2,048 images" in text
    assert f"Challenger: {challenger} " in text


def told(worker: str, *newest: dict[str, Any]) -> Event:
    beat = {"service": "inference", "worker": worker, "version": 2, "images_per_second": 1.0, "latency_p99_ms": 8.0}
    return Event("worker.heartbeat", {**beat, "newest": list(newest)})


def answer_at(second: int, p: float, **changes: Any) -> dict[str, Any]:
    at = f"2026-01-01T00:00:{second:02d}.000Z"
    entry = {"at": at, "version": 2, "images": 1, "gender": GENDERS[p >= 0.5], "probability_female": p}
    return {**entry, "confidence": max(p, 1 - p), **changes}


def test_the_overview_shows_the_newest_predictions_of_every_client(filled: Site) -> None:
    filled.parts.presence.hear(told("a", answer_at(3, 0.9111), answer_at(1, 0.2)))
    filled.parts.presence.hear(told("b", answer_at(2, 0.1222, images=226)))

    text = filled.web.get("/").text

    rows = re.findall(r"<tr><td[^>]*>(.*?)</td></tr>", text.partition("Newest predictions")[2], re.DOTALL)
    shown = [re.sub(r"<[^>]*>", " ", row).split() for row in rows]
    assert [row[-4:-2] for row in shown[:3]] == [["2", "2026-01-01"]] * 3
    assert ["91.1" in rows[0], "87.8" in rows[1], "80.0" in rows[2]] == [True] * 3
    assert "first of 226 in a pack" in rows[1]


def test_a_prediction_made_here_is_shown_once_and_by_its_name(filled: Site) -> None:
    with filled.worker():
        body = filled.web.post("/predict/image?name=mine.jpg", data=jpeg(), content_type="image/jpeg").json
    assert body is not None
    p = body["reply"]["predictions"][0]["probability_female"]
    version = body["reply"]["model"]["version"]
    filled.parts.presence.hear(told("a", answer_at(3, p, version=version), answer_at(2, 0.25)))

    newest = filled.web.get("/").text.partition("Newest predictions")[2]

    assert newest.count("mine.jpg</bdi>") == 1
    assert newest.count("sent to the queue") == 1


def test_the_speed_of_the_last_minutes_comes_as_columns(filled: Site) -> None:
    filled.parts.presence.hear(told("a"))

    answer = filled.web.get("/speed.json")

    assert answer.json is not None
    assert answer.json.keys() == {"minutes", "images_per_second", "latency_p50_ms", "latency_p99_ms"}
    assert [answer.json[key] for key in ("images_per_second", "latency_p50_ms", "latency_p99_ms")] == [
        [1.0, 1.0],
        [None, None],
        [8.0, 8.0],
    ]
    assert -1 < answer.json["minutes"][0] <= answer.json["minutes"][1] == 0


def test_the_overview_says_so_when_the_broker_is_away(filled: Site) -> None:
    filled.broker.close()

    answer = filled.web.get("/")

    assert answer.status_code == 200
    assert "The broker does not answer" in answer.text


def test_the_sample_button_starts_a_sample(site: Site) -> None:
    web = site.web
    answer = web.post("/samples", data={"csrf": csrf_of(web), "images": "40"})

    assert answer.status_code == 303
    assert site.parts.samples._thread is not None
    site.parts.samples._thread.join(30)
    assert site.parts.catalog.runs().records[0].name == "sample"


def test_runs_are_paged(site: Site) -> None:
    for i in range(55):
        site.builder.run(f"run-{i:012d}", created=f"2026-01-01T00:00:{i:02d}.000Z")

    first, second = site.web.get("/runs").text, site.web.get("/runs?page=2").text

    assert "run-000000000054" in first
    assert "run-000000000004" not in first
    assert "run-000000000004" in second
    assert "Page 2 of 2" in second


def test_a_run_is_cancelled_from_its_page(filled: Site) -> None:
    web = filled.web
    answer = web.post("/runs/run-000000000003/cancel", data={"csrf": csrf_of(web)}, follow_redirects=True)

    assert "Asked to stop" in answer.text
    assert filled.builder.runs.cancel_requested("run-000000000003")


def test_a_finished_run_shows_confusion_groups_and_suspects(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    assert 'data-cell="male-female"' in text
    assert f"/datasets/{sha_of(filled)}?version=1&amp;split=test&amp;gender=male&amp;predicted=female#faces" in text
    assert "Suspected label errors" in text
    assert "ethnicity" in text


def test_beside_the_worst_group_stands_how_small_a_group_may_be(filled: Site) -> None:
    for path in (f"/runs/{RUN}", "/models/1"):
        assert "Worst group of 10 faces or more" in filled.web.get(path).text


def test_a_parameter_left_open_says_what_became_of_it(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    assert '<dt>batch_size</dt><dd class="mono">auto → 32</dd>' in text
    assert '<dt>mirror</dt><dd class="mono">auto → true</dd>' in text
    assert '<dt>augment</dt><dd class="mono">true</dd>' in text
    assert '<dt>budget_s</dt><dd class="mono">\N{EN DASH}</dd>' in text
    assert '<dt>augment</dt><dd class="mono">true</dd>' in filled.web.get("/models/1").text


def test_the_epochs_of_a_training_under_way_are_known(site: Site) -> None:
    progress = Progress(stage=RunState.TRAINING, done=1, total=49, epoch=1, epochs=49)
    site.builder.run(RUN, state=RunState.TRAINING, params=TrainingParams(), progress=progress)

    assert '<dt>epochs</dt><dd class="mono">auto → 49</dd>' in site.web.get(f"/runs/{RUN}").text


def test_runs_side_by_side_show_what_their_parameters_became(filled: Site) -> None:
    for run_id, params in ((RUN, TrainingParams(network="small")), ("run-000000000002", TrainingParams(epochs=12))):
        run = filled.builder.runs.get(run_id).changed(params=params)
        filled.store.put_json(filled.builder.runs.key(run_id), run.as_dict())

    text = filled.web.get(f"/runs/compare?run={RUN}&run=run-000000000002").text

    assert re.search(r">epochs</td><td[^>]*>auto → 12</td><td[^>]*>12</td>", text)
    assert re.search(r">network</td><td[^>]*>small</td><td[^>]*>auto → small</td>", text)


def test_the_drawn_intervals_have_a_scale(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    assert [f">{mark} %</text>" in text for mark in (0, 50, 100)] == [True] * 3


def test_curves_come_as_csv(filled: Site) -> None:
    answer = filled.web.get(f"/runs/{RUN}/history.csv")

    assert answer.text.splitlines()[0].startswith("epoch,train_loss")
    assert len(answer.text.splitlines()) == 13
    assert filled.web.get("/runs/run-000000000004/history.csv").status_code == 404


def test_the_thresholds_counts_are_those_of_the_held_out_faces(filled: Site) -> None:
    scores = filled.web.get(f"/runs/{RUN}/scores.json").json
    data = filled.parts.catalog.dataset(sha_of(filled))
    held_out = data.split == 2

    assert scores is not None
    assert [sum(scores[gender]) for gender in GENDERS] == [int((held_out & (data.gender == i)).sum()) for i in (0, 1)]
    probabilities = filled.parts.catalog.predictions(data.sha256, 1)
    assert probabilities is not None
    assert sum(scores["male"][100:]) == int((held_out & (data.gender == 0) & (probabilities >= 0.5)).sum())
    assert filled.web.get("/runs/run-000000000003/scores.json").status_code == 404


def test_runs_side_by_side_show_only_the_parameters_that_differ(site: Site) -> None:
    for i, epochs in enumerate((4, 9)):
        run_id = site.builder.run(f"run-{i}", epochs=2)
        site.builder.runs.update(run_id, params=TrainingParams(epochs=epochs).as_dict())

    text = site.web.get("/runs/compare?run=run-0&run=run-1").text

    assert '<td class="line mono">epochs</td>' in text
    assert "dropout" not in text


def test_a_dataset_that_is_not_read_yet_says_so(site: Site) -> None:
    site.store.put("datasets/abc/archive.zip", b"PK")

    assert "Not read yet" in site.web.get("/datasets/abc").text
    assert "not read yet" in site.web.get("/datasets").text


def test_an_archive_that_was_rejected_says_why_and_by_which_run(site: Site) -> None:
    site.store.put("datasets/abc/archive.zip", b"PK")
    error = {"code": "too_few_faces", "message": "found 3 faces, expected at least 50"}
    site.builder.run("run-1", state=RunState.REJECTED, dataset="abc", error=error)

    for path in ("/datasets", "/datasets/abc"):
        text = site.web.get(path).text
        assert "found 3 faces, expected at least 50" in text
        assert 'href="/runs/run-1"' in text
        assert "ot read yet" not in text
    site.builder.run("run-2", state=RunState.INGESTING, dataset="abc")
    assert "not read yet" in site.web.get("/datasets").text


def test_a_dataset_shows_rejects_with_examples(filled: Site) -> None:
    text = filled.web.get(f"/datasets/{sha_of(filled)}").text

    assert "44_3_0.jpg" in text
    assert "found gender 3, expected 0 (male) or 1 (female)" in text


def indices(text: str) -> list[int]:
    return [int(i) for i in re.findall(r"/faces/(\d+)\.png", text)]


def test_the_grid_filters_and_sorts_by_the_chosen_models_predictions(filled: Site) -> None:
    sha256 = sha_of(filled)
    data, p = filled.parts.catalog.dataset(sha256), filled.parts.catalog.predictions(sha256, 1)
    assert p is not None
    wrong = np.flatnonzero((p >= 0.5) != (data.gender == 1))
    most = wrong[np.argsort(-np.maximum(p, 1 - p)[wrong], kind="stable")]

    text = filled.web.get(f"/datasets/{sha256}?version=1&result=wrong&sort=wrong").text

    assert indices(text) == most[:60].tolist()
    assert f"{len(wrong)} of 150" in text


@pytest.mark.parametrize(
    "wanted",
    [
        FaceFilter(gender="female", split="test"),
        FaceFilter(ethnicity="Asian", age="20-29"),
        FaceFilter(predicted="male", result="right", low=0.7, high=0.9),
        FaceFilter(search="IMG SRC"),
    ],
)
def test_a_filter_keeps_exactly_the_faces_that_fit(filled: Site, wanted: FaceFilter) -> None:
    data = filled.parts.catalog.dataset(sha_of(filled))
    p = filled.parts.catalog.predictions(data.sha256, 1)
    assert p is not None
    from dashboard.face_grid import face_view

    def fits(i: int) -> bool:
        view = face_view(data, p, i)
        return (
            wanted.gender in {"", view["gender"]}
            and wanted.predicted in {"", view["predicted"]}
            and wanted.ethnicity in {"", view["ethnicity"]}
            and wanted.split in {"", view["split"]}
            and (wanted.age == "" or wanted.age == f"{view['age'] // 10 * 10}-{view['age'] // 10 * 10 + 9}")
            and (wanted.result == "" or view["right"] == (wanted.result == "right"))
            and (wanted.low or 0) <= view["confidence"] <= (wanted.high or 1)
            and wanted.search.lower() in view["name"].lower()
        )

    found = choose(data, p, wanted).tolist()

    assert found == [i for i in range(len(data)) if fits(i)]
    assert found


@pytest.mark.parametrize("sort", ["unsure", "sure", "age"])
def test_sorting_orders_by_what_it_says(filled: Site, sort: str) -> None:
    data = filled.parts.catalog.dataset(sha_of(filled))
    p = filled.parts.catalog.predictions(data.sha256, 1)
    assert p is not None
    key = {"unsure": np.maximum(p, 1 - p), "sure": -np.maximum(p, 1 - p), "age": data.age.astype(float)}[sort]

    assert np.all(np.diff(key[choose(data, p, FaceFilter(sort=sort))]) >= 0)


def test_without_predictions_the_grid_still_filters_by_label(site: Site) -> None:
    sha256 = site.builder.dataset(50)

    text = site.web.get(f"/datasets/{sha256}?gender=male&sort=age").text

    data = site.parts.catalog.dataset(sha256)
    assert sorted(indices(text)) == np.flatnonzero(data.gender == 0).tolist()
    assert np.all(np.diff(data.age[indices(text)].astype(int)) >= 0)
    assert "labels but no predictions" in text


def test_any_model_predicts_any_dataset_when_asked(filled: Site) -> None:
    other = filled.builder.dataset(300)
    web = filled.web
    assert "Predict them all with model 1" in web.get(f"/datasets/{other}?version=1").text

    with filled.worker() as taken:
        answer = web.post(f"/datasets/{other}/predict", data={"csrf": csrf_of(web), "version": "1"})
        assert filled.parts.scorer._thread is not None
        filled.parts.scorer._thread.join(30)

    assert answer.headers["Location"] == f"/datasets/{other}?version=1#faces"
    assert {delivery.message.headers["model_version"] for delivery in taken} == {1}
    probabilities = filled.parts.catalog.predictions(other, 1)
    faces = filled.parts.catalog.dataset(other).faces
    from dashboard.face_grid import png

    assert probabilities is not None
    expected = [0.1 if len(png(face)) % 2 else 0.9 for face in faces]
    assert probabilities.tolist() == pytest.approx(expected)
    assert 'class="verdict' in web.get(f"/datasets/{other}?version=1").text


def test_a_scoring_that_fails_says_why_and_another_waits(filled: Site) -> None:
    other = filled.builder.dataset(30)
    web = filled.web
    form = {"csrf": csrf_of(web), "version": "1"}
    error = {"model": None, "error": {"code": "unavailable", "message": "the store is away"}}
    go_on = threading.Event()

    def fail(_: Delivery) -> dict[str, Any]:
        go_on.wait(20)
        return error

    with filled.worker(fail):
        web.post(f"/datasets/{other}/predict", data=form)
        under_way = web.get(f"/datasets/{other}?version=1").text
        busy = web.post(f"/datasets/{other}/predict", data=form)
        go_on.set()
        assert filled.parts.scorer._thread is not None
        filled.parts.scorer._thread.join(30)

    assert "0 of 30" in under_way
    assert busy.status_code == 409
    assert "the store is away" in web.get(f"/datasets/{other}?version=1").text
    assert web.post(f"/datasets/{other}/predict", data={**form, "version": "77"}).status_code == 404
    assert web.post(f"/datasets/{other}/predict", data={**form, "version": ""}).status_code == 400


def test_nonsense_in_a_query_is_left_open(filled: Site) -> None:
    answer = filled.web.get(f"/datasets/{sha_of(filled)}?gender=x&age=7&low=abc&page=99999&sort=up&version=44")

    assert answer.status_code == 200
    assert "150 of 150" in answer.text


def test_a_face_is_sent_without_loss_and_may_be_kept_for_good(filled: Site) -> None:
    sha256 = sha_of(filled)
    answer = filled.web.get(f"/datasets/{sha256}/faces/3.png")
    small = filled.web.get(f"/datasets/{sha256}/faces/3.png?size=32")

    image = cv2.imdecode(np.frombuffer(answer.data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert np.array_equal(image, filled.parts.catalog.dataset(sha256).faces[3])
    assert "immutable" in answer.headers["Cache-Control"]
    assert cv2.imdecode(np.frombuffer(small.data, np.uint8), cv2.IMREAD_UNCHANGED).shape == (32, 32)
    assert filled.web.get(f"/datasets/{sha256}/faces/150.png").status_code == 404


def test_a_faces_original_comes_from_the_archive_and_only_as_an_image(filled: Site) -> None:
    import zipfile

    sha256 = sha_of(filled)
    target = io.BytesIO()
    names = filled.parts.catalog.dataset(sha256).names
    picture = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with zipfile.ZipFile(target, "w") as zipped:
        zipped.writestr(names[3], picture)
        zipped.writestr(names[4], b"<html><script>alert(1)</script>")
    filled.store.put(f"datasets/{sha256}/archive.zip", target.getvalue())

    good, page, gone = (filled.web.get(f"/datasets/{sha256}/faces/{i}/original") for i in (3, 4, 5))

    assert (good.status_code, good.mimetype, good.data) == (200, "image/jpeg", picture)
    assert (page.status_code, gone.status_code) == (404, 404)
    assert good.headers["X-Content-Type-Options"] == "nosniff"


def test_a_faces_page_shows_its_label_beside_each_models_word(filled: Site) -> None:
    sha256 = sha_of(filled)
    data = filled.parts.catalog.dataset(sha256)

    text = filled.web.get(f"/datasets/{sha256}/faces/5").text

    assert f'gender-{GENDERS[data.gender[5]]}">{GENDERS[data.gender[5]]}</p>' in text
    assert '<a href="/models/1">1</a>' in text
    assert '<a href="/models/2">2</a>' in text


def test_the_next_wrong_face_is_wrong_and_comes_later(filled: Site) -> None:
    sha256 = sha_of(filled)
    data, p = filled.parts.catalog.dataset(sha256), filled.parts.catalog.predictions(sha256, 2)
    assert p is not None
    wrong = np.flatnonzero((p >= 0.5) != (data.gender == 1))

    text = filled.web.get(f"/predict?dataset={sha256}&face={wrong[0]}&pick=wrong").text

    assert f"/datasets/{sha256}/faces/{wrong[1]}.png" in text
    assert "Predicted wrongly by model 2" in text


def test_a_face_is_found_by_a_part_of_its_name_or_at_random(filled: Site) -> None:
    sha256 = sha_of(filled)

    assert f"/faces/{2}.png" in filled.web.get(f"/predict?dataset={sha256}&search=longlong").text
    assert "Try a shorter part" in filled.web.get(f"/predict?dataset={sha256}&search=zebra").text
    assert filled.web.get(f"/predict?dataset={sha256}&pick=random").status_code == 200
    beyond = filled.web.get(f"/predict?dataset={sha256}&face=150")
    assert beyond.status_code == 200
    assert "There is no face 150: the dataset has 150, numbered from 0. This is number 149." in beyond.text


def jpeg(side: int = 160) -> bytes:
    return cv2.imencode(".jpg", np.full((side, side, 3), 90, np.uint8))[1].tobytes()


def test_predicting_an_image_gives_answer_label_and_the_networks_view(filled: Site) -> None:
    with filled.worker() as taken:
        answer = filled.web.post("/predict/image?name=24_1_0.jpg", data=jpeg(), content_type="image/jpeg")

    assert PROBE not in taken[0].message.headers
    body = answer.json
    assert body is not None
    assert body["true_gender"] == "female"
    assert body["reply"]["predictions"][0]["gender"] in GENDERS
    assert body["seen"].startswith("data:image/png;base64,")
    assert "24_1_0.jpg" in filled.web.get("/").text


def test_predicting_what_is_no_image_says_what_was_found(filled: Site) -> None:
    answer = filled.web.post("/predict/image", data=b"%PDF-1.4", content_type="image/jpeg")

    assert answer.status_code == 400
    assert "a PDF document" in answer.text
    for_script = filled.web.post("/predict/image", data=b"text", headers=ASKS_FOR_JSON, content_type="image/jpeg")
    assert (for_script.status_code, for_script.mimetype) == (400, "application/json")
    assert error_of(for_script.data)[1].startswith("found a text file, expected a JPEG")


def test_while_the_broker_is_away_the_reason_comes_at_once(filled: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filled.parts.live, "_away", True)
    for path in ("/predict/image", "/predict/occlusion"):
        answer = filled.web.post(path, data=jpeg(), content_type="image/jpeg", headers=ASKS_FOR_JSON)
        assert answer.status_code == 503
        assert "the broker does not answer" in error_of(answer.data)[1]


def test_occlusion_is_one_pack_through_the_queue(filled: Site) -> None:
    with filled.worker() as taken:
        answer = filled.web.post("/predict/occlusion?model_version=2", data=jpeg(), content_type="image/jpeg")

    body = answer.json
    assert body is not None
    assert len(taken) == 1
    assert taken[0].message.headers[PROBE] is True
    assert (len(body["drop"]), len(body["drop"][0])) == (GRID, GRID)
    assert body["model"]["version"] == 2


def test_the_patches_cover_the_whole_face_and_leave_the_rest_alone() -> None:
    face = np.full((128, 128), 7, np.uint8)

    covered = np.stack(occluded(face))

    assert covered.shape == (GRID * GRID, 128, 128)
    assert np.all((covered == 128).any(axis=0))
    assert np.all((covered == 128).mean(axis=(1, 2)) < 0.06)
    assert np.all(face == 7)


def test_a_version_is_promoted_and_rolled_back_with_its_reason(filled: Site) -> None:
    web = filled.web
    csrf = csrf_of(web)

    promoted = web.post("/models/1/promote", data={"csrf": csrf, "reason": "<b>fairer</b>"}, follow_redirects=True)
    back = web.post("/models/rollback", data={"csrf": csrf, "reason": "slower"}, follow_redirects=True)

    assert "Model 1 is the champion" in promoted.text
    assert "&lt;b&gt;fairer&lt;/b&gt;" in promoted.text
    assert "model 2 is the champion again" in back.text
    assert filled.builder.registry.aliases().champion == 2


def test_a_job_shows_rows_pictures_and_only_the_wrong_ones_if_asked(filled: Site) -> None:
    web = filled.web
    text = web.get("/jobs/job-000000000001").text
    wrong = web.get("/jobs/job-000000000001?show=wrong").text
    errors = web.get("/jobs/job-000000000001?show=errors").text

    assert "20_0_0_0.jpg" in text
    assert 0 < wrong.count("✗") < text.count("✗") + text.count("✓")
    assert "✓" not in wrong
    assert "found a text file" in errors
    picture = web.get("/jobs/job-000000000001/images/0.png")
    assert (picture.status_code, picture.mimetype) == (200, "image/png")
    assert web.get("/jobs/job-000000000001/images/99.png").status_code == 404


def test_what_had_failed_and_goes_on_is_shown_as_it_is(site: Site) -> None:
    error = {"code": "internal", "message": "the disk was full"}
    site.builder.run("run-1", state=RunState.FAILED, error=error)
    site.builder.jobs.create("job-1", message_id="1", name="one", state=JobState.QUEUED)
    site.builder.jobs.update("job-1", state=JobState.REJECTED, error=error)
    for path in ("/runs/run-1", "/jobs/job-1"):
        assert "the disk was full" in site.web.get(path).text

    site.builder.runs.reopen("run-1", 1.5)
    site.builder.jobs.reopen("job-1", 1.5)

    for path in ("/runs/run-1", "/jobs/job-1"):
        assert "the disk was full" not in site.web.get(path).text


def test_a_job_is_cancelled_from_its_page(filled: Site) -> None:
    filled.builder.jobs.create("job-b", message_id="b", name="b", state=JobState.QUEUED)
    web = filled.web

    answer = web.post("/jobs/job-b/cancel", data={"csrf": csrf_of(web)}, follow_redirects=True)

    assert "Asked to stop" in answer.text
    assert filled.builder.jobs.cancel_requested("job-b")


def test_dead_letters_show_their_bodies_harmlessly(filled: Site) -> None:
    bury(filled, b"<script>alert(1)</script>", "text/html")
    bury(filled, b'{"schema": 2, "name": "x"}', "application/json")
    bury(filled, b"{broken", "application/json")
    bury(filled, jpeg(), "image/gif")
    bury(filled, b"long " * 1000, "text/plain")

    text = filled.web.get("/dead").text

    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "&#34;schema&#34;: 2" in text
    assert "{broken" in text
    assert "A JPEG image." in text
    assert len(text) < 20_000


def test_dead_letters_are_retried_and_dropped_in_bulk(filled: Site) -> None:
    first, second = bury(filled, b"a", "text/plain"), bury(filled, b"b", "text/plain")
    web = filled.web
    csrf = csrf_of(web)

    retried = web.post("/dead/retry", data={"csrf": csrf, "dead_id": [first, second]}, follow_redirects=True)
    bury(filled, b"c", "text/plain")
    dropped = web.post("/dead/drop", data={"csrf": csrf, "all": "true"}, follow_redirects=True)
    bury(filled, b"d", "text/plain")
    none = web.post("/dead/drop", data={"csrf": csrf}, follow_redirects=True)

    assert "2 sent back" in retried.text
    assert "dropped for good" in dropped.text
    assert "No dead letter was chosen" in none.text
    assert len(filled.broker.dead_letters()) == 1


def test_a_dead_letter_says_what_it_held_and_which_model_it_was_for(filled: Site) -> None:
    images = [(str(i), jpeg()) for i in range(3)]
    for message in (pack_message(images, headers={"model_version": 7}), pack_message(images[:1])):
        bury_message(filled, message)
    bury(filled, b"\xc1", "application/msgpack")

    text = filled.web.get("/dead").text

    assert "A pack of 3 images." in text
    assert "A pack of one image." in text
    assert "MessagePack, but no pack of images." in text
    assert re.search(r"for model <bdi[^>]*>7</bdi>", text)
    assert text.count(">never</td>") == 3


def test_the_plots_script_comes_from_us_compressed_and_to_keep(filled: Site) -> None:
    page = filled.web.get(f"/runs/{RUN}").text
    urls = re.findall(r'<script src="(/assets/bokeh[^"]+)"', page)
    assert len(urls) == 2

    sizes = []
    for url in urls:
        packed = filled.web.get(url, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert "immutable" in packed.headers["Cache-Control"]
        assert gzip.decompress(packed.data) == filled.web.get(url, headers={"Accept-Encoding": "identity"}).data
        sizes.append(len(packed.data))
    assert sum(sizes) < 450_000
    assert "/assets/bokeh" not in filled.web.get("/models").text
    assert filled.web.get("/assets/bokeh-0.0.0/bokeh.min.js").status_code == 404


def test_the_style_nonce_is_new_for_each_answer_and_only_where_plots_are(filled: Site) -> None:
    nonces = set()
    for _ in range(2):
        answer = filled.web.get(f"/runs/{RUN}")
        found = re.search(r"'nonce-([\w-]+)'", answer.headers["Content-Security-Policy"])
        assert found is not None
        assert f'data-nonce="{found[1]}"' in answer.text
        nonces.add(found[1])
    assert len(nonces) == 2
    assert "nonce" not in filled.web.get("/models").headers["Content-Security-Policy"]


def weight_of_the_first_page(site: Site) -> int:
    """Returns the bytes of the overview and its scripts, the plots' ones as they go over the wire."""
    web = site.web
    page = web.get("/")
    urls = re.findall(r'(?:href|src)="(/(?:static|assets)/[^"]+)"', page.text)
    urls += [f"/static/js/{name}" for script in ("charts", "save") for name in (f"{script}.js", "json.js")]
    packed = {"Accept-Encoding": "gzip"}
    return len(page.data) + sum(len(web.get(url, headers=packed, buffered=True).data) for url in dict.fromkeys(urls))


def test_the_first_page_is_light(site: Site) -> None:
    assert weight_of_the_first_page(site) < 100_000


def test_the_first_page_is_below_half_a_megabyte_with_its_plots(filled: Site) -> None:
    assert 300_000 < weight_of_the_first_page(filled) < 500_000


def test_the_grid_stays_fast_at_25000_faces(site: Site) -> None:
    sha256 = site.builder.dataset(25_000)
    site.builder.model(sha256, RUN)
    web = site.web
    url = f"/datasets/{sha256}?result=wrong&sort=wrong&search=jpg&page="
    web.get(url + "1")  # reads the files once

    seconds = []
    for page in range(1, 8):
        started = time.perf_counter()
        assert web.get(f"{url}{page}").status_code == 200
        seconds.append(time.perf_counter() - started)

    assert statistics.median(seconds) < 0.25  # a tenth of that on an idle core; machines that test are busy


def test_a_bug_in_a_page_is_a_page(
    filled: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filled.parts, "catalog", None)

    answer = filled.web.get("/runs")

    assert (answer.status_code, answer.mimetype) == (500, "text/html")
    assert "a bug on our side" in answer.text
    assert "AttributeError" in caplog.text
    assert error_of(filled.web.get("/api/v1/runs").data)[0] == "internal"


def test_damaged_records_are_named_on_their_lists_and_cost_the_pages_nothing_else(filled: Site) -> None:
    filled.store.put("runs/run-x/run.json", b"")
    filled.store.put("jobs/job-x/job.json", b"{}")

    for page, name in (("/runs", "runs/run-x/run.json"), ("/jobs", "jobs/job-x/job.json")):
        text = filled.web.get(page).text
        assert f"{name} in the store is damaged" in text
        assert "faces" in text or "photos" in text
        assert f"{name} in the store is damaged" in filled.web.get("/").text
        assert f"{name} in the store is damaged" in filled.web.get(f"/{name.rpartition('/')[0]}").text
        api = filled.web.get(f"/api/v1{page}").json or {}
        assert [damaged["file"] for damaged in api["damaged"]] == [name]
        assert api["total"] == len(api[page[1:]]) > 0

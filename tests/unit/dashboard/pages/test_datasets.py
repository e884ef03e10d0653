"""The pages of datasets and of a face."""

from __future__ import annotations

import io
import re
import statistics
import time

import cv2
import numpy as np
import pytest

from shared.datasets.face_filter import FaceFilter, select_faces
from shared.faces.labelling import LabelReport, LabelSpec
from shared.faces.labels import GENDERS
from shared.records.dataset import DatasetRefusal
from shared.records.record import Fault
from shared.records.runs import RunState
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import RUN, csrf_of, sha_of


def test_a_dataset_that_is_not_read_yet_says_so(site: Site) -> None:
    site.store.put("datasets/abc/archive.zip", b"PK")

    assert "Not processed yet" in site.web.get("/datasets/abc").text
    assert "not processed yet" in site.web.get("/datasets").text


def test_an_archive_that_was_rejected_says_why_and_by_which_run(site: Site) -> None:
    site.store.put("datasets/abc/archive.zip", b"PK")
    error = {"code": "too_few_faces", "message": "found 3 faces, expected at least 50"}
    site.builder.run("run-1", state=RunState.REJECTED, dataset="abc", error=error)

    for path in ("/datasets", "/datasets/abc"):
        text = site.web.get(path).text
        assert "found 3 faces, expected at least 50" in text
        assert 'href="/runs/run-1"' in text
        assert "ot processed yet" not in text
    site.builder.run("run-2", state=RunState.INGESTING, dataset="abc")
    assert "not processed yet" in site.web.get("/datasets").text


def test_a_dataset_shows_rejects_with_examples(filled: Site) -> None:
    text = filled.web.get(f"/datasets/{sha_of(filled)}").text

    assert "44_3_0.jpg" in text
    assert "found gender 3, expected 0 (male) or 1 (female)" in text


def indices(text: str) -> list[int]:
    return [int(i) for i in re.findall(r"/faces/(\d+)\.webp", text)]


def test_the_grid_filters_and_sorts_by_the_chosen_models_predictions(filled: Site) -> None:
    sha256 = sha_of(filled)
    data, p = filled.parts.store_cache.dataset(sha256), filled.parts.store_cache.predictions(sha256, 1)
    assert p is not None
    wrong = np.flatnonzero((p >= 0.5) != (data.gender == 1))
    most = wrong[np.argsort(-np.maximum(p, 1 - p)[wrong], kind="stable")]

    text = filled.web.get(f"/datasets/{sha256}?version=1&result=wrong&sort=largest_error").text

    assert indices(text) == most[:36].tolist()
    assert f"{len(wrong)} of 150" in text


@pytest.mark.parametrize(
    "wanted",
    [
        FaceFilter(gender="female", split="test"),
        FaceFilter(ethnicity="Asian", age="20-29"),
        FaceFilter(predicted="male", result="correct", low=0.7, high=0.9),
        FaceFilter(search="IMG SRC"),
    ],
)
def test_a_filter_keeps_exactly_the_faces_that_fit(filled: Site, wanted: FaceFilter) -> None:
    data = filled.parts.store_cache.dataset(sha_of(filled))
    p = filled.parts.store_cache.predictions(data.sha256, 1)
    assert p is not None
    from shared.datasets.face_filter import face_view

    def fits(i: int) -> bool:
        view = face_view(data, p, i)
        return (
            wanted.gender in {"", view["gender"]}
            and wanted.predicted in {"", view["predicted"]}
            and wanted.ethnicity in {"", view["ethnicity"]}
            and wanted.split in {"", view["split"]}
            and (wanted.age == "" or wanted.age == f"{view['age'] // 10 * 10}-{view['age'] // 10 * 10 + 9}")
            and (wanted.result == "" or view["correct"] == (wanted.result == "correct"))
            and (wanted.low or 0) <= view["confidence"] <= (wanted.high or 1)
            and wanted.search.lower() in view["name"].lower()
        )

    found = select_faces(data, p, wanted).tolist()

    assert found == [i for i in range(len(data)) if fits(i)]
    assert found


@pytest.mark.parametrize("sort", ["least_confident", "most_confident", "youngest"])
def test_sorting_orders_by_what_it_says(filled: Site, sort: str) -> None:
    data = filled.parts.store_cache.dataset(sha_of(filled))
    p = filled.parts.store_cache.predictions(data.sha256, 1)
    assert p is not None
    key = {
        "least_confident": np.maximum(p, 1 - p),
        "most_confident": -np.maximum(p, 1 - p),
        "youngest": data.age.astype(float),
    }[sort]

    assert np.all(np.diff(key[select_faces(data, p, FaceFilter(sort=sort))]) >= 0)


def test_without_predictions_the_grid_still_filters_by_label(site: Site) -> None:
    sha256 = site.builder.dataset(36)

    text = site.web.get(f"/datasets/{sha256}?gender=male&sort=youngest").text

    data = site.parts.store_cache.dataset(sha256)
    assert sorted(indices(text)) == np.flatnonzero(data.gender == 0).tolist()
    assert np.all(np.diff(data.age[indices(text)].astype(int)) >= 0)
    assert "labels but no predictions" in text


def test_any_model_predicts_any_dataset_when_asked_as_a_job_of_its_own(filled: Site) -> None:
    other = filled.builder.dataset(150)
    web = filled.web
    assert "Predict all faces with model 1" in web.get(f"/datasets/{other}?version=1").text

    with filled.job_worker() as taken:
        answer = web.post(f"/datasets/{other}/predict", data={"csrf": csrf_of(web), "version": "1"})
        filled.parts.scoring.wait(30)

    assert answer.headers["Location"] == f"/datasets/{other}?version=1#faces"
    assert [delivery.message.headers["model_version"] for delivery in taken] == [1]
    probabilities = filled.parts.store_cache.predictions(other, 1)
    assert probabilities is not None
    assert probabilities.tolist() == pytest.approx([0.75] * 150)
    assert 'class="verdict' in web.get(f"/datasets/{other}?version=1").text
    assert filled.broker.depths()[filled.broker.topology.predictions].ready == 0


def test_a_scoring_that_fails_says_why_and_another_waits(filled: Site) -> None:
    other = filled.builder.dataset(30)
    web = filled.web
    form = {"csrf": csrf_of(web), "version": "1"}
    web.post(f"/datasets/{other}/predict", data=form)
    under_way = web.get(f"/datasets/{other}?version=1").text
    busy = web.post(f"/datasets/{other}/predict", data=form)
    with filled.job_worker(Fault(code="unavailable", message="the store is away")):
        filled.parts.scoring.wait(30)

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
    assert np.array_equal(image, filled.parts.store_cache.dataset(sha256).faces[3])
    assert "immutable" in answer.headers["Cache-Control"]
    assert cv2.imdecode(np.frombuffer(small.data, np.uint8), cv2.IMREAD_UNCHANGED).shape == (32, 32)
    assert filled.web.get(f"/datasets/{sha256}/faces/150.png").status_code == 404


def test_a_faces_original_comes_from_the_archive_and_only_as_an_image(filled: Site) -> None:
    import zipfile

    sha256 = sha_of(filled)
    target = io.BytesIO()
    names = filled.parts.store_cache.dataset(sha256).names
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
    data = filled.parts.store_cache.dataset(sha256)

    text = filled.web.get(f"/datasets/{sha256}/faces/5").text

    assert f'gender-{GENDERS[data.gender[5]]}">{GENDERS[data.gender[5]]}</span>' in text
    assert '<a href="/models/1">1</a>' in text
    assert '<a href="/models/2">2</a>' in text


@pytest.mark.slow
def test_the_grid_stays_fast_at_25000_faces(site: Site) -> None:
    sha256 = site.builder.dataset(25_000)
    site.builder.model(sha256, RUN)
    web = site.web
    url = f"/datasets/{sha256}?result=wrong&sort=largest_error&search=jpg&page="
    web.get(url + "1")  # reads the files once

    seconds = []
    for page in range(1, 8):
        started = time.perf_counter()
        assert web.get(f"{url}{page}").status_code == 200
        seconds.append(time.perf_counter() - started)

    assert statistics.median(seconds) < 0.25  # a tenth of that on an idle core; machines that test are busy


def test_a_refused_archive_shows_what_was_recognized_and_what_was_rejected(site: Site) -> None:
    sha256 = "ab" * 32
    refusal = DatasetRefusal(
        code="too_few_faces",
        message="found 4 usable faces, expected at least 20",
        images_seen=6,
        usable=4,
        rejects={"no_label": 2},
        labels=LabelReport(source="folders", labelled=4, unlabelled=2, examples=("loose.jpg",)),
    )
    site.store.put(f"datasets/{sha256}/archive.zip", b"")
    site.store.put(f"datasets/{sha256}/refusal.json", refusal.model_dump_json().encode())
    site.store.put(f"datasets/{sha256}/rejects.csv", b"name,reason,detail\r\nloose.jpg,no_label,found 'loose.jpg'\r\n")

    page = site.web.get(f"/datasets/{sha256}").get_data(as_text=True)

    assert "4 of 6 files can be used" in page
    assert "labels from folders; 4 files" in page
    assert "loose.jpg" in page
    assert "no label" in page


def test_the_form_has_a_field_for_everything_that_labels_can_be_told_by(site: Site) -> None:
    text = site.web.get("/datasets").text
    assert set(re.findall(r'data-label="(\w+)"', text)) == set(LabelSpec.model_fields)


def test_the_welcome_says_all_ways_to_label_faces(site: Site) -> None:
    welcome = site.web.get("/").text.partition('id="welcome"')[2].partition("</section>")[0]
    assert "Labels: folders such as male and female, a table (CSV) in the archive, or file names" in welcome
    assert "must hold the labels" not in welcome


def test_a_dataset_shows_what_was_recognized_of_the_labels(site: Site) -> None:
    sha256 = site.builder.dataset(60)
    report = LabelReport(source="table", tables=("<list>.csv",), columns={"gender": "sex"}, labelled=60)
    site.store.update_json(
        f"datasets/{sha256}/summary.json", lambda summary: {**summary, "labels": report.model_dump()}
    )

    assert "Recognized: labels from &lt;list&gt;.csv, column sex; 60 files" in site.web.get(f"/datasets/{sha256}").text

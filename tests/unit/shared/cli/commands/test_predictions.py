"""`predict` and `jobs`."""

from __future__ import annotations

import csv
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shared.broker.base import Delivery, Outgoing
from shared.client import Client
from shared.faces.decode import ImageLimits, decode_face
from shared.faces.png import encode_png
from shared.messages import json_reply, parse_prediction, prediction
from shared.records.cells import from_cell
from shared.records.dismissals import dismissed_failures, failure_key
from shared.records.jobs import Jobs, JobState
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import PNG, ZIP, answers, beating, document, image_folder, run, serving, works_off


def test_images_and_folders_are_predicted_directly(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 3)
    (images / "notes.txt").write_text("no image")
    (images / "._24_1_0.png").write_text("litter of an operating system")
    single = folder / "face.png"
    single.write_bytes(PNG)
    with serving(client, client.broker.topology.predictions, answers):
        result = run("predict", images, single, "--out", "out.csv")
        shown = run("predict", single, "--model-version", "2")
    assert result.exit_code == 0
    assert "4 images, 0 errors, model version 7" in result.stderr
    assert "accuracy 100.0 % on the labelled ones, written to out.csv" in result.stderr
    assert result.stdout == ""
    with (folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["gender"] for row in rows] == ["female"] * 4
    assert [row["correct"] for row in rows] == ["true"] * 3 + [""]
    assert re.search(r"face\.png +female +0\.900 +90\.0 %", shown.stdout)
    assert "model version 2" in shown.stderr


def test_a_prediction_is_explained_by_a_map(client: Client, folder: Path) -> None:
    (folder / "face.png").write_bytes(encode_png(np.full((128, 128), 90, np.uint8)))
    with serving(client, client.broker.topology.predictions, darker_is_female):
        found = document("explain", "face.png", "--model-version", "2")
        shown = run("explain", "face.png").stdout.splitlines()
    # Only a patch over the middle of the face moves the answer.
    assert (found["grid"], len(found["drop"]), found["model"]["version"]) == (15, 15, 2)
    assert found["probability_female"] == pytest.approx(0.9)
    assert [i for i, row in enumerate(found["drop"]) if max(row) > 0.5] == [6, 7, 8]
    assert [i for i, row in enumerate(shown[:15]) if "█" in row] == [6, 7, 8]
    assert shown[15] == "female, 90.0 % confidence, model version 7"
    assert shown[16] == "covering the darkest place lowers it by 80 points"
    (folder / "notes.png").write_text("no image")
    assert "found a text file" in run("explain", "notes.png").stderr


def darker_is_female(delivery: Delivery) -> list[Outgoing]:
    request = parse_prediction(delivery.message)
    faces = [decode_face(data, ImageLimits(2**20, 10**6)).pixels for data in request.images]
    entries = [
        prediction(key, 0.9 if face[64, 64] < 100 else 0.1) for key, face in zip(request.ids, faces, strict=True)
    ]
    model = {"name": "gender", "version": request.model_version or 7}
    return json_reply(delivery.message, {"model": model, "predictions": entries})


def test_a_failed_job_is_dismissed_and_one_that_has_not_failed_is_not(builder: StoreBuilder, client: Client) -> None:
    builder.job("job-good")
    builder.jobs.create("job-bad", message_id="bad", name="bad", state=JobState.QUEUED)
    builder.jobs.update("job-bad", state=JobState.FAILED)

    assert "dismissed the failure of job-bad" in run("jobs", "job-bad", "--dismiss").stderr
    assert document("jobs", "job-good", "--dismiss", exit_code=1)["error"]["code"] == "conflict"
    assert dismissed_failures(client.store) == {failure_key(client.jobs.get("job-bad"))}
    assert run("jobs", "--dismiss").exit_code == 2


def test_one_broken_image_costs_one_row(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 2)
    (images / "broken.jpg").write_bytes(b"broken")
    with serving(client, client.broker.topology.predictions, answers):
        found = document("predict", images)
        alone = run("predict", images / "broken.jpg")
    assert found["counts"] == {"images": 3, "errors": 1}
    assert [row["error"] for row in found["predictions"]] == [None, None, "invalid_image: found a text file"]
    assert alone.exit_code == 1


def test_many_images_become_a_job_and_keep_their_names(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 513)
    with serving(client, client.broker.topology.jobs, works_off(client)):
        found = document("predict", images)
    (job,) = client.jobs.all().records
    assert found["jobs"] == [job.job_id]
    assert found["counts"]["images"] == 513
    assert found["predictions"][512]["name"] == (images / "24_1_0_0512.png").as_posix()
    assert found["accuracy"] == 1.0


def test_many_images_become_a_job_whatever_their_names_and_times(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 513)
    os.utime(images / "24_1_0_0000.png", (0, 0))  # a zip's times begin in 1980
    (images / "24_1_0_0512.png").rename(images / os.fsdecode(b"24_1_0_\xff.png"))
    with serving(client, client.broker.topology.jobs, works_off(client)):
        found = document("predict", images)
    assert found["counts"] == {"images": 513, "errors": 0}
    assert found["predictions"][512]["name"] == f"{images}/24_1_0_\ufffd.png"
    assert found["predictions"][512]["true_gender"] == "female"


def test_a_file_name_that_is_no_utf8_is_told_as_far_as_it_is(client: Client, folder: Path) -> None:
    images = image_folder(folder / "faces", 3)
    (images / "24_1_0_0001.png").rename(images / os.fsdecode(b"24_1_0_\xff.png"))
    with serving(client, client.broker.topology.predictions, answers):
        assert run("predict", images, "--out", "out.csv").exit_code == 0
        found = document("predict", images)
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == [row["name"] for row in found["predictions"]]
    assert [name for name in names if "\ufffd" in name] == [f"{images}/24_1_0_\ufffd.png"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("missing/out.csv", "found no folder 'missing', expected one to write 'out.csv' into"),
        ("face.png/out.csv", "found no folder 'face.png', expected"),
    ],
)
def test_where_results_cannot_be_written_is_said_before_anything_is_asked(folder: Path, out: str, said: str) -> None:
    (folder / "face.png").write_bytes(PNG)
    for command in (["predict", "face.png"], ["jobs", "job-1"]):
        result = run(*command, "--out", out)
        assert result.exit_code == 2
        assert said in result.stderr.replace("\n", " ")
    assert not (folder / "data").exists()


def test_an_archive_becomes_a_job(client: Client, folder: Path) -> None:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("a/24_1_0.jpg", PNG)
    with serving(client, client.broker.topology.jobs, works_off(client)):
        result = run("predict", "photos.zip")
    assert result.exit_code == 0, result.output
    assert re.search(r"a/24_1_0\.jpg +female +0\.900 +90\.0 % +female", result.stdout)
    assert client.jobs.all().records[0].name == "photos"
    assert run("predict", "photos.zip", "--model-version", "1").exit_code == 2


def test_a_job_that_came_to_nothing_is_exit_code_1(client: Client, folder: Path) -> None:
    (folder / "photos.zip").write_bytes(ZIP)
    error = {"code": "invalid_archive", "message": "found an empty archive"}
    with serving(client, client.broker.topology.jobs, works_off(client, state="rejected", error=error)):
        result = run("predict", "photos.zip")
    assert result.exit_code == 1
    assert "rejected: invalid_archive: found an empty archive" in result.stderr
    assert result.stdout == ""
    assert "0 images" not in result.stderr
    job_id = client.jobs.all().records[0].job_id
    assert run("jobs", job_id, "--follow").exit_code == 1


def test_without_an_answer_predicting_ends_with_a_sentence(client: Client, folder: Path) -> None:
    (folder / "face.png").write_bytes(PNG)
    result = run("predict", "face.png", "--timeout", "0.2")
    assert result.exit_code == 1
    assert "is an inference worker up" in result.stderr


@pytest.mark.slow
def test_waiting_for_an_image_says_once_that_no_inference_is_up(client: Client, folder: Path) -> None:
    (folder / "face.png").write_bytes(PNG)
    result = run("predict", "face.png", "--timeout", "4.5")
    assert result.stderr.count("no inference is running; start one with `genderline up`") == 1
    with beating(client, "inference"):
        assert "no inference is running" not in run("predict", "face.png", "--timeout", "4.5").stderr


def test_predict_says_how_long_it_waits() -> None:
    assert "by default 60 for images, and without limit for a job" in " ".join(run("predict", "--help").stdout.split())


def test_a_folder_without_images_is_wrong_usage(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert run("predict", folder / "empty").exit_code == 2


def test_jobs_lists_shows_follows_and_cancels_jobs(builder: StoreBuilder, client: Client, folder: Path) -> None:
    assert "no jobs yet" in run("jobs").stderr
    done = builder.job()
    client.jobs.create("job-2", message_id="2", name="waits", state=JobState.QUEUED)
    assert re.search(rf"^{done} +finished +41 +41 +1 +90\.0 %", run("jobs").stdout, flags=re.MULTILINE)
    assert {record["job_id"] for record in document("jobs")} == {done, "job-2"}
    assert run("jobs", done, "--follow", "--out", "results.csv").exit_code == 0
    assert (folder / "results.csv").read_bytes() == client.store.get(Jobs.results_key(done))
    assert document("jobs", done)["done"] == 41
    assert run("jobs", "job-2", "--cancel").exit_code == 0
    assert client.jobs.cancel_requested("job-2")
    assert run("jobs", done, "--cancel").exit_code == 1
    assert run("jobs", "job-3").exit_code == 1


def test_hostile_names_are_inert_in_what_predict_writes(client: Client, folder: Path) -> None:
    names = ["=1+1.png", "\uff20SUM(A1).png", ";=1.png", "a\u202egnp.png", "a\x9b31m.png"]
    for name in names:
        (folder / name).write_bytes(PNG)
    with serving(client, client.broker.topology.predictions, answers):
        assert run("predict", *names, "--out", "out.csv").exit_code == 0
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        written = [row["name"] for row in csv.DictReader(file)]
    assert sorted(map(from_cell, written)) == sorted(names)
    assert all(name.isprintable() and name[0] not in "=;\uff20" for name in written)

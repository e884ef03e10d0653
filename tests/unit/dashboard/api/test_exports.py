"""Zips to download over HTTP."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dashboard_app import Site, open_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        site.builder.model(site.builder.dataset(60), "run-a")
        yield site


def zip_of(site: Site, path: str) -> zipfile.ZipFile:
    answer = site.web.get(f"/api/v1{path}", buffered=True)
    assert (answer.status_code, answer.mimetype) == (200, "application/zip"), path
    assert answer.headers["Content-Disposition"].startswith("attachment; filename=")
    return zipfile.ZipFile(io.BytesIO(answer.data))


def test_a_model_comes_with_every_variant_and_its_card(site: Site) -> None:
    names = zip_of(site, "/models/1/export.zip").namelist()

    assert sorted(names) == ["card.json", "card.md", "model.onnx", "model_float16.onnx", "model_int8.onnx"]
    for precision in ("float32", "int8", "float16"):
        answer = site.web.get(f"/api/v1/models/1/model.onnx?precision={precision}", buffered=True)
        assert answer.data == b"onnx"
        assert ("-" + precision in answer.headers["Content-Disposition"]) == (precision != "float32")
    assert site.web.get("/api/v1/models/1/model.onnx?precision=int4").status_code == 400
    assert site.web.get("/api/v1/models/1/card.md", buffered=True).text.startswith("# gender 1")
    assert site.web.get("/api/v1/models/9/export.zip").status_code == 404


def test_a_run_comes_with_its_evaluation_predictions_and_card(site: Site) -> None:
    archive = zip_of(site, "/runs/run-a/export.zip")

    assert {"run.json", "history.csv", "evaluation.json", "predictions.csv", "model-1/card.json"} <= set(
        archive.namelist()
    )
    assert json.loads(archive.read("run.json"))["run_id"] == "run-a"


def test_a_dataset_comes_with_its_tables(site: Site) -> None:
    (sha256,) = site.store.children("datasets")
    site.parts.client.edits.add(sha256, "female", [0])

    assert {"faces.csv", "rejects.csv", "summary.json", "edits.json", "near_duplicates.csv"} == set(
        zip_of(site, f"/datasets/{sha256}/export.zip").namelist()
    )


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("gender=femal", 400, "gender is 'femal'; expected one of male, female"),
        ("split=tset", 400, "split is 'tset'; expected one of train, validation, test, all"),
        ("low=abc", 400, "low is 'abc'; expected a number that fits"),
        ("threshold=7", 400, "threshold is '7'; expected a number that fits"),
        ("version=77", 404, "77"),
        ("agreement=only_first", 409, "agreement needs `other`, a second model that has predicted"),
    ],
)
@pytest.mark.parametrize("form", ["faces", "faces.csv", "faces.zip"])
def test_a_filter_that_makes_no_sense_is_refused_and_never_means_all_faces(
    site: Site, form: str, query: str, status: int, told: str
) -> None:
    (sha256,) = site.store.children("datasets")
    answer = site.web.get(f"/api/v1/datasets/{sha256}/{form}?{query}")
    assert answer.status_code == status
    assert told in (answer.json or {})["error"]["message"]
    with site.web.get(f"/api/v1/datasets/{sha256}/{form}?gender=&version=") as whole:
        assert whole.status_code == 200
    assert site.web.get(f"/datasets/{sha256}?{query}").status_code == 200  # a page passes over it


def test_what_asks_for_predictions_of_a_dataset_without_any_is_refused(site: Site) -> None:
    sha256 = site.builder.dataset(30)
    answer = site.web.get(f"/api/v1/datasets/{sha256}/faces.csv?result=wrong")
    assert answer.status_code == 409
    assert site.web.get(f"/api/v1/datasets/{sha256}/faces?sort=suspects").status_code == 409
    assert "selected>Archive order" in site.web.get(f"/datasets/{sha256}?result=wrong&sort=suspects").text
    assert "result needs a model that has predicted dataset" in (answer.json or {})["error"]["message"]


def test_the_faces_of_a_filtered_view_come_as_images_with_their_table(site: Site) -> None:
    (sha256,) = site.store.children("datasets")
    archive = zip_of(site, f"/datasets/{sha256}/faces.zip?gender=female&split=test")

    rows = list(csv.DictReader(io.StringIO(archive.read("faces.csv").decode())))
    images = [name for name in archive.namelist() if name.endswith(".png")]
    assert len(rows) == len(images) > 0
    assert images == [f"female/{int(row['index']):06d}.png" for row in rows]
    assert archive.read(images[0]).startswith(b"\x89PNG")

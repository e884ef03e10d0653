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


def test_the_faces_of_a_filtered_view_come_as_images_with_their_table(site: Site) -> None:
    (sha256,) = site.store.children("datasets")
    archive = zip_of(site, f"/datasets/{sha256}/faces.zip?gender=female&split=test")

    rows = list(csv.DictReader(io.StringIO(archive.read("faces.csv").decode())))
    images = [name for name in archive.namelist() if name.endswith(".png")]
    assert len(rows) == len(images) > 0
    assert images == [f"female/{int(row['index']):06d}.png" for row in rows]
    assert archive.read(images[0]).startswith(b"\x89PNG")

"""`export`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import document, run


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dataset", {"faces.csv", "rejects.csv", "summary.json", "near_duplicates.csv"}),
        (
            "run",
            {
                "run.json",
                "history.csv",
                "evaluation.json",
                "predictions.csv",
                "model-1/card.json",
                "model-1/card.md",
            },
        ),
        ("model", {"model.onnx", "model_int8.onnx", "model_float16.onnx", "card.json", "card.md"}),
    ],
)
def test_everything_of_it_lies_in_the_zip(builder: StoreBuilder, tmp_path: Path, kind: str, expected: set[str]) -> None:
    sha256 = builder.dataset(30)
    builder.model(sha256, "run-a")
    which = {"dataset": sha256, "run": "run-a", "model": "1"}[kind]

    assert run("export", kind, which, tmp_path / "out.zip").stdout.startswith("written to")

    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert set(archive.namelist()) == expected
        assert archive.testzip() is None


@pytest.mark.parametrize("kind", ["dataset", "run", "model"])
@pytest.mark.parametrize("which", ["nope", "..", "9"])
def test_what_is_not_there_leaves_no_file(builder: StoreBuilder, tmp_path: Path, kind: str, which: str) -> None:
    builder.job()
    out = tmp_path / "files" / "out.zip"
    out.parent.mkdir()
    assert document("export", kind, which, out, exit_code=1)["error"]["code"] == "not_found"
    assert list(out.parent.iterdir()) == []

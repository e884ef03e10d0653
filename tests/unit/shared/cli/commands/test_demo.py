"""`sample`."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.unit.shared.cli.helpers import document, run


def test_sample_draws_a_dataset(folder: Path) -> None:
    found = document("sample", "new.zip", "--images", "3", "--faults")
    assert found["size_bytes"] == (folder / "new.zip").stat().st_size
    with zipfile.ZipFile(folder / "new.zip") as archive:
        assert len(archive.namelist()) == 7
    assert run("sample", "more.zip", "--images", "1").stdout.startswith("more.zip: 1 faces")

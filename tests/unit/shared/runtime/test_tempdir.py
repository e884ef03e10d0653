from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from shared.errors import Retryable
from shared.runtime.tempdir import temp_folder


def test_a_temp_folder_is_there_for_as_long_as_it_is_used() -> None:
    with temp_folder() as folder:
        (folder / "file").write_bytes(b"x")
    assert not folder.exists()


def test_where_there_is_no_room_for_one_that_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(Retryable, match="no room for temporary files"), temp_folder():
        pytest.fail("there is a folder")

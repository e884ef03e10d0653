"""Temporary files, with services that are really killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.errors import Retryable
from shared.runtime.tempdir import temp_folder, workspace
from tests.support.store_process import ROOT

WORKER = """
import tempfile, threading
from shared.runtime.tempdir import workspace
with workspace("trainer"):
    print(tempfile.mkdtemp(prefix="genderline-"), flush=True)
    threading.Event().wait()
"""


@contextmanager
def worker(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Starts a process that works in `folder`; gives it and its temporary folder, and kills it in the end."""
    env = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_what_a_killed_service_left_is_removed_by_the_next_one_and_what_is_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "genderline-of-a-client"
    other.mkdir()
    with worker(tmp_path) as (_, in_use):
        with worker(tmp_path) as (killed, left):
            killed.kill()
            killed.wait()
            assert left.exists()
            with workspace("trainer"):
                own = Path(tempfile.mkdtemp())
                assert not left.parent.exists()
                assert in_use.exists()
                assert sorted(tmp_path.iterdir()) == sorted([other, in_use.parent, own.parent])
        assert not own.exists()
        assert tempfile.gettempdir() == str(tmp_path)


def test_a_link_to_a_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "genderline-trainer-link").symlink_to(precious)
    with workspace("trainer"):
        assert precious.exists()
        assert (tmp_path / "genderline-trainer-link").is_symlink()


def test_a_temp_folder_is_there_for_as_long_as_it_is_used() -> None:
    with temp_folder() as folder:
        (folder / "file").write_bytes(b"x")
    assert not folder.exists()


def test_where_there_is_no_room_for_one_that_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(Retryable, match="no room for temporary files"), temp_folder():
        pytest.fail("there is a folder")

"""Which version and commit this program says that it is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from shared.runtime.version import describe_version

REPOSITORY = Path(__file__).parents[4]


def test_an_image_s_commit_is_the_one_that_the_settings_name() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+, commit abc123", describe_version("abc123"))


@pytest.mark.parametrize("owner", ["ours", "another's"])
def test_a_repository_is_asked_for_its_commit(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if owner == "another's":  # as under systemd; git's own switch for its tests
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    command = ["git", "-c", f"safe.directory={REPOSITORY}", "rev-parse", "HEAD"]
    asked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    commit = asked.stdout.strip()[:12]  # none where the tests run from an archive
    assert describe_version().removesuffix("-dirty").endswith(f", commit {commit}" if commit else "")

"""Which version and commit this program says that it is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from shared.runtime.version import describe_version

REPOSITORY = Path(__file__).parents[4]


def test_an_image_s_commit_is_the_one_that_the_settings_name() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+, commit abc123", describe_version("abc123"))


def test_a_repository_is_asked_for_its_commit() -> None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    commit = asked.stdout.strip()[:12]  # none where the tests run from an archive
    assert describe_version().removesuffix("-dirty").endswith(f", commit {commit}" if commit else "")

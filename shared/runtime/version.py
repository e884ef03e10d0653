"""Which version of this program runs: its number, and the commit that it was built from."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]


def describe_version(commit: str = "") -> str:
    """Returns the version, such as `0.1.0, commit 0123456789ab`; without a commit where none is known.

    Args:
        commit: as the settings name it: an image has no repository. Else the repository that this runs from is asked;
            with changes that are not committed, its answer ends with `-dirty`.
    """
    number = importlib.metadata.version("genderline")
    found = commit or _commit_of_repository()
    return f"{number}, commit {found}" if found else number


def _commit_of_repository() -> str:
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return ""
    done = subprocess.run(  # noqa: S603 - a fixed command
        # Under systemd the repository belongs to another user than the service's; git would refuse it.
        [
            git,
            "-c",
            f"safe.directory={_ROOT}",
            "-C",
            str(_ROOT),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    return done.stdout.strip() if done.returncode == 0 else ""

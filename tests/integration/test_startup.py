"""What a service says that cannot start: one line of what is missing, in the log's own format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SERVICES = ("trainer", "inference", "dashboard")


def ends(folder: Path, **settings: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Starts every service without HOME, side by side; yields the exit code and the JSON lines of each."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "GENDERLINE_LOG_FORMAT": "json", **settings}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", service], cwd=folder, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for service in SERVICES
    ]
    for process in processes:
        _, text = process.communicate(timeout=60)
        yield process.returncode, [json.loads(line) for line in text.splitlines()]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder is expected")
    for code, lines in ends(tmp_path, GENDERLINE_PORT="0", GENDERLINE_METRICS_PORT="0"):
        assert code == 1
        (line,) = [line for line in lines if line["level"] == "error"]
        assert "data" in line["message"]
        assert "traceback" not in line


def test_each_wrong_setting_is_one_line_and_ends_with_2(tmp_path: Path) -> None:
    for code, lines in ends(tmp_path, GENDERLINE_WORKERS="many", GENDERLINE_STORE_URL="http://x"):
        assert code == 2
        assert [line["message"].partition(":")[0] for line in lines] == ["GENDERLINE_STORE_URL", "GENDERLINE_WORKERS"]

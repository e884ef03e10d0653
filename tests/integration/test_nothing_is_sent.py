"""ONNX Runtime and OpenVINO gather no telemetry in a process of ours: no file below HOME, no socket, no look-up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WAIT_S = 13  # the library makes its files as it loads, and looks its maker's host up some ten seconds later
ALONE = "import onnxruntime"
OURS = ["import inference.model.loader", "import trainer.release.export"]
if find_spec("openvino"):
    OURS.append("from inference.model.openvino_run import import_openvino; import_openvino()")

Traces = dict[str, tuple[list[str], str]]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """The files below HOME and the network's system calls, by what a process imported; side by side."""
    strace = shutil.which("strace")
    traced = [strace, "-f", "-qq", "-e", "trace=socket,connect", "-e", "signal=none"] if strace else []
    homes = {imported: tmp_path_factory.mktemp("home") for imported in (ALONE, *OURS)}
    processes = {
        imported: subprocess.Popen(
            [*traced, sys.executable, "-c", f"{imported}; import time; time.sleep({WAIT_S})"],
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for imported, home in homes.items()
    }
    calls = {imported: process.communicate()[1] for imported, process in processes.items()}
    assert {imported: process.returncode for imported, process in processes.items()} == dict.fromkeys(homes, 0), calls
    return {imported: (files_below(home), calls[imported]) for imported, home in homes.items()}


def files_below(home: Path) -> list[str]:
    return [file.name for file in home.rglob("*") if file.is_file()]


@pytest.mark.parametrize("imported", OURS)
def test_a_service_leaves_no_file_and_looks_nothing_up(imported: str, traces: Traces) -> None:
    files, calls = traces[imported]
    assert files == []
    assert "AF_INET" not in calls


def test_the_library_by_itself_would_and_these_tests_would_see_it(traces: Traces) -> None:
    files, calls = traces[ALONE]
    if not files:
        pytest.skip("this build of ONNX Runtime gathers nothing by itself")
    if not shutil.which("strace"):
        pytest.skip("no strace on this machine, so files alone were looked at; on Debian: apt-get install strace")
    assert "AF_INET" in calls

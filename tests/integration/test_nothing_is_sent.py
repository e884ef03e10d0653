"""ONNX Runtime gathers no telemetry in a process of ours: no file below HOME, no socket, no look-up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WAIT_S = 13  # the library makes its files as it loads, and looks its maker's host up some ten seconds later
ALONE = "onnxruntime"
OURS = ("inference.model.loader", "trainer.release.export")

Traces = dict[str, tuple[list[str], str]]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """The files below HOME and the network's system calls, by the module that a process imported; side by side."""
    strace = shutil.which("strace")
    traced = [strace, "-f", "-qq", "-e", "trace=socket,connect", "-e", "signal=none"] if strace else []
    homes = {module: tmp_path_factory.mktemp("home") for module in (ALONE, *OURS)}
    processes = {
        module: subprocess.Popen(
            [*traced, sys.executable, "-c", f"import {module}, time; time.sleep({WAIT_S})"],
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for module, home in homes.items()
    }
    calls = {module: process.communicate()[1] for module, process in processes.items()}
    assert {module: process.returncode for module, process in processes.items()} == dict.fromkeys(homes, 0), calls
    return {module: (files_below(home), calls[module]) for module, home in homes.items()}


def files_below(home: Path) -> list[str]:
    return [file.name for file in home.rglob("*") if file.is_file()]


@pytest.mark.parametrize("module", OURS)
def test_a_service_leaves_no_file_and_looks_nothing_up(module: str, traces: Traces) -> None:
    files, calls = traces[module]
    assert files == []
    assert "AF_INET" not in calls


def test_the_library_by_itself_would_and_these_tests_would_see_it(traces: Traces) -> None:
    files, calls = traces[ALONE]
    if not files:
        pytest.skip("this build of ONNX Runtime gathers nothing by itself")
    if not shutil.which("strace"):
        pytest.skip("no strace on this machine, so files alone were looked at; on Debian: apt-get install strace")
    assert "AF_INET" in calls

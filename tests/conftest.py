"""Fixtures for every kind of test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import once_a_run
from tests.support.brokers.rabbitmq_node import rabbitmq_server
from tests.support.brokers.rabbitmq_shared import SharedNode, shared_node

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test can import ONNX Runtime: nothing is sent to anybody

TESTS: Final = Path(__file__).parent
LONGEST_FIRST: Final = ("e2e", "integration", "contract", "bench", "unit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--alone", choices=("skip", "only"), help="leave out, or run only, the tests marked `alone`")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves unread, with --alone only, every file that has no such test: reading all of them takes long."""
    if config.getoption("--alone") != "only" or collection_path.suffix != ".py":
        return None
    return "mark.alone" not in collection_path.read_text() or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts what takes longest first, so that processes side by side end together; then sorts out by --alone.

    Not by -m, which stays free for whoever selects tests by hand. What measures speed or needs a browser is slow.
    """
    for item in items:
        if item.get_closest_marker("alone") or item.path.is_relative_to(TESTS / "e2e"):
            item.add_marker("slow")
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.relative_to(TESTS).parts[0]))
    wanted = config.getoption("--alone")
    out = [
        item
        for item in items
        if (item.get_closest_marker("cluster") and "cluster" not in config.getoption("-m"))
        or (wanted is not None and (item.get_closest_marker("alone") is None) == (wanted == "only"))
    ]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session", autouse=True)
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of this run share; the environment names it too."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in the run's
        folder = folder.parent
    os.environ[once_a_run.FOLDER] = str(folder)
    return folder


@pytest.fixture(scope="session")
def rabbitmq(run_folder: Path) -> Iterator[SharedNode]:
    """A RabbitMQ node that all processes of this run share: each test needs a queue prefix of its own.

    A test that stops the node, lets it stand still or changes its settings needs a node of its own.
    """
    with shared_node(run_folder / "rabbitmq", rabbitmq_server()) as node:
        yield node

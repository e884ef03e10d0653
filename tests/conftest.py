"""Fixtures for every kind of test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rabbitmq_node import RabbitNode, find_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--alone", choices=("skip", "only"), help="leave out, or run only, the tests marked `alone`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts out by --alone, not by -m, which stays free for whoever selects tests by hand."""
    wanted = config.getoption("--alone")
    if wanted is None:
        return
    out = [item for item in items if (item.get_closest_marker("alone") is None) == (wanted == "only")]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A running RabbitMQ node of this session's own. A test that stops it starts it again."""
    server = find_server()
    if server is None:
        missing = "no rabbitmq-server on this machine; on Debian: apt-get install rabbitmq-server"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    home: Path = tmp_path_factory.mktemp("rabbitmq")
    node = RabbitNode(home, server)
    try:
        node.start()
        yield node
    finally:
        node.close()

"""Fixtures for every kind of test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rabbitmq_node import RabbitNode, find_server


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

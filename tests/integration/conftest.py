"""Installations on both brokers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.faces.synthetic import draw_sample
from shared.store.files import FileStore
from tests.support.brokers.rabbitmq_shared import SharedNode
from tests.support.brokers.wire import typed
from tests.support.services import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An installation on the embedded broker."""
    made = Installation(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}")
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def either_installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """An installation on the embedded broker, and one on RabbitMQ, where the broker is what a test is about."""
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbitmq").url
    made = Installation(tmp_path, url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def with_trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with one trainer, which all tests of a file share: torch takes long to load."""
    folder = tmp_path_factory.mktemp("trainer")
    made = Installation(folder, f"sqlite:///{folder / 'broker.db'}")
    try:
        made.start("trainer")
        with typed(made.broker(), FileStore(folder / "store"), "worker.heartbeat"):
            yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def with_trainer_on_rabbitmq(rabbitmq: SharedNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The same on RabbitMQ."""
    made = Installation(tmp_path_factory.mktemp("trainer"), rabbitmq.url)
    try:
        made.start("trainer")
        yield made
    finally:
        made.close()


@pytest.fixture(params=["with_trainer", pytest.param("with_trainer_on_rabbitmq", marks=pytest.mark.rabbitmq)])
def with_either_trainer(request: pytest.FixtureRequest) -> Installation:
    """Each of the two in turn, where the broker is what a test is about."""
    found: Installation = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def sample_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset with a few faulty entries."""
    path = tmp_path_factory.mktemp("sample") / "faces.zip"
    draw_sample(path, 60, seed=7, faults=True)
    return path

"""Installations on both brokers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.faces.synthetic import draw_sample
from tests.services import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An installation on the embedded broker."""
    made = Installation(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}")
    yield made
    made.close()


EITHER = ["sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]


def _installation(request: pytest.FixtureRequest, folder: Path) -> Installation:
    if request.param == "rabbitmq":
        return Installation(folder, request.getfixturevalue("rabbitmq").url)
    return Installation(folder, f"sqlite:///{folder / 'broker.db'}")


@pytest.fixture(params=EITHER)
def either_installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """An installation on the embedded broker, and one on RabbitMQ."""
    made = _installation(request, tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module", params=EITHER)
def with_trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation on either broker with one trainer, which all tests of a file share: torch takes long to load."""
    made = _installation(request, tmp_path_factory.mktemp("trainer"))
    try:
        made.start("trainer")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def sample_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset with a few faulty entries."""
    path = tmp_path_factory.mktemp("sample") / "faces.zip"
    draw_sample(path, 60, seed=7, faults=True)
    return path

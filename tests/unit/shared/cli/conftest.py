"""A working folder, and a client of the installation in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.broker.sqlite.broker import SqliteBroker
from shared.client import Client
from shared.store.files import FileStore
from shared.topology import Topology
from tests.support.builders.stores import StoreBuilder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the test's own, and no settings from outside."""
    for name in [name for name in os.environ if name.startswith("GENDERLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    with SqliteBroker(folder / "data" / "broker.db", Topology()) as broker:
        yield Client(broker, FileStore(folder / "data" / "store"))


@pytest.fixture
def builder(client: Client) -> StoreBuilder:
    return StoreBuilder(client.store)

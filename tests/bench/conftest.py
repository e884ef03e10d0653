"""An installation for the guard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An installation on the embedded broker."""
    made = Installation(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}")
    yield made
    made.close()

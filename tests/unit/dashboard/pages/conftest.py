"""A dashboard for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.records.runs import RunState
from tests.support.builders.stores import HOSTILE_NAMES
from tests.support.dashboard_app import Site, open_site
from tests.unit.dashboard.pages.helpers import RUN


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


@pytest.fixture
def filled(site: Site) -> Site:
    """A site with a dataset of hostile names, a model, a job, a run that trains and one that was rejected."""
    sha256 = site.builder.dataset(150, names=HOSTILE_NAMES)
    site.builder.model(sha256, RUN)
    site.builder.model(sha256, "run-000000000002", accuracy=0.9)
    site.parts.client.promote(1, "first")
    site.parts.client.promote(2, "newer")
    progress = {"stage": "training", "done": 5, "total": 10, "rate": 400.0, "eta_s": 75, "epoch": 3, "epochs": 6}
    site.builder.run("run-000000000003", name="going", state=RunState.TRAINING, epochs=2, progress=progress)
    error = {"code": "single_gender", "message": "all faces are male"}
    site.builder.run("run-000000000004", name=HOSTILE_NAMES[0], state=RunState.REJECTED, error=error)
    site.builder.job()
    return site

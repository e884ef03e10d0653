"""Which labels and which model's predictions a selection shows, from the store and from the dashboard's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.datasets.face_filter import FaceFilter
from shared.datasets.face_selection import FaceSource, StoredFaces, read_selection
from shared.errors import NotFound
from shared.faces.labels import GENDERS
from shared.records.dataset import ARCHIVE_LABELS
from shared.records.predictions import read_predictions
from tests.support.dashboard_app import Site, open_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


@pytest.fixture(params=["store", "cache"])
def source(request: pytest.FixtureRequest, site: Site) -> FaceSource:
    """Each source in turn."""
    return StoredFaces(site.builder.store) if request.param == "store" else site.parts.store_cache


def test_the_champion_is_shown_then_the_newest_model_that_has_predictions(site: Site, source: FaceSource) -> None:
    sha256, store = site.builder.dataset(60), site.builder.store
    assert read_selection(source, sha256, FaceFilter()).wanted.version is None
    first, second, third, fourth = (site.builder.model(sha256, f"run-{letter}", accuracy=0.8) for letter in "abcd")
    for run in ("run-b", "run-d"):  # as after these runs were deleted
        store.delete(f"runs/{run}/predictions.csv")

    assert read_selection(source, sha256, FaceFilter()).wanted.version == third
    site.parts.client.promote(first, "a test")
    assert read_selection(source, sha256, FaceFilter()).wanted.version == first
    assert read_selection(source, sha256, FaceFilter(version=99)).wanted.version == first
    assert read_selection(source, sha256, FaceFilter(version=third)).wanted.version == third
    site.parts.client.promote(second, "a test")
    found = read_selection(source, sha256, FaceFilter(other=fourth))
    assert found.wanted.version == third
    assert found.others is None
    assert found.probabilities is not None
    card = site.parts.client.registry.card(third)
    np.testing.assert_array_equal(found.probabilities, read_predictions(store, sha256, card))


def test_the_labels_are_those_in_force_those_of_a_run_or_those_of_the_archive(site: Site, source: FaceSource) -> None:
    sha256, edits = site.builder.dataset(60), site.parts.client.edits
    archive = read_selection(source, sha256, FaceFilter()).data.gender
    other = "female" if GENDERS[archive[0]] == "male" else "male"
    edits.add(sha256, other, [0])
    frozen = edits.freeze(sha256)
    assert frozen is not None
    edits.add(sha256, "restore", [0])
    edits.add(sha256, "exclude", [1])

    def labels(asked: str) -> tuple[str, bool]:
        data = read_selection(source, sha256, FaceFilter(labels=asked)).data
        return GENDERS[data.gender[0]], bool(data.edits[1])

    assert labels("") == (GENDERS[archive[0]], True)
    assert labels(frozen) == (other, False)
    assert labels(ARCHIVE_LABELS) == (GENDERS[archive[0]], False)
    with pytest.raises(NotFound, match="has no edits 0000"):
        labels("0" * 64)
    with pytest.raises(NotFound):
        read_selection(source, "0" * 64, FaceFilter())

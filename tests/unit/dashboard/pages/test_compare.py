"""Two models on the same faces."""

from __future__ import annotations

import csv
import io

import numpy as np

from dashboard.face_grid import AGREEMENTS
from tests.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import sha_of


def correct_by(site: Site, version: int, threshold: float = 0.5) -> np.ndarray:
    sha256 = sha_of(site)
    probabilities = site.parts.store_cache.predictions(sha256, version)
    assert probabilities is not None
    return np.asarray((probabilities >= threshold) == (site.parts.store_cache.dataset(sha256).gender == 1))


def test_the_four_cells_of_two_models_lead_to_their_faces(filled: Site) -> None:
    first, second = correct_by(filled, 1), correct_by(filled, 2)
    expected = {
        "both_correct": first & second,
        "only_first": first & ~second,
        "only_second": ~first & second,
        "both_wrong": ~first & ~second,
    }
    assert expected.keys() == AGREEMENTS.keys()
    for cell, mask in expected.items():
        query = f"version=1&other=2&agreement={cell}"
        rows = csv.DictReader(io.StringIO(filled.web.get(f"/api/v1/datasets/{sha_of(filled)}/faces.csv?{query}").text))
        assert [int(row["index"]) for row in rows] == np.flatnonzero(mask).tolist()
        page = filled.web.get(f"/datasets/{sha_of(filled)}?{query}").text
        assert f">{mask.sum():,} of 150<" in page
    assert sum(mask.sum() for mask in expected.values()) == 150

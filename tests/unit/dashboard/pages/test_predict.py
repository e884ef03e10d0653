"""The page that predicts one image."""

from __future__ import annotations

import numpy as np
import pytest

from shared.faces.labels import GENDERS
from shared.faces.occlusion import GRID, make_occlusions
from shared.messages import PROBE
from tests.support.dashboard_app import Site, error_of
from tests.unit.dashboard.pages.helpers import ASKS_FOR_JSON, jpeg, sha_of


def test_the_next_wrong_face_is_wrong_and_comes_later(filled: Site) -> None:
    sha256 = sha_of(filled)
    data, p = filled.parts.store_cache.dataset(sha256), filled.parts.store_cache.predictions(sha256, 2)
    assert p is not None
    wrong = np.flatnonzero((p >= 0.5) != (data.gender == 1))

    text = filled.web.get(f"/predict?dataset={sha256}&face={wrong[0]}&pick=wrong").text

    assert f"/datasets/{sha256}/faces/{wrong[1]}.png" in text
    assert "Misclassified by model 2" in text


def test_a_face_is_found_by_a_part_of_its_name_or_at_random(filled: Site) -> None:
    sha256 = sha_of(filled)

    assert f"/faces/{2}.png" in filled.web.get(f"/predict?dataset={sha256}&search=longlong").text
    assert "Try a shorter part" in filled.web.get(f"/predict?dataset={sha256}&search=zebra").text
    assert filled.web.get(f"/predict?dataset={sha256}&pick=random").status_code == 200
    beyond = filled.web.get(f"/predict?dataset={sha256}&face=150")
    assert beyond.status_code == 200
    assert "Face 150 does not exist: the dataset has 150, numbered from 0. This is face 149." in beyond.text


def test_predicting_an_image_gives_answer_label_and_the_networks_view(filled: Site) -> None:
    with filled.worker() as taken:
        answer = filled.web.post("/predict/image?name=24_1_0.jpg", data=jpeg(), content_type="image/jpeg")

    assert PROBE not in taken[0].message.headers
    body = answer.json
    assert body is not None
    assert body["true_gender"] == "female"
    assert body["reply"]["predictions"][0]["gender"] in GENDERS
    assert body["seen"].startswith("data:image/png;base64,")
    assert "24_1_0.jpg" in filled.web.get("/").text


def test_predicting_what_is_no_image_says_what_was_found(filled: Site) -> None:
    answer = filled.web.post("/predict/image", data=b"%PDF-1.4", content_type="image/jpeg")

    assert answer.status_code == 400
    assert "a PDF document" in answer.text
    for_script = filled.web.post("/predict/image", data=b"text", headers=ASKS_FOR_JSON, content_type="image/jpeg")
    assert (for_script.status_code, for_script.mimetype) == (400, "application/json")
    assert error_of(for_script.data)[1].startswith("found a text file, expected a JPEG")


def test_while_the_broker_is_away_the_reason_comes_at_once(filled: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filled.parts.event_hub, "_away", True)
    for path in ("/predict/image", "/api/v1/explanations"):
        answer = filled.web.post(path, data=jpeg(), content_type="image/jpeg", headers=ASKS_FOR_JSON)
        assert answer.status_code == 503
        assert "the broker does not answer" in error_of(answer.data)[1]


def test_occlusion_is_one_pack_through_the_queue(filled: Site) -> None:
    with filled.worker() as taken:
        answer = filled.web.post("/api/v1/explanations?model_version=2", data=jpeg(), content_type="image/jpeg")

    body = answer.json
    assert body is not None
    assert len(taken) == 1
    assert taken[0].message.headers[PROBE] is True
    assert (len(body["drop"]), len(body["drop"][0])) == (GRID, GRID)
    assert body["model"]["version"] == 2


def test_the_patches_cover_the_whole_face_and_leave_the_rest_alone() -> None:
    face = np.full((128, 128), 7, np.uint8)

    covered = np.stack(make_occlusions(face))

    assert covered.shape == (GRID * GRID, 128, 128)
    assert np.all((covered == 128).any(axis=0))
    assert np.all((covered == 128).mean(axis=(1, 2)) < 0.06)
    assert np.all(face == 7)

"""Two models on the same faces."""

from __future__ import annotations

import csv
import html
import io
import re

import numpy as np

from shared.datasets.face_filter import AGREEMENTS
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import RUN, csrf_of, sha_of


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


def test_a_second_model_is_chosen_on_the_workbench_and_where_the_two_disagree_is_one_value(filled: Site) -> None:
    path, count = f"/datasets/{sha_of(filled)}", int((correct_by(filled, 1) != correct_by(filled, 2)).sum())
    assert 0 < count < 150
    alone = filled.web.get(f"{path}?version=1").text
    assert "models disagree" not in alone
    assert re.search(r'<select id="f-other" name="other"><option value="">none</option>.*<option>2</option>', alone)

    page = filled.web.get(f"{path}?version=1&other=2").text
    link = re.search(r'data-value="disagree" href="([^"]+)#faces"><span>models disagree</span>.*?>(\d+)<', page)

    assert link is not None
    assert link[2] == str(count)
    chosen = filled.web.get(html.unescape(link[1])).text
    assert f">{count} of 150<" in chosen
    assert "<option selected>2</option>" in chosen
    assert "models=disagree" in html.unescape(link[1])
    assert "models disagree" not in filled.web.get(f"{path}?version=1&other=1").text


def test_two_models_are_compared_with_cells_gains_and_faces(filled: Site) -> None:
    first, second = correct_by(filled, 1), correct_by(filled, 2)
    test = filled.parts.store_cache.dataset(sha_of(filled)).split == 2
    page = filled.web.get("/compare?first=1&second=2").text
    found = filled.web.get("/api/v1/compare?first=1&second=2").json or {}

    assert found["agreement"] == {
        "both_correct": int((first & second & test).sum()),
        "only_first": int((first & ~second & test).sum()),
        "only_second": int((~first & second & test).sum()),
        "both_wrong": int((~first & ~second & test).sum()),
    }
    assert found["turned_wrong"] == np.flatnonzero(first & ~second & test).tolist()
    assert found["sentence"] in html.unescape(page)
    cells = re.findall(r'<td><a class="\w+" href="([^"]+)"><strong>(\d+)</strong>', page)
    assert [int(count) for _, count in cells] == [
        found["agreement"][cell] for cell in ("both_correct", "only_first", "only_second", "both_wrong")
    ]
    for url, count in cells + re.findall(r'class="grow"><a href="([^"]+)">[^<]+</a>.*?data-label="Faces">(\d+)<', page):
        assert f">{count} of 150<" in filled.web.get(html.unescape(url)).text, url
    assert 'action="/models/1/promote"' in page
    assert 'action="/models/2/promote"' not in page  # the champion


def test_the_cells_and_groups_of_all_faces_lead_to_none_that_an_edit_left_out(filled: Site) -> None:
    filled.parts.client.edits.add(sha_of(filled), "exclude", range(50))
    page = filled.web.get("/compare?first=1&second=2&split=all").text

    cells = re.findall(r'<td><a class="\w+" href="([^"]+)"><strong>(\d+)</strong>', page)
    groups = re.findall(r'class="grow"><a href="(/datasets/[^"]+)">[^<]+</a>.*?data-label="Faces">(\d+)<', page)
    assert sum(int(count) for _, count in cells) == 100
    assert len(groups) > 2
    for url, count in cells + groups:
        assert f">{count} of 150<" in filled.web.get(html.unescape(url)).text, url


def test_a_model_that_has_not_predicted_the_dataset_is_asked_to_and_then_compared(filled: Site) -> None:
    other = filled.builder.dataset(40)
    web = filled.web
    query = f"first=1&second=2&dataset={other}"
    assert web.get(f"/api/v1/compare?{query}").status_code == 409
    assert "Predict all faces with model 1" in web.get(f"/compare?{query}").text
    with filled.job_worker():
        for version in ("1", "2"):
            form = {"csrf": csrf_of(web), "version": version, "dataset": other}
            answer = web.post(f"/compare/predict?{query}", data=form)
            assert "first=1" in answer.headers["Location"]
            filled.parts.scoring.wait(20)
            assert filled.parts.scoring.state.error is None

    assert "Both models are correct on" in web.get(f"/compare?{query}").text


def test_the_matrix_has_every_model_on_every_dataset(filled: Site) -> None:
    sha256, right = sha_of(filled), [correct_by(filled, version) for version in (1, 2)]
    test = filled.parts.store_cache.dataset(sha256).split == 2
    filled.builder.dataset(40)
    found = filled.web.get("/api/v1/compare/matrix").json or {}
    page = filled.web.get("/compare").text

    assert found["models"] == [2, 1]
    assert len(found["cells"]) == 4
    shares = {
        (cell["version"], cell["dataset"]): cell["accuracy"] and cell["accuracy"]["share"] for cell in found["cells"]
    }
    assert [shares.pop((version, sha256)) for version in (1, 2)] == [correct[test].mean() for correct in right]
    assert list(shares.values()) == [None, None]
    assert page.count('aria-label="Predict this dataset with model') == 2


def test_the_form_keeps_the_dataset_that_is_compared_however_old_it_is(filled: Site) -> None:
    old = sha_of(filled)
    for i in range(10):
        filled.builder.run(f"run-00000000010{i}", dataset=filled.builder.dataset(20 + i))

    page = filled.web.get("/compare?first=1&second=2").text
    form = page.partition('<select id="dataset"')[2].partition("</select>")[0]

    assert f'<option value="{old}" selected>' in form
    assert form.count("<option") == 11


def test_predicting_in_the_matrix_keeps_the_comparison_and_the_matrix_follows(filled: Site) -> None:
    own, other, web = sha_of(filled), filled.builder.dataset(40), filled.web

    def matrix() -> str:
        return web.get("/compare?first=1&second=2&threshold=0.7").text.partition('id="all-models"')[2]

    region = matrix()
    assert region.startswith(' data-live="job.*"')
    action = re.search(r'action="(/compare/predict[^"]*)">', region)
    assert action is not None
    # Without a worker it goes on for as long as the test looks.
    answer = web.post(html.unescape(action[1]), data={"csrf": csrf_of(web), "version": "2", "dataset": other})
    going = matrix()
    with filled.job_worker():
        filled.parts.scoring.wait(20)
    done = matrix()

    assert f"/compare?first=1&second=2&dataset={own}&split=test&threshold=0.7&" in answer.headers["Location"]
    assert going.count("disabled>Predict</button>") == 2
    assert "data-busy" in going
    assert "disabled" not in done
    assert "data-busy" not in done
    assert done.count(">Predict</button>") == 1


def test_what_cannot_be_compared_is_said(filled: Site) -> None:
    for query, status in (
        ("", 400),
        ("first=1", 400),
        ("first=1&second=9", 404),
        ("first=1&second=2&split=half", 400),
        ("first=1&second=2&threshold=2", 400),
        ("first=1&second=2&dataset=abc", 404),
    ):
        assert filled.web.get(f"/api/v1/compare?{query}").status_code == status, query


def test_after_edits_a_comparison_is_shown_by_old_and_by_new_labels(filled: Site) -> None:
    web, sha256 = filled.web, sha_of(filled)
    before = web.get("/api/v1/compare?first=1&second=2").json or {}
    wrong = before["turned_wrong"] + before["turned_correct"]
    data = filled.parts.store_cache.dataset(sha256)
    for gender, change in enumerate(("female", "male")):
        faces = [face for face in wrong if data.gender[face] == gender]
        if faces:
            filled.parts.client.edits.add(sha256, change, faces)

    after = web.get("/api/v1/compare?first=1&second=2").json or {}
    old = web.get("/api/v1/compare?first=1&second=2&labels=archive").json or {}
    page = web.get("/compare?first=1&second=2").text

    assert old["agreement"] == before["agreement"]
    # Where the labels were turned, the models have changed places.
    assert after["agreement"]["only_first"] == before["agreement"]["only_second"]
    assert after["agreement"]["only_second"] == before["agreement"]["only_first"]
    assert "Labels of the archive" in page
    assert 'aria-current="true">Labels as corrected now' in page
    cell = re.search(r'<a class="wrong" href="([^"]+)"><strong>(\d+)</strong><span class="small">turned wrong', page)
    assert cell is not None
    assert f">{cell[2]} of 150<" in web.get(html.unescape(cell[1])).text
    # A run was measured by the labels that it was given.
    assert web.get(f"/runs/{RUN}").text.count("labels=archive") > 4


def test_a_model_whose_dataset_is_not_here_is_compared_on_the_others(filled: Site) -> None:
    sha256, elsewhere = sha_of(filled), filled.builder.dataset(40)
    version = filled.builder.model(elsewhere, "run-000000000009")
    filled.store.delete(f"datasets/{elsewhere}")

    page = filled.web.get(f"/compare?first=1&second={version}").text

    assert f"Predict all faces with model {version}" in page
    assert f'<option value="{sha256}" selected>' in page
    assert filled.web.get(f"/models/{version}").status_code == 200


def test_runs_side_by_side_lead_to_the_comparison_of_their_models(filled: Site) -> None:
    page = filled.web.get(f"/runs/compare?run=run-000000000002&run={RUN}").text

    assert 'href="/compare?first=1&amp;second=2"' in page
    assert "on the same faces" not in filled.web.get(f"/runs/compare?run={RUN}&run=run-000000000003").text


def test_a_model_that_learned_from_another_dataset_is_named_beside_the_verdict(filled: Site) -> None:
    other = filled.builder.dataset(40)
    with filled.job_worker():
        for version in (1, 2):
            filled.parts.scoring.score(other, version)
            filled.parts.scoring.wait(20)
    query = f"first=1&second=2&split=all&dataset={other}"

    assert 'id="caution"' not in filled.web.get("/compare?first=1&second=2").text
    page = filled.web.get(f"/compare?{query}").text
    answer = filled.web.get(f"/api/v1/compare?{query}").json or {}

    told = "Model 1 and model 2 learned from another dataset. Faces that lie in both may be among those"
    assert told in page.partition('id="caution">')[2]
    assert answer["caution"].startswith(told)


def test_a_damaged_file_of_predictions_leaves_every_page_there(filled: Site) -> None:
    sha256, store = sha_of(filled), filled.builder.store
    key = f"runs/{RUN}/predictions.csv"
    whole = store.get(key)
    pages = ["/models", "/models/1", f"/runs/{RUN}", f"/datasets/{sha256}?version=1", "/compare"]
    pages += ["/compare?first=1&second=2", f"/api/v1/datasets/{sha256}/faces"]
    for damaged in (whole[: len(whole) // 2], whole + b"150,0.5\n"):
        store.put(key, damaged)
        filled.parts.store_cache.forget("model", "1")
        assert {path: filled.web.get(path).status_code for path in pages} == dict.fromkeys(pages, 200)
        assert "has not predicted" in filled.web.get("/api/v1/models/1/measures").text
    matrix = filled.web.get("/api/v1/compare/matrix").json or {}
    assert {cell["version"]: cell["accuracy"] is None for cell in matrix["cells"]} == {1: True, 2: False}

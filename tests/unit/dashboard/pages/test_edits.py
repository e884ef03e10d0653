"""Looking at a dataset before training, correcting its labels without scripts, and training on what came of it."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import cv2
import numpy as np
import pytest

from shared.faces.labels import GENDERS, Label
from shared.faces.synthetic import draw_face
from shared.messages import parse_dataset
from shared.records.runs import RunState, Timings
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import RUN, csrf_of, sha_of


def test_a_face_is_corrected_on_its_page_and_the_correction_undone(filled: Site) -> None:
    sha256, web = sha_of(filled), filled.web
    gender = ("male", "female")[int(filled.parts.store_cache.dataset(sha256).gender[5])]
    other = "female" if gender == "male" else "male"
    page = f"/datasets/{sha256}/faces/5?sort=suspects&version=1"
    action = unescape(re.findall(r'action="([^"]+/edits[^"]*)"', web.get(page).text)[0])

    answer = web.post(action, data={"csrf": csrf_of(web), "face": "5", "change": other})
    assert (answer.status_code, answer.location) == (303, f"{page.partition('?')[0]}?version=1&sort=suspects&as_of=0")
    text = web.get(page).text
    assert f'gender-{other}">{other}</span> <span class="badge warn">corrected</span>' in text
    assert f"{gender} in the archive" in text
    assert "1 edit of this face" in text

    web.post(action, data={"csrf": csrf_of(web), "face": "5", "change": "undo", "number": "1"})
    text = web.get(page).text
    assert f'gender-{gender}">{gender}</span>' in text
    assert "(undone)" in text


def test_no_suspect_is_passed_over_by_somebody_who_corrects_the_first_ones_and_goes_on(filled: Site) -> None:
    sha256, web = sha_of(filled), filled.web
    (as_of,) = re.findall(r'data-as-of="([0-9]+)"', web.get(f"/datasets/{sha256}?sort=suspects").text)
    faces = f"/api/v1/datasets/{sha256}/faces?sort=suspects&as_of={as_of}"
    order = [face["index"] for face in (web.get(f"{faces}&limit=40").json or {})["faces"]]

    filled.parts.client.edits.add(sha256, "male", order[:5])
    filled.parts.client.edits.add(sha256, "exclude", order[5:10])

    found = (web.get(f"{faces}&offset=10&limit=30").json or {})["faces"]
    assert [face["index"] for face in found] == order[10:]
    looked_at = (web.get(f"{faces}&limit=10").json or {})["faces"]
    assert [face["index"] for face in looked_at] == order[:10]
    assert [face["edited"] for face in looked_at[5:]] == ["excluded"] * 5
    now = (web.get(faces.partition("&as_of")[0] + "&limit=30").json or {})["faces"]
    assert [face["index"] for face in now] == order[10:]  # who comes anew begins behind them


def test_no_suspect_is_passed_over_by_somebody_who_undoes_edits_and_goes_on(filled: Site) -> None:
    sha256, web, edits = sha_of(filled), filled.web, filled.parts.client.edits
    faces = f"/api/v1/datasets/{sha256}/faces?sort=suspects"
    order = [face["index"] for face in (web.get(f"{faces}&limit=40").json or {})["faces"]]
    for index in order[:3]:
        edits.add(sha256, "exclude", [index])
    edits.undo(sha256, 2)
    (as_of,) = re.findall(r'data-as-of="([0-9]+)"', web.get(f"/datasets/{sha256}?sort=suspects").text)
    first = [face["index"] for face in (web.get(f"{faces}&limit=10&as_of={as_of}").json or {})["faces"]]
    assert first == [order[1], *order[3:12]]

    edits.undo(sha256, 1)
    edits.undo(sha256, 3)

    rest = [face["index"] for face in (web.get(f"{faces}&limit=28&offset=10&as_of={as_of}").json or {})["faces"]]
    assert first + rest == [order[1], *order[3:40]]


@pytest.mark.parametrize("view", ["sort=suspects&version=1", "result=wrong&version=1"])
def test_who_edits_a_face_on_its_page_keeps_the_place_in_the_view(filled: Site, view: str) -> None:
    sha256, web = sha_of(filled), filled.web
    found = (web.get(f"/api/v1/datasets/{sha256}/faces?{view}&limit=40").json or {})["faces"]
    order = [face["index"] for face in found]
    other = "female" if found[0]["gender"] == "male" else "male"

    def place(text: str) -> tuple[str, list[str]]:
        said = re.search(r'<p class="muted small">([^<]*?)\. Keys', text)
        assert said is not None
        return said[1], re.findall(r'rel="(?:prev|next)" href="[^"]*/faces/([0-9]+)', text)

    page = web.get(f"/datasets/{sha256}/faces/{order[0]}?{view}").text
    action = unescape(re.findall(r'action="([^"]+/edits[^"]*)"', page)[0])
    answer = web.post(action, data={"csrf": csrf_of(web), "face": str(order[0]), "change": other})
    edited = web.get(answer.location).text

    assert ">corrected</span>" in edited
    assert place(edited) == place(page)
    assert place(page)[1] == [str(order[1])]
    (following,) = re.findall(r'rel="next" href="([^"]+)"', edited)
    assert place(web.get(unescape(following)).text)[1] == [str(order[0]), str(order[2])]


def test_a_face_cannot_be_edited_where_other_labels_are_shown(filled: Site) -> None:
    sha256, web, edits = sha_of(filled), filled.web, filled.parts.client.edits
    edits.add(sha256, "exclude", [5])
    frozen = edits.freeze(sha256)
    for labels, words in (("archive", "Labels of the archive."), (frozen, f"the edits {str(frozen)[:12]}.")):
        for view in (f"labels={labels}", f"labels={labels}&edited=confirmed"):  # where the face is found, and not
            page = web.get(f"/datasets/{sha256}/faces/5?{view}").text
            assert words in page
            assert "/edits" not in page
    (link,) = re.findall(r'<a href="([^"]+)">Show the labels as corrected now</a>', page)
    now = web.get(unescape(link)).text
    assert 'name="change" value="restore"' in now
    assert "Show the labels as corrected now" not in now


def test_what_a_dataset_counts_follows_its_edits_and_each_number_leads_to_as_many_faces(filled: Site) -> None:
    sha256, web, edits = sha_of(filled), filled.web, filled.parts.client.edits
    summary = filled.parts.store_cache.summary(sha256)
    assert summary is not None
    before = web.get(f"/datasets/{sha256}/counts.json").json or {}
    assert {name: before[name] for name in ("faces", "genders", "ages", "ethnicities", "splits")} == {
        name: getattr(summary, name) for name in ("faces", "genders", "ages", "ethnicities", "splits")
    }
    males = np.flatnonzero(filled.parts.store_cache.dataset(sha256).gender == 0).tolist()
    edits.add(sha256, "female", males[:50])
    edits.add(sha256, "exclude", males[50:55])

    counts = web.get(f"/datasets/{sha256}/counts.json").json or {}

    def total(**filters: str) -> int:
        found = web.get(f"/api/v1/datasets/{sha256}/faces", query_string={**filters, "split": "all"}).json or {}
        return int(found["total"])

    assert (counts["faces"], counts["excluded"]) == (145, 5)
    assert counts["genders"] == {gender: total(gender=gender) for gender in GENDERS}
    for field, table in (("age", counts["ages"]), ("ethnicity", counts["ethnicities"])):
        for value, genders in table.items():
            assert genders == {gender: total(gender=gender, **{field: value}) for gender in GENDERS}
    page = web.get(f"/datasets/{sha256}").text
    assert f"only {100 * counts['genders']['male'] / 145:.0f} % of the faces are male" in page
    assert f"{counts['genders']['male']} male and {counts['genders']['female']} female faces" in page
    for split, words in (("train", "Training"), ("validation", "Validation"), ("test", "Test")):
        assert f"<dt>{words} set</dt><dd>{sum(counts['splits'][split].values())}</dd>" in page
    assert web.get(f"/datasets/{sha256}/counts.json?labels=archive").json == before
    assert re.search(
        r'data-value="all"[^>]*aria-current="true"><span>all but', web.get(f"/datasets/{sha256}?split=all").text
    )


def test_a_face_that_a_model_was_trained_without_is_called_left_out(filled: Site) -> None:
    sha256, web, edits = sha_of(filled), filled.web, filled.parts.client.edits
    index = int(np.flatnonzero(filled.parts.store_cache.dataset(sha256).split == 0)[0])
    edits.add(sha256, "exclude", [index])
    frozen = edits.freeze(sha256)
    filled.store.update_json(
        "models/gender/1/card.json", lambda card: {**card, "dataset": {**card["dataset"], "edits": frozen}}
    )
    edits.add(sha256, "restore", [index])

    found = (web.get(f"/api/v1/datasets/{sha256}/faces/{index}").json or {})["predictions"]

    roles = {prediction["version"]: prediction["role"] for prediction in found}
    assert roles == {1: "left out of its training", 2: "trained on this face"}


def test_the_corrected_set_is_trained_on_by_one_button(filled: Site) -> None:
    sha256, web = sha_of(filled), filled.web
    assert "Train on the corrected set" not in web.get(f"/datasets/{sha256}").text
    filled.parts.client.edits.add(sha256, "exclude", [3, 4])

    text = web.get(f"/datasets/{sha256}").text
    assert "0 labels set, 2 faces excluded" in text
    form = text[text.index('id="corrected"') :].partition("</form>")[0]
    fields = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form))
    answer = web.post(f"/datasets/{sha256}/train", data={**fields, "csrf": csrf_of(web)})

    with filled.broker.consume([filled.broker.topology.datasets], 1) as consumer:
        (delivery,) = consumer.receive(1, 1.0)
    request = parse_dataset(delivery.message)
    assert request.edits == filled.parts.client.edits.freeze(sha256)
    assert request.name == "faces corrected"
    assert request.params == filled.parts.client.runs.get("run-000000000002").params
    assert answer.location.endswith("?against=2")
    run_page = web.get(answer.location).text
    assert f'edits <span class="mono">{str(request.edits)[:12]}</span>' in run_page
    filled.builder.model(sha256, answer.location.partition("?")[0].rpartition("/")[2])
    assert "Compare with model 2" in web.get(answer.location).text


def test_a_run_is_trained_again_with_the_labels_that_it_had_unless_others_are_chosen(filled: Site) -> None:
    sha256, web, client = sha_of(filled), filled.web, filled.parts.client
    client.edits.add(sha256, "exclude", [3])
    run_id = client.train_dataset(sha256, edits="current")
    filled.builder.model(sha256, run_id)
    client.edits.add(sha256, "exclude", [4])
    own, current = str(client.runs.get(run_id).edits), str(client.edits.freeze(sha256))

    def choices(page: str) -> list[str]:
        return re.findall(r'<option value="([^"]*)">(?:as|of)', web.get(page).text.partition('id="train-edits"')[2])

    assert choices(f"/runs/{run_id}") == choices(f"/datasets/{sha256}?like={run_id}") == [own, "current", ""]
    assert choices(f"/runs/{RUN}") == choices(f"/datasets/{sha256}?like={RUN}") == ["", "current"]
    assert choices(f"/datasets/{sha256}") == ["current", ""]
    answer = web.post(f"/datasets/{sha256}/train", data={"csrf": csrf_of(web), "edits": own})
    assert client.runs.get(answer.location.rpartition("/")[2]).edits == own != current


def test_a_filtered_view_keeps_to_the_labels_that_a_run_was_measured_on(filled: Site) -> None:
    sha256, web = sha_of(filled), filled.web
    wrong = f"/datasets/{sha256}?version=1&result=wrong&split=test"
    before = re.findall(r">(\d+) of 150<", web.get(wrong).text)
    data = filled.parts.store_cache.dataset(sha256)
    test = np.flatnonzero(data.split == 2).tolist()
    filled.parts.client.edits.add(sha256, "exclude", test)

    assert re.findall(r">(\d+) of 150<", web.get(wrong).text) == ["0"]
    assert re.findall(r">(\d+) of 150<", web.get(f"{wrong}&labels=archive").text) == before
    cells = re.findall(
        r'data-cell="[a-z-]+" href="([^"]+)#faces"><strong>([\d,]+)</strong>', web.get(f"/runs/{RUN}").text
    )
    assert sum(int(count) for _, count in cells) == len(test)
    for href, count in cells:
        assert f">{count} of 150<" in web.get(unescape(href)).text


def test_a_model_is_measured_by_the_labels_that_it_was_trained_with(filled: Site) -> None:
    sha256, web, client = sha_of(filled), filled.web, filled.parts.client
    accuracy = client.measure(1).accuracy
    test = np.flatnonzero(filled.parts.store_cache.dataset(sha256).split == 2)[:5].tolist()
    client.edits.add(sha256, "exclude", test)

    def measured(query: str) -> dict[str, Any]:
        found: Any = web.get(f"/api/v1/models/1/measures{query}").json
        accuracy: dict[str, Any] = found["accuracy"]
        return accuracy

    assert measured("") == measured("?labels=archive") == accuracy.model_dump(mode="json")
    assert client.measure(1).accuracy == accuracy
    assert measured("?labels=")["total"] == accuracy.total - 5


def test_a_dataset_that_was_only_read_shows_its_faces_and_a_way_to_train(site: Site) -> None:
    sha256 = site.builder.dataset(60)
    site.builder.run("run-00000000000a", name="look", state=RunState.INGESTED, dataset=sha256)

    text = site.web.get(f"/datasets/{sha256}").text
    assert "was read and not trained on yet" in text
    assert "Few faces" in text
    assert "Rejected files" in text
    assert "with a near-duplicate" in text
    assert 'href="#train"' in text
    assert "No model has been trained yet" in text
    run_page = site.web.get("/runs/run-00000000000a").text
    assert "ingested" in run_page
    assert f"/datasets/{sha256}" in run_page

    site.builder.model(sha256, RUN)
    assert "not trained on yet" not in site.web.get(f"/datasets/{sha256}").text


def test_the_form_says_how_long_training_will_take(site: Site) -> None:
    trained, other = site.builder.dataset(150), site.builder.dataset(300)
    site.builder.model(trained, RUN, timings=Timings(training_at=100.0, registered_at=220.0))
    counts = [site.parts.store_cache.summary(sha256) for sha256 in (trained, other)]
    faces = [sum(summary.splits["train"].values()) for summary in counts if summary]

    text = " ".join(site.web.get(f"/datasets/{other}").text.split())

    minutes, seconds = divmod(round(120 * faces[1] / faces[0]), 60)
    assert (
        f"About {minutes} min {seconds} s, at the speed of the last run ({faces[0]} faces, 12 epochs in 2 min 0 s)"
        in text
    )


def test_a_thumbnail_has_a_seventh_of_a_pngs_bytes(site: Site) -> None:
    random = np.random.default_rng(3)
    drawn = [draw_face(Label(30, index % 2, 0), random) for index in range(20)]
    pixels = np.stack([cv2.resize(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), (128, 128)) for face in drawn])
    path = f"/datasets/{site.builder.dataset(20, pixels.astype(np.uint8))}/faces"

    sizes = [
        sum(len(site.web.get(f"{path}/{index}.{kind}").data) for index in range(20)) for kind in ("webp", "png?size=96")
    ]

    assert 5.5 < sizes[1] / sizes[0] < 9, sizes


def test_thumbnails_are_small_and_a_sheet_has_the_faces_that_were_named(filled: Site) -> None:
    sha256, web = sha_of(filled), filled.web
    one = web.get(f"/datasets/{sha256}/faces/3.webp")
    png = web.get(f"/datasets/{sha256}/faces/3.png")
    assert (one.mimetype, one.headers["Cache-Control"]) == ("image/webp", png.headers["Cache-Control"])
    assert len(one.data) < len(png.data)

    sheet = web.get(f"/datasets/{sha256}/faces/sheet.webp?faces={','.join(map(str, range(10)))}")
    picture = cv2.imdecode(np.frombuffer(sheet.data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    assert picture.shape == (2 * 96, 8 * 96)
    faces = filled.parts.store_cache.dataset(sha256).faces
    for index in (0, 7, 8):
        y, x = (96 * number for number in divmod(index, 8))
        wanted = cv2.resize(faces[index], (96, 96), interpolation=cv2.INTER_AREA)
        assert np.abs(picture[y : y + 96, x : x + 96].astype(int) - wanted).mean() < 6
    for query in ("", "faces=", "faces=1,x", "faces=-1", f"faces={','.join(['1'] * 65)}", f"faces={'1' * 5000}"):
        assert web.get(f"/datasets/{sha256}/faces/sheet.webp?{query}").status_code == 400
    assert web.get(f"/datasets/{sha256}/faces/sheet.webp?faces=150").status_code == 404

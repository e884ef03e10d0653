"""The pages of runs."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest

from shared.faces.labelling import LabelReport, LabelValue
from shared.faces.labels import GENDERS
from shared.params import TrainingParams
from shared.records.runs import Progress, RunState
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import RUN, csrf_of, sha_of


def test_runs_are_paged(site: Site) -> None:
    for i in range(55):
        site.builder.run(f"run-{i:012d}", created=f"2026-01-01T00:00:{i:02d}.000Z")

    first, second, past = (site.web.get(f"/runs{query}").text for query in ("", "?page=2", "?page=9"))

    assert "run-000000000054" in first
    assert "run-000000000004" not in first
    assert "run-000000000004" in second
    assert "Page 2 of 2" in second
    assert "run-000000000004" in past
    assert "Page 2 of 2" in past


def test_the_first_run_appears_on_the_open_list(site: Site) -> None:
    region = site.web.get("/runs").text.partition('id="runs" data-live="run.*"')[2]
    assert "No runs yet" in region
    site.builder.run("run-000000000001")
    assert "run-000000000001" in site.web.get("/runs").text.partition('id="runs" data-live="run.*"')[2]


@pytest.mark.parametrize("path", [f"/runs/{RUN}", "/models/1"])
def test_suspects_that_were_looked_at_are_suspected_no_more(filled: Site, path: str) -> None:
    def suspects(page: str) -> list[str]:
        return re.findall(r"/faces/(\d+)\?", filled.web.get(page).text.partition('id="suspects"')[2])

    before, sha256 = suspects(path), sha_of(filled)
    data = filled.parts.store_cache.dataset(sha256)
    filled.parts.client.edits.add(sha256, "exclude", [int(before[0])])
    filled.parts.client.edits.add(sha256, GENDERS[1 - data.gender[int(before[1])]], [int(before[1])])

    after = suspects(path)

    assert len(after) == len(before) == 12
    assert not {*before[:2]} & {*after}
    listed = filled.web.get(f"/api/v1/datasets/{sha256}/faces?version=1&sort=suspects&limit=12").json or {}
    assert after == [str(face["index"]) for face in listed["faces"]]  # as "See all" shows them


def test_a_run_is_cancelled_from_its_page(filled: Site) -> None:
    web = filled.web
    answer = web.post("/runs/run-000000000003/cancel", data={"csrf": csrf_of(web)}, follow_redirects=True)

    assert "Cancelling…" in answer.text
    assert filled.builder.runs.cancel_requested("run-000000000003")


def test_a_finished_run_shows_confusion_groups_and_suspects(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    assert 'data-cell="male-female"' in text
    assert f"/datasets/{sha_of(filled)}?version=1&amp;gender=male&amp;predicted=female&amp;split=test#faces" in text
    assert "Suspected label errors" in text
    assert "ethnicity" in text


def test_beside_the_worst_group_stands_how_small_a_group_may_be(filled: Site) -> None:
    for path in (f"/runs/{RUN}", "/models/1"):
        assert "Worst group (≥ 10 faces)" in filled.web.get(path).text


def test_a_parameter_left_open_says_what_became_of_it(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    assert '<dt>batch_size</dt><dd class="mono">auto → 32</dd>' in text
    assert '<dt>mirror</dt><dd class="mono">auto → true</dd>' in text
    assert '<dt>augment</dt><dd class="mono">true</dd>' in text
    assert '<dt>budget_s</dt><dd class="mono">\N{EN DASH}</dd>' in text
    assert '<dt>augment</dt><dd class="mono">true</dd>' in filled.web.get("/models/1").text


def test_the_epochs_of_a_training_under_way_are_known(site: Site) -> None:
    progress = Progress(stage=RunState.TRAINING, done=1, total=49, epoch=1, epochs=49)
    site.builder.run(RUN, state=RunState.TRAINING, params=TrainingParams(), progress=progress)

    assert '<dt>epochs</dt><dd class="mono">auto → 49</dd>' in site.web.get(f"/runs/{RUN}").text


def test_runs_side_by_side_show_what_their_parameters_became(filled: Site) -> None:
    for run_id, params in ((RUN, TrainingParams(network="small")), ("run-000000000002", TrainingParams(epochs=12))):
        run = filled.builder.runs.get(run_id).changed(params=params)
        filled.store.put_json(filled.builder.runs.key(run_id), run.as_dict())

    text = filled.web.get(f"/runs/compare?run={RUN}&run=run-000000000002").text

    assert re.search(r">epochs</td><td[^>]*>auto → 12</td><td[^>]*>12</td>", text)
    assert re.search(r">network</td><td[^>]*>small</td><td[^>]*>auto → small</td>", text)


def test_the_drawn_intervals_have_a_scale(filled: Site) -> None:
    text = filled.web.get(f"/runs/{RUN}").text

    assert [f">{mark} %</text>" in text for mark in (0, 50, 100)] == [True] * 3


def test_curves_come_as_csv(filled: Site) -> None:
    answer = filled.web.get(f"/runs/{RUN}/history.csv")

    assert answer.text.splitlines()[0].startswith("epoch,train_loss")
    assert len(answer.text.splitlines()) == 13
    assert filled.web.get("/runs/run-000000000004/history.csv").status_code == 404


def test_the_thresholds_counts_are_those_of_the_held_out_faces(filled: Site) -> None:
    scores = filled.web.get(f"/runs/{RUN}/scores.json").json
    data = filled.parts.store_cache.dataset(sha_of(filled))
    held_out = data.split == 2

    assert scores is not None
    assert [scores[gender][0] for gender in GENDERS] == [int((held_out & (data.gender == i)).sum()) for i in (0, 1)]
    probabilities = filled.parts.store_cache.predictions(data.sha256, 1)
    assert probabilities is not None
    assert scores["male"][100] == int((held_out & (data.gender == 0) & (probabilities >= 0.5)).sum())
    assert filled.web.get("/runs/run-000000000003/scores.json").status_code == 404


def test_runs_side_by_side_show_only_the_parameters_that_differ(site: Site) -> None:
    for i, epochs in enumerate((4, 9)):
        run_id = site.builder.run(f"run-{i}", epochs=2)
        site.builder.runs.update(run_id, params=TrainingParams(epochs=epochs).as_dict())

    text = site.web.get("/runs/compare?run=run-0&run=run-1").text

    assert '<td class="line mono">epochs</td>' in text
    assert "dropout" not in text


def figures_at(site: Site, path: str) -> dict[str, str]:
    """Returns the figures that a page begins with, by their names."""
    text = site.web.get(path).text
    pairs = re.findall(r"<dt>([^<]+)</dt><dd>(.*?)</dd>", text[text.index('id="figures"') : text.index('id="matrix"')])
    return {name: re.sub(r"<[^>]+>|\s", " ", value).split("%")[0].strip() for name, value in pairs}


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("path", [f"/runs/{RUN}", "/models/1"])
def test_a_page_begins_with_figures_that_follow_the_threshold(filled: Site, path: str, threshold: float) -> None:
    data = filled.parts.store_cache.dataset(sha_of(filled))
    probabilities = filled.parts.store_cache.predictions(data.sha256, 1)
    assert probabilities is not None
    test = data.split == 2
    correct = (probabilities >= threshold) == (data.gender == 1)
    recalls = [correct[test & (data.gender == i)].mean() for i in (0, 1)]

    found = figures_at(filled, f"{path}?threshold={threshold}")

    assert found["Accuracy"] == f"{100 * correct[test].mean():.1f}"
    assert found["Balanced accuracy"] == f"{100 * np.mean(recalls):.1f}"
    assert [found["Recall male"], found["Recall female"]] == [f"{100 * recall:.1f}" for recall in recalls]


@pytest.mark.parametrize("path", [f"/runs/{RUN}", "/models/1"])
def test_every_cell_and_row_leads_to_as_many_faces_as_it_says(filled: Site, path: str) -> None:
    text = filled.web.get(f"{path}?threshold=0.7").text
    cells = re.findall(r'data-cell="[^"]+" href="([^"]+)"><strong>([\d,]+)</strong>', text)
    rows = re.findall(r'class="grow"><a href="([^"]+)">.*?data-label="Faces">([\d,]+)<', text)
    assert len(cells) == 4
    assert len(rows) > 8
    for url, count in cells + rows:
        listed = filled.web.get(html.unescape(url)).text
        assert f'<span class="muted">{count} of 150</span>' in listed, url


def test_the_gate_speaks_in_words_and_changed_faces_and_abstention_have_tables(filled: Site) -> None:
    for path, words in (
        ("/models/1", "Passed the gate:</strong> the first model."),
        ("/models/2", "Did not pass the gate:</strong> balanced accuracy 90.1%"),
        ("/runs/run-000000000002", "Did not pass the gate:</strong> balanced accuracy 90.1%"),
    ):
        text = filled.web.get(path).text
        assert words in text
        assert (
            text.index('id="gate"')
            < text.index("Confusion matrix")
            < text.index("Trained on" if "models" in path else "Loss")
        )
        assert "<td>blurred</td>" in text
        assert ">-5.0</td>" in text
        assert "About <strong>+0.9 points</strong>" in text
        assert re.search(r"<td>≥ 90\N{NO-BREAK SPACE}%</td>", text)


def test_the_thresholds_of_the_buttons_are_the_best_on_the_test_faces(filled: Site) -> None:
    data = filled.parts.store_cache.dataset(sha_of(filled))
    probabilities = filled.parts.store_cache.predictions(data.sha256, 1)
    assert probabilities is not None
    test = data.split == 2
    text = filled.web.get(f"/runs/{RUN}").text
    best, equal = (float(value) for value in re.findall(r'data-threshold="([\d.]+)"', text)[:2])

    def accuracy(threshold: float) -> float:
        return float(((probabilities >= np.float32(threshold)) == (data.gender == 1))[test].mean())

    def difference(threshold: float) -> float:
        female = probabilities >= np.float32(threshold)
        wrong = [(female != (data.gender == 1))[test & (data.gender == i)].mean() for i in (0, 1)]
        return float(abs(wrong[0] - wrong[1]))

    steps = [step / 200 for step in range(201)]
    assert accuracy(best) == max(map(accuracy, steps))
    assert difference(equal) == pytest.approx(min(map(difference, steps)))


def test_a_run_whose_dataset_is_gone_shows_what_was_measured(filled: Site) -> None:
    filled.parts.client.store.delete(f"datasets/{sha_of(filled)}")
    filled.parts.store_cache.close()

    found = figures_at(filled, f"/runs/{RUN}?threshold=0.7")

    assert found["Accuracy"] == "93.0"
    assert "False positive rate" in filled.web.get(f"/runs/{RUN}").text


def test_a_run_shows_what_was_recognized_of_the_labels(site: Site) -> None:
    report = LabelReport(
        source="folders", values=(LabelValue(value="<men>", gender="male", files=4),), labelled=4, unlabelled=2
    )
    site.builder.run(RUN, state=RunState.ACCEPTED, labels=report)
    state = site.web.get(f"/runs/{RUN}").text.partition('id="state"')[2].partition("</section>")[0]
    assert "Recognized: labels from folders; &lt;men&gt; = male (4)" in state

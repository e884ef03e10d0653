"""`compare`."""

from __future__ import annotations

import re
import zipfile

from shared.broker.base import Delivery, Outgoing
from shared.client import Client
from shared.messages import job_id_of, parse_job
from shared.records.jobs import RESULT_COLUMNS, Jobs, JobState
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import Handle, document, run, serving


def predicts_archives(client: Client) -> Handle:
    """Works jobs off that name their archive: every image is female."""

    def handle(delivery: Delivery) -> list[Outgoing]:
        request = parse_job(delivery.message)
        assert request.uri is not None
        job_id = job_id_of(request.message_id)
        client.jobs.create(job_id, message_id=request.message_id, name=request.name, state=JobState.QUEUED)
        with client.store.local(request.uri.removeprefix("store:")) as path, zipfile.ZipFile(path) as archive:
            lines = [",".join(RESULT_COLUMNS), *(f"{name},female,0.9,0.9,female,true," for name in archive.namelist())]
        client.store.put(Jobs.results_key(job_id), ("\n".join(lines) + "\n").encode())
        client.jobs.end(job_id, JobState.FINISHED, images=len(lines) - 1)
        return []

    return handle


def test_two_models_are_compared_in_words_and_for_programs(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(200)
    for run_id, accuracy in (("run-a", 0.7), ("run-b", 0.95)):
        builder.model(sha256, run_id, accuracy=accuracy)

    found = document("compare", "1", "2", "--split", "all")
    told = run("compare", "1", "2", "--split", "all").stdout

    cells = found["agreement"]
    assert sum(cells.values()) == found["first"]["total"] == 200
    assert len(found["turned_correct"]) == cells["only_second"] > 10
    assert f"Model 2 is correct on {cells['only_second'] - cells['only_first']} faces more than model 1" in told
    assert re.search(rf"model 1 wrong +{cells['only_second']} +{cells['both_wrong']}", told)
    assert f"turned right: {cells['only_second']}" in told
    assert document("compare", "1", "2")["first"]["total"] < 200
    client.edits.add(sha256, "exclude", [0, 1, 2])
    assert document("compare", "1", "2", "--split", "all")["first"]["total"] == 197
    assert document("compare", "1", "2", "--split", "all", "--labels", "archive")["agreement"] == cells


def test_a_dataset_that_a_model_has_not_predicted_is_predicted_when_asked(
    builder: StoreBuilder, client: Client
) -> None:
    own, other = builder.dataset(30), builder.dataset(24)
    for run_id in ("run-a", "run-b"):
        builder.model(own, run_id)

    refused = document("compare", "1", "2", "--dataset", other, exit_code=1)["error"]
    assert (refused["code"], "has not predicted" in refused["message"]) == ("not_found", True)
    for cell in document("compare"):
        assert (cell["accuracy"] is not None) == cell["trained_on_it"] == (cell["dataset"] == own)
    with serving(client, client.broker.topology.jobs, predicts_archives(client)):
        result = document("compare", "1", "2", "--dataset", other, "--predict", "--split", "all")

    assert result["agreement"]["only_first"] == result["agreement"]["only_second"] == 0
    assert result["first"]["total"] == 24
    assert all(cell["accuracy"] for cell in document("compare"))
    assert re.search(r"^ +2 +\S+ %? *\S+", run("compare").stdout, flags=re.MULTILINE)


def test_a_damaged_file_of_predictions_takes_away_one_cell_and_can_be_predicted_anew(
    builder: StoreBuilder, client: Client
) -> None:
    sha256, other = builder.dataset(30), builder.dataset(24)
    for run_id, dataset in (("run-a", sha256), ("run-b", sha256), ("run-c", other)):
        builder.model(dataset, run_id)
    client.store.put("runs/run-a/predictions.csv", client.store.get("runs/run-a/predictions.csv")[:100])

    measured = {(cell["version"], cell["dataset"]) for cell in document("compare") if cell["accuracy"]}
    assert measured == {(2, sha256), (3, other)}
    assert document("compare", "1", "2", exit_code=1)["error"]["code"] == "not_found"
    with serving(client, client.broker.topology.jobs, predicts_archives(client)):
        assert document("compare", "1", "2", "--predict", "--split", "all")["first"]["total"] == 30


def test_what_cannot_be_compared_is_said(builder: StoreBuilder) -> None:
    sha256 = builder.dataset(30)
    builder.model(sha256, "run-a")
    assert run("compare", "1").exit_code == 2
    assert "there is no model version 9" in run("compare", "1", "9").stderr
    assert "no edits" in run("compare", "1", "1", "--labels", "abc").stderr


def test_a_models_figures_at_a_threshold_are_shown(builder: StoreBuilder) -> None:
    sha256 = builder.dataset(200)
    builder.model(sha256, "run-a", accuracy=0.8)

    low, high = (document("models", "1", "--threshold", str(at)) for at in (0.1, 0.9))

    assert low["recall_female"]["share"] > high["recall_female"]["share"]
    assert low["recall_male"]["share"] < high["recall_male"]["share"]
    best = low["best_accuracy_threshold"]
    assert document("models", "1", "--threshold", str(best))["accuracy"]["share"] >= low["accuracy"]["share"]
    told = run("models", "1", "--threshold", "0.1").stdout
    assert "threshold 0.1" in " ".join(told.split())
    assert "FALSE POSITIVES" in told
    assert run("models", "--threshold", "0.1").exit_code == 2

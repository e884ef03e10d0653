"""`dataset edits`."""

from __future__ import annotations

import re

from shared.client import Client
from shared.messages import parse_dataset
from tests.store_builder import StoreBuilder
from tests.unit.shared.cli.helpers import document, run


def test_edits_are_made_listed_undone_and_trained_with(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(30)
    assert "no edits yet" in run("dataset", "edits", "list", sha256).stderr
    assert document("train", "--dataset", sha256, "--edits", "current", exit_code=1)["error"]["code"] == "conflict"

    assert run("dataset", "edits", "add", sha256, "female", "3", "4").stdout == (
        "edit 1 made: female 3, 4\n0 faces set to male, 2 to female, 0 excluded\n"
    )
    made = document("dataset", "edits", "add", sha256, "exclude", "9")
    assert made["edit"]["faces"] == [9]
    assert document("dataset", "edits", "undo", sha256)["edit"]["number"] == 2
    listed = document("dataset", "edits", "list", sha256)
    assert [edit["change"] for edit in listed["edits"]] == ["female", "exclude"]
    assert listed["sha256"] != made["sha256"]
    assert re.search(r"1  female +3, 4", run("dataset", "edits", "list", sha256).stdout)

    run_id = document("train", "--dataset", sha256, "--edits", "current", "--detach")["run_id"]
    assert client.runs.get(run_id).edits == listed["sha256"]
    with client.broker.consume([client.broker.topology.datasets], 1) as consumer:
        (delivery,) = consumer.receive(1, 1.0)
    assert parse_dataset(delivery.message).edits == listed["sha256"]


def test_edits_of_faces_or_datasets_that_do_not_exist_are_refused(builder: StoreBuilder) -> None:
    sha256 = builder.dataset(30)
    assert "expected faces from 0 to 29" in run("dataset", "edits", "add", sha256, "male", "30").stderr
    assert document("dataset", "edits", "list", "0" * 64, exit_code=1)["error"]["code"] == "not_found"
    assert run("train", "faces.zip", "--edits", "current").exit_code == 2

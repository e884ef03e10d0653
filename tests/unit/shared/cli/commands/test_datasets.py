"""`dataset faces` and `dataset edits`."""

from __future__ import annotations

import csv
import re
import zipfile
from pathlib import Path

import pytest

from shared.client import Client
from shared.messages import parse_dataset
from tests.support.builders.stores import StoreBuilder
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


def test_faces_are_found_as_the_page_finds_them(builder: StoreBuilder, client: Client, folder: Path) -> None:
    sha256 = builder.dataset(60)
    builder.model(sha256, "run-a", accuracy=0.8)
    builder.model(sha256, "run-b", accuracy=0.9)
    client.promote(1, "first")
    client.edits.add(sha256, "exclude", [0])

    found = document("dataset", "faces", sha256, "--where", "result=wrong", "--sort", "suspects", "--limit", "3")
    assert found["version"] == 1
    assert len(found["faces"]) == 3 < found["total"] < 60
    assert all(face["predicted"] != face["gender"] for face in found["faces"])
    surely_wrong = [face["confidence"] for face in found["faces"]]
    assert surely_wrong == sorted(surely_wrong, reverse=True)
    disagree = document("dataset", "faces", sha256, "--where", "other=2", "--where", "models=disagree")
    assert 0 < disagree["total"] < 60
    shown = run("dataset", "faces", sha256, "--where", "edited=excluded")
    assert re.search(r"^ *0 .* excluded +excluded ", shown.stdout, flags=re.MULTILINE)
    assert "1 of 60 faces, 1 shown, model version 1" in shown.stderr


def test_faces_are_written_as_csv_and_as_images(builder: StoreBuilder, folder: Path) -> None:
    sha256 = builder.dataset(60)
    assert "60 of 60 faces, written to all.csv" in run("dataset", "faces", sha256, "--out", "all.csv").stderr
    with (folder / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == [str(i) for i in range(60)]
    assert {row["predicted"] for row in rows} == {""}  # there is no model

    run("dataset", "faces", sha256, "--where", "gender=female", "--out", "women.zip")
    with zipfile.ZipFile(folder / "women.zip") as archive:
        names = set(archive.namelist())
    assert names == {"faces.csv", *(f"female/{i:06d}.png" for i, row in enumerate(rows) if row["gender"] == "female")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--where", "gender"], "expected KEY=VALUE"),
        (["--where", "gender=mal"], "expected one of male, female"),
        (["--where", "nose=long"], "expected one of version, other"),
        (["--where", "low=much"], "expected a number that fits"),
        (["--where", "threshold=1.5"], "expected a number that fits"),
        (["--sort", "size"], "expected one of archive, suspects"),
        (["--out", "faces.txt"], "ends in .csv or .zip"),
    ],
)
def test_a_filter_that_makes_no_sense_is_wrong_usage(arguments: list[str], said: str) -> None:
    result = run("dataset", "faces", "0" * 64, *arguments)

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_edits_of_faces_or_datasets_that_do_not_exist_are_refused(builder: StoreBuilder) -> None:
    sha256 = builder.dataset(30)
    assert "expected faces from 0 to 29" in run("dataset", "edits", "add", sha256, "male", "30").stderr
    assert document("dataset", "edits", "list", "0" * 64, exit_code=1)["error"]["code"] == "not_found"
    assert run("train", "faces.zip", "--edits", "current").exit_code == 2


def test_a_dataset_is_named_by_the_beginning_of_its_hash_as_lists_show_it(
    builder: StoreBuilder, client: Client, folder: Path
) -> None:
    sha256 = builder.dataset(30)
    other = builder.dataset(31)
    builder.model(sha256, "run-a", accuracy=0.8)
    shown = run("datasets").stdout
    start = sha256[:12]
    assert start in shown
    assert sha256 not in shown
    assert sha256 in run("datasets", start).stdout
    assert run("datasets", start, "--tag", "old").exit_code == 0
    assert client.annotations.all("dataset")[sha256].tags == ("old",)
    assert document("dataset", "faces", start)["total"] == 30
    assert document("dataset", "edits", "add", start, "exclude", "9")["sha256"]
    assert "undone" in run("dataset", "edits", "undo", start).stdout
    assert document("models", "1", "--dataset", start) == document("models", "1", "--dataset", sha256)
    assert run("export", "dataset", start, "dataset.zip").exit_code == 0
    assert document("delete", "dataset", other[:12])["deleted"] == other
    document("train", "--dataset", start, "--detach")
    with client.broker.consume([client.broker.topology.datasets], 1) as consumer:
        (delivery,) = consumer.receive(1, 1.0)
    assert sha256 in str(parse_dataset(delivery.message))
    assert document("datasets", "0000", exit_code=1)["error"]["message"] == "there is no dataset '0000'"


def test_a_beginning_that_several_datasets_have_is_refused(builder: StoreBuilder, client: Client) -> None:
    found = {builder.dataset(30 + i)[0] for i in range(17)}  # of 16 digits, one comes twice
    assert len(found) <= 16
    digits = [sha256[0] for sha256 in client.store.children("datasets")]
    digit = next(digit for digit in digits if digits.count(digit) > 1)
    error = document("datasets", digit, exit_code=1)["error"]
    assert error["code"] == "conflict"
    assert f"datasets begin with '{digit}': {digit}" in error["message"]


def test_an_order_may_be_asked_for_either_way(builder: StoreBuilder) -> None:
    sha256 = builder.dataset(60)
    builder.model(sha256, "run-a", accuracy=0.8)
    by_option = document("dataset", "faces", sha256, "--sort", "suspects")
    assert document("dataset", "faces", sha256, "--where", "sort=suspects") == by_option
    assert document("dataset", "faces", sha256) != by_option


@pytest.mark.parametrize(
    "command",
    [
        ("runs", "run-a", "--tag", "x", "--cancel"),
        ("runs", "run-a", "--name", "x", "--follow"),
        ("jobs", "job-a", "--note", "x", "--out", "results.csv"),
        ("models", "1", "--name", "x", "--threshold", "0.6"),
        ("models", "--name", "x", "1"),
    ],
)
def test_nothing_that_was_asked_for_is_left_out_silently(builder: StoreBuilder, command: tuple[str, ...]) -> None:
    builder.model(builder.dataset(30), "run-a", accuracy=0.8)
    refused = run(*command)
    assert refused.exit_code == 2
    assert "--name, --note, --tag and --untag" in refused.stderr

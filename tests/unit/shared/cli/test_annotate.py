"""`--name`, `--note`, `--tag` and `--untag` of datasets, runs, models and jobs."""

from __future__ import annotations

import pytest

from shared.client import Client
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import document, run


@pytest.fixture
def ids(builder: StoreBuilder) -> dict[str, str]:
    """Two of each kind, the first by its command."""
    datasets = [builder.dataset(30), builder.dataset(24)]
    for i, sha256 in enumerate(datasets):
        builder.model(sha256, f"run-{i}")
        builder.job(f"job-{i}")
    return {"datasets": datasets[0], "runs": "run-0", "models": "1", "jobs": "job-0"}


@pytest.mark.parametrize("command", ["datasets", "runs", "models", "jobs"])
def test_everything_is_named_tagged_and_found_by_its_tag(client: Client, ids: dict[str, str], command: str) -> None:
    which = ids[command]

    told = run(command, which, "--name", "winter", "--note", "with glasses", "--tag", "best", "--tag", "new").stdout

    assert told == f"{command[:-1]} {which}: name winter; tags best, new; note with glasses\n"
    assert document(command, which)["annotation"]["tags"] == ["best", "new"]
    for listed in (run(command).stdout, run(command, "--tag", "best").stdout):
        assert "winter" in listed
        assert "best, new" in listed
    listed = document(command, "--tag", "best")
    rows = listed["versions"] if command == "models" else listed
    assert [row["annotation"]["name"] for row in rows] == ["winter"]
    assert document(command, which, "--untag", "new", "--name", "")["annotation"] | {"updated": None} == {
        "name": None,
        "note": "with glasses",
        "tags": ["best"],
        "updated": None,
        "by": None,
    }
    assert "with glasses" in run(command, which).stdout


@pytest.mark.parametrize("command", ["datasets", "runs", "models", "jobs"])
def test_what_is_not_there_or_cannot_be_shown_is_refused(ids: dict[str, str], command: str) -> None:
    missing = "9" if command == "models" else "nope"
    assert document(command, missing, "--note", "x", exit_code=1)["error"]["code"] == "not_found"
    assert "on one line" in run(command, ids[command], "--name", "a\nb").stderr
    assert run(command, "--name", "x").exit_code == 2

"""`genderline doctor` on installations that are well, and on some that are not."""

from __future__ import annotations

import json
import os
import resource
import uuid
from pathlib import Path

import pytest
import torch

from tests.support.brokers.rabbitmq_node import RabbitNode
from tests.unit.shared.cli.helpers import document, run


def states(*, exit_code: int = 0) -> dict[str, str]:
    return {finding["check"]: finding["state"] for finding in document("doctor", exit_code=exit_code)}


def test_a_new_installation_is_well_but_for_services_that_do_not_run() -> None:
    found = states()
    assert found.pop("services") == "warning"
    assert set(found.values()) <= {"ok", "warning"}
    assert {"versions", "store", "broker", "clock", "file system of the broker"} <= found.keys()
    text = run("doctor").stdout
    assert "ok       broker: sqlite:///data/broker.db confirmed and delivered a message" in text
    assert "→ start them: `genderline up` on one machine" in text


def test_what_it_tried_is_gone_afterwards(folder: Path) -> None:
    run("doctor")
    left = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {name for name in left if "broker.db" not in name} == {
        "data/store/format.json",
        "data/store/identity.json",
    }


def test_a_device_a_folder_and_a_root_that_are_not_there_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDERLINE_DEVICE", "cuda")
    monkeypatch.setenv("GENDERLINE_INBOX", "/proc/inbox")
    monkeypatch.setenv("GENDERLINE_ALLOWED_ROOTS", str(folder / "nowhere"))
    findings = {finding["check"]: finding for finding in document("doctor", exit_code=1)}
    assert findings["folders"]["state"] == "problem"
    assert findings["folders"]["found"].startswith("/proc/inbox: ")
    if not torch.cuda.is_available():
        assert findings["device"]["state"] == "problem"
        assert "finds no CUDA device" in findings["device"]["found"]
    monkeypatch.setenv("GENDERLINE_DEVICE", "auto")
    monkeypatch.delenv("GENDERLINE_INBOX")
    found = states()
    assert "device" not in found
    assert (found["watched folder"], found["allowed roots"]) == ("ok", "warning")


def test_what_it_makes_is_private(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        run("doctor")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    made = [folder / "data", *(folder / "data").rglob("*")]
    assert folder / "data" / "broker.db" in made
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_a_disk_that_takes_nothing_is_a_problem_and_the_rest_is_looked_at() -> None:
    """The kernel refuses every byte of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        found = run("doctor", "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    states = {finding["check"]: finding for finding in json.loads(found.stdout)}
    assert (found.exit_code, states["file system of the broker"]["state"]) == (1, "problem")
    assert states["file system of the broker"]["found"].startswith("SQLite: ")
    assert states["memory and cores"]["state"] == "ok"


@pytest.mark.slow
def test_a_broker_that_is_away_is_a_problem_and_the_rest_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_BROKER_URL", "amqp://user:hunter2@127.0.0.1:1/")
    found = states(exit_code=1)
    assert (found["broker"], found["store"]) == ("problem", "ok")
    assert "hunter2" not in run("doctor").output


@pytest.mark.rabbitmq
def test_rabbitmq_that_is_well_is_told_so(rabbitmq: RabbitNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_BROKER_URL", rabbitmq.url)
    monkeypatch.setenv("GENDERLINE_QUEUE_PREFIX", f"t{uuid.uuid4().hex[:10]}")
    found = states()
    assert found["broker"] == "ok"
    assert "file system of the broker" not in found


def test_a_store_of_another_release_is_a_problem_with_words(folder: Path) -> None:
    (folder / "data" / "store").mkdir(parents=True)
    (folder / "data" / "store" / "format.json").write_text('{"format": 99}')
    assert states(exit_code=1)["store"] == "problem"
    assert "has format 99; this release reads format 1" in run("doctor").stdout


def test_a_place_that_cannot_be_written_is_named_for_each(folder: Path) -> None:
    (folder / "data").write_text("a file where a folder is expected")
    found = states(exit_code=1)
    assert (found["store"], found["broker"]) == ("problem", "problem")
    assert "data" in run("doctor").stdout

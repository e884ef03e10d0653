"""The command line as a program: its help, wrong usage, settings and brokers that are wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.cli import main
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import REPOSITORY, ZIP, document, run


def test_help_answers_at_once_and_names_every_command() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from shared.cli import main; main(['--help'])"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert time.monotonic() - started < 5
    for command in (
        "up",
        "train",
        "predict",
        "runs",
        "models",
        "promote",
        "rollback",
        "jobs",
        "dead",
        "status",
        "sample",
    ):
        assert re.search(rf"^  {command} ", done.stdout, flags=re.MULTILINE)
    slow = ("pydantic", "numpy", "rich.progress", "fsspec", "prometheus_client")
    assert [name for name in slow if re.search(rf"\| +{re.escape(name)}$", done.stderr, flags=re.MULTILINE)] == []


def test_the_installed_command_is_this_one() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="genderline")
    assert entry.load() is main


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train", "missing.zip"],
        ["predict"],
        ["promote"],
        ["promote", "three", "--reason", "x"],
        ["runs", "--follow"],
        ["jobs", "--cancel"],
        ["dead", "drop"],
        ["dead", "retry", "some-id", "--all"],
        ["sample", "x.zip"],
        ["up", "--only", "database"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("param", "said"),
    [("epochs", "KEY=VALUE"), ("epoch=3", "unknown"), ("epochs=x", "a whole number, 1 to 1,000 or auto")],
)
def test_a_wrong_parameter_is_wrong_usage_and_sends_nothing(folder: Path, param: str, said: str) -> None:
    (folder / "faces.zip").write_bytes(ZIP)
    result = run("train", "faces.zip", "--param", param)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (folder / "data").exists()


def test_a_wrong_setting_is_said_without_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_TOKEN", "short")
    monkeypatch.setenv("GENDERLINE_PORT", "http")
    result = run("runs")
    assert result.exit_code == 2
    assert "GENDERLINE_PORT" in result.stderr
    assert "'http'" in result.stderr
    assert "GENDERLINE_TOKEN" in result.stderr
    assert "short" not in result.stderr.replace("should have at least", "")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://user:hunter22@host:notaport/", "expected a whole URL, with a number from 0 to 65535 as its port"),
        ("amqp://host/?heartbeat=often", "Invalid heartbeat value 'often'"),
    ],
)
def test_a_malformed_broker_url_is_a_sentence(monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    monkeypatch.setenv("GENDERLINE_BROKER_URL", url)
    result = run("runs")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: GENDERLINE_BROKER_URL: ")
    assert said in result.stderr
    assert "hunter22" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert document("runs", exit_code=2)["error"]["code"] == "settings"


def test_a_bucket_without_the_extra_for_it_is_a_sentence_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setenv("GENDERLINE_STORE_URL", "s3://faces/prefix")
    result = run("models")
    assert result.exit_code == 2
    assert re.fullmatch("error: GENDERLINE_STORE_URL: expected the extra `s3` .*\n", result.stderr)


@pytest.mark.parametrize("command", ["runs", "settings"])
def test_a_misspelt_setting_is_warned_of_on_standard_error(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("GENDERLINE_WORKER", "3")
    result = run(command)
    assert result.exit_code == 0
    assert result.stderr.startswith("unknown setting GENDERLINE_WORKER; did you mean GENDERLINE_WORKERS?\n")
    assert isinstance(document(command), list)


def test_a_broker_that_is_away_is_a_sentence_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_BROKER_URL", "sqlite:////proc/broker.db")
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert document("status", exit_code=1)["error"]["code"] == "unavailable"


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    script = "from shared.cli import main; main()"
    command = f"{sys.executable} -c '{script}' settings --json | true"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("", "")


def test_damaged_records_are_named_and_cost_the_lists_nothing_else(builder: StoreBuilder) -> None:
    builder.run("run-1", name="whole")
    builder.job("job-1", name="whole")
    for kind in ("run", "job"):
        key = f"{kind}s/{kind}-x/{kind}.json"
        builder.store.put(key, b"")
        listed = run(f"{kind}s")
        assert (listed.exit_code, "whole" in listed.stdout) == (0, True)
        assert re.search(rf"^{kind}-x +damaged", listed.stdout, flags=re.MULTILINE)
        assert f"{key} in the store is damaged" in listed.stderr
        assert {entry["state"] for entry in document(f"{kind}s")} >= {"damaged"}
        shown = run(f"{kind}s", f"{kind}-x")
        assert (shown.exit_code, f"{key} in the store is damaged" in shown.stderr) == (1, True)
    whole, broken = builder.dataset(), builder.dataset()
    builder.store.put(f"datasets/{broken}/summary.json", b"{}")
    listed = run("datasets")
    assert (listed.exit_code, whole[:12] in listed.stdout) == (0, True)
    assert re.search(rf"^{broken[:12]} +damaged", listed.stdout, flags=re.MULTILINE)
    for command in (("datasets",), ("datasets", broken)):
        assert f"datasets/{broken}/summary.json in the store is damaged" in run(*command).stderr
    status = run("status")
    assert (status.exit_code, "run-1 (whole): queued" in status.stdout) == (0, True)
    assert status.stderr.count("in the store is damaged") == 2


def test_a_damaged_card_or_file_of_aliases_is_named_and_costs_the_commands_nothing_else(builder: StoreBuilder) -> None:
    sha256 = builder.dataset()
    for number in (1, 2):
        builder.model(sha256, f"run-{number}", name="whole")
    builder.store.put("models/gender/2/card.json", b"")
    builder.store.put("models/gender/aliases.json", b"{")
    listed = run("models")
    assert (listed.exit_code, "whole" in listed.stdout) == (0, True)
    assert re.search(r"^ +2 +damaged", listed.stdout, flags=re.MULTILINE)
    files = {"models/gender/2/card.json", "models/gender/aliases.json"}
    assert {name for name in files if f"{name} in the store is damaged" in listed.stderr} == files
    assert {entry["file"] for entry in document("models")["damaged"]} == files
    assert {entry["file"] for entry in document("status")["damaged"]} == files
    refused = run("promote", "1")
    assert (refused.exit_code, "aliases.json in the store is damaged" in refused.stderr) == (1, True)

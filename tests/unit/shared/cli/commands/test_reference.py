"""The tables that the command line prints."""

from __future__ import annotations

import pytest

from tests.unit.shared.cli.helpers import document, run


def test_settings_show_what_is_in_force_but_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_TOKEN", "very-secret-token")
    monkeypatch.setenv("GENDERLINE_BROKER_URL", "amqp://me:hunter2@rabbit:5672/%2F")
    monkeypatch.setenv("GENDERLINE_ALLOWED_ROOTS", "/a:/b")
    found = {row["variable"]: row for row in document("settings")}
    assert found["GENDERLINE_TOKEN"]["value"] == "***"
    assert found["GENDERLINE_BROKER_URL"]["value"] == "amqp://me:***@rabbit:5672/%2F"
    assert found["GENDERLINE_ALLOWED_ROOTS"]["value"] == "/a:/b"
    assert found["GENDERLINE_PORT"] | {"meaning": ""} == {
        "variable": "GENDERLINE_PORT",
        "value": "8080",
        "default": "8080",
        "meaning": "",
    }
    shown = run("settings").output + run("settings", "--json").output
    assert "very-secret-token" not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("command", ["settings", "params", "metrics", "errors"])
def test_reference_tables_come_for_people_and_programs(command: str) -> None:
    rows = document(command)
    assert len(rows) > 5
    first = next(iter(rows[0].values()))
    assert first in run(command).stdout

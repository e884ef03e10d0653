"""The README names everything there is, in the very words of the program."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.cli import main
from shared.cli.reference_tables import (
    Reference,
    errors_reference,
    metrics_reference,
    params_reference,
    settings_reference,
)

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize(
    ("command", "table"),
    [
        ("settings", settings_reference),
        ("params", params_reference),
        ("metrics", metrics_reference),
        ("errors", errors_reference),
    ],
)
def test_a_table_is_what_the_program_prints(command: str, table: Callable[[], Reference]) -> None:
    printed = table().markdown()
    assert len(table().rows) > 5
    assert printed in README, f"replace the README's table by what `genderline {command} --markdown` prints"
    assert README.count(printed.splitlines()[0]) == 1


def test_no_section_stands_there_twice() -> None:
    headings = re.findall(r"^#+ .*$", README, flags=re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_every_metric_named_in_the_code_is_in_the_readme() -> None:
    # The dashboard's own are in no table that `shared` could print.
    sources = [path for package in ("shared", "dashboard", "trainer", "inference") for path in _python_files(package)]
    named = {
        name
        for path in sources
        for name in re.findall(
            r'(?:Counter|Gauge|Histogram|MetricFamily)\(\s*"(genderline_\w+)"', path.read_text(encoding="utf-8")
        )
    }
    assert len(named) >= 19
    assert {name for name in named if f"`{name}`" not in README and f"`{name}_total`" not in README} == set()


def test_every_command_is_in_the_readme() -> None:
    commands = {name for name, command in main.commands.items() if not command.hidden}
    assert {name for name in commands if not re.search(rf"`genderline {name}\b", README)} == set()


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"demo", "test"} <= named <= targets


def _python_files(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))

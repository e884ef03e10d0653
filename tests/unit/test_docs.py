"""The pages name what exists, and the tables are what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from shared.cli import main
from shared.runtime.settings import Settings, variable
from tests.reference import PAGE, TABLES, renewed

REPOSITORY: Final = Path(__file__).parents[2]
README: Final = (REPOSITORY / "README.md").read_text()
REFERENCE: Final = PAGE.read_text()
PAGES: Final = sorted(path for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
HISTORY: Final = {"benchmarks.md", "recipe.md", "CHANGELOG.md"}
BANNED: Final = (
    "likewise",
    "thereof",
    "whoever",
    "siblings?",
    "named (?:fe)?male",
    "is up",
    "named rightly",
    "trainings",
)
"""What the glossary has better words for, or a reader whose first language is another stumbles over."""


def ids(path: Path) -> str:
    return path.name


def test_the_reference_is_what_the_code_says() -> None:
    assert all(len(table().rows) > 5 for table in TABLES.values())
    assert renewed(REFERENCE) == REFERENCE, "`make reference` renews docs/reference.md"


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) < 150


def test_the_settings_that_the_readme_explains_have_these_defaults() -> None:
    shown = re.findall(r"^\| `(GENDERLINE_\w+)` \| (?:`(.*?)`)? \|", README, flags=re.MULTILINE)
    assert shown
    defaults = {variable(name): field.default for name, field in Settings.model_fields.items()}
    assert {name: str(defaults[name] if defaults[name] is not None else "") for name, _ in shown} == dict(shown)


def test_every_command_is_in_the_readme() -> None:
    commands = {name for name, command in main.commands.items() if not command.hidden}
    assert {name for name in commands if not re.search(rf"`genderline {name}\b", README)} == set()


def test_every_metric_named_in_the_code_is_in_the_reference() -> None:
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
    assert {name for name in named if f"`{name}`" not in REFERENCE and f"`{name}_total`" not in REFERENCE} == set()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_section_stands_there_twice(page: Path) -> None:
    headings = [heading for heading, _ in _headings(page)]
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files_and_sections_that_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, section = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if section:
            assert section in {anchor for _, anchor in _headings(found)}, target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_settings_commands_and_targets_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    settings = set(re.findall(r"\bGENDERLINE_[A-Z0-9_]+", text))
    assert settings <= set(map(variable, Settings.model_fields)) | ALLOWED, page
    commands = set(re.findall(r"`genderline ([a-z]+)", text))
    assert commands <= set(main.commands), page
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets, page


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_code_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:shared|trainer|inference|dashboard|tests|deploy|docs)/[\w/.-]*[\w/])`", page.read_text())
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=ids)
def test_a_page_uses_the_words_of_the_glossary(page: Path) -> None:
    text = page.read_text().lower()
    assert [word for word in BANNED if re.search(rf"\b{word}\b", text)] == []


@pytest.mark.parametrize(
    "term",
    [
        "predicted, correct",
        "label",
        "split",
        "accuracy by group",
        "confidence",
        "dead letter, failed message",
        "champion",
    ],
)
def test_the_glossary_explains_the_terms_of_pages_and_commands(term: str) -> None:
    assert f"| **{term}** |" in (REPOSITORY / "docs" / "architecture.md").read_text()


ALLOWED: Final = {"GENDERLINE_MEMORY"}
"""What looks like a setting in a page and is none: Compose's own."""


def _headings(page: Path) -> list[tuple[str, str]]:
    """Returns each heading of a page and the anchor that GitHub gives it."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return [(heading, re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")) for heading in found]


def _python_files(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))

"""Renews the tables of docs/reference.md from the code: `make reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shared.cli.reference_tables import (
    errors_reference,
    metrics_reference,
    params_reference,
    rejects_reference,
    settings_reference,
)

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference.md"
TABLES: Final = {
    "settings": settings_reference,
    "params": params_reference,
    "metrics": metrics_reference,
    "errors": errors_reference,
    "rejects": rejects_reference,
}


def renewed(page: str) -> str:
    """Returns the page with every table between `<!-- NAME -->` and `<!-- end -->` as the code has it."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->\n"
        before, found, rest = page.partition(start)
        assert found, f"{PAGE.name} has no {start}"
        page = before + start + f"\n{table().markdown()}\n\n" + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Hurts services under load for as long as it is told to, and says whether every promise was kept.

    python -m tests.soak [MINUTES] [SEED] [sqlite|rabbitmq|both] [--write]

The same seed makes the same faults in the same order, at the same moments. `--write` puts the result into
docs/reliability.md. Exit code 1 means that a promise was broken; the ledger then stays, and its place is printed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from shared.clock import now_iso
from tests.soak.check import Verdict, check
from tests.soak.run import Plan, soak

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
_START, _END = "<!-- soak -->\n", "<!-- end -->\n"


def main() -> int:
    """Soaks. Returns 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=3)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("broker", nargs="?", choices=["sqlite", "rabbitmq", "both"], default="both")
    parser.add_argument("--write", action="store_true", help="put the result into docs/reliability.md")
    given = parser.parse_args()
    brokers = ["sqlite", "rabbitmq"] if given.broker == "both" else [given.broker]
    verdicts: dict[str, Verdict] = {}
    for broker in brokers:
        folder = Path(tempfile.mkdtemp(prefix=f"genderline-soak-{broker}-"))
        plan = Plan(60 * given.minutes / len(brokers), given.seed, broker)
        _print(f"{broker}: {plan.seconds / 60:g} minutes, seed {plan.seed}, in {folder}")
        verdicts[broker] = check(soak(plan, folder))
        for line in verdicts[broker].examples + verdicts[broker].grown:
            _print(line)
        if verdicts[broker].is_clean:
            shutil.rmtree(folder, ignore_errors=True)
    table = render(verdicts, given.minutes, given.seed)
    _print(table)
    if given.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(_START)
        PAGE.write_text(before + _START + f"\n{table}\n" + _END + rest.partition(_END)[2], encoding="utf-8")
    return 0 if all(verdict.is_clean for verdict in verdicts.values()) else 1


def render(verdicts: dict[str, Verdict], minutes: float, seed: int) -> str:
    """Returns the result as tables of Markdown."""
    names = {"sqlite": "embedded", "rabbitmq": "RabbitMQ"}
    found = list(verdicts.values())

    def row(title: str, values: list[str]) -> str:
        return f"| {title} | " + " | ".join(values) + " |"

    lines = [
        f"`make soak MINUTES={minutes:g} SEED={seed}`, {now_iso()[:10]}: "
        + ("every promise was kept." if all(verdict.is_clean for verdict in found) else "**a promise was broken.**"),
        "",
        row("", [names[broker] for broker in verdicts]),
        row("---", ["---:"] * len(found)),
        row("requests (images)", [f"{verdict.requests:,} ({verdict.images:,})" for verdict in found]),
        row("jobs, datasets", [f"{verdict.jobs:,}, {verdict.datasets:,}" for verdict in found]),
        row("faults", [f"{verdict.faults.total():,}" for verdict in found]),
        row("lost", [f"{verdict.lost:,}" for verdict in found]),
        row("misrouted", [f"{verdict.misrouted:,}" for verdict in found]),
        row("answered by another model than named", [f"{verdict.wrong_model:,}" for verdict in found]),
        row("answered by an error", [f"{verdict.errors:,}" for verdict in found]),
        row("jobs and datasets that did not end as they should", [f"{verdict.unended:,}" for verdict in found]),
        row("duplicates", [f"{verdict.duplicates:,}" for verdict in found]),
        row("memory or descriptors that grew", [", ".join(verdict.grown) or "none" for verdict in found]),
        row("temporary files left behind", [f"{verdict.left_over:,}" for verdict in found]),
        "",
        "Seconds from a fault's end to the first answer to something sent after it, median and longest; and until "
        "answers came half as fast as in a median second of the soak:",
        "",
        row("fault", [names[broker] for broker in verdicts]),
        row("---", ["---:"] * len(found)),
    ]
    kinds = sorted(set().union(*(verdict.faults for verdict in found)))
    lines += [row(kind, [_recovery(verdict, kind) for verdict in found]) for kind in kinds]
    return "\n".join(lines) + "\n"


def _recovery(verdict: Verdict, kind: str) -> str:
    times = verdict.recovery_s.get(kind)
    if not verdict.faults[kind] or not times:
        return "none"
    figures = [f"{statistics.median(of):.1f}, {max(of):.1f}" for of in (times, verdict.half_s[kind])]
    return f"{verdict.faults[kind]} times: {'; '.join(figures)}"


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

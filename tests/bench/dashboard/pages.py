"""How long each page takes with a full store: `python -m tests.bench.dashboard.pages`."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flask import Flask

from shared.records.runs import RunState
from tests.support.dashboard_app import Site, open_site

FACES, RUNS, MODELS = 25_000, 200, 100
ROUNDS = 40
LIMIT_MS = 100.0


def fill(site: Site) -> str:
    """Fills the store and returns the dataset's hash."""
    sha256 = site.builder.dataset(FACES)
    site.builder.model(sha256, "run-000000000000")
    predictions = site.store.get("runs/run-000000000000/predictions.csv")
    evaluation = site.store.get("runs/run-000000000000/evaluation.json")
    card = site.builder.registry.card(1)
    for i in range(1, RUNS):
        run_id = f"run-{i:012d}"
        site.builder.run(run_id, state=RunState.REGISTERED, dataset=sha256, epochs=20, metrics=card.metrics)
        site.store.put(f"runs/{run_id}/evaluation.json", evaluation)
        if i < MODELS:
            site.store.put(f"runs/{run_id}/predictions.csv", predictions)
            version = site.builder.registry.claim(run_id)
            site.builder.registry.register(card.changed(version=version, run_id=run_id), "", {})
            site.builder.runs.update(run_id, model={"name": "gender", "version": version})
    site.parts.client.promote(1, "bench")
    for i in range(20):
        site.builder.job(f"job-{i:012d}")
    return sha256


def p95_ms(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the 95th percentile of a call's time, warm, in milliseconds, by a clock in seconds."""
    call()
    times = []
    for _ in range(ROUNDS):
        started = clock()
        call()
        times.append(1000 * (clock() - started))
    return statistics.quantiles(times, n=20)[18]


def main() -> int:
    """Prints each page's p95 and its ratio to an empty view; returns 1 where a page is over the limit."""
    empty = Flask("empty")
    empty.add_url_rule("/", view_func=lambda: "")
    floor = p95_ms(lambda: empty.test_client().get("/"))
    with tempfile.TemporaryDirectory() as folder, open_site(Path(folder)) as site:
        sha256 = fill(site)
        web = site.web
        pages = [
            "/",
            "/datasets",
            f"/datasets/{sha256}",
            f"/datasets/{sha256}?result=wrong&sort=largest_error&search=jpg&page=9",
            f"/api/v1/datasets/{sha256}/faces?result=wrong&sort=suspects&search=jpg&limit=64",
            f"/datasets/{sha256}/faces/sheet.webp?faces={','.join(map(str, range(20000, 20064)))}",
            f"/datasets/{sha256}/faces/24999",
            f"/datasets/{sha256}/faces/24999.png",
            "/runs",
            "/runs/run-000000000000",
            "/models",
            "/models/50",
            f"/predict?dataset={sha256}&pick=wrong",
            "/jobs",
            "/jobs/job-000000000000",
            "/dead",
        ]
        lines = [f"{'page':<62}{'p95 ms':>8}{'x empty':>9}", f"{'(an empty Flask view)':<62}{floor:>8.2f}{1:>9.0f}"]
        slow = 0
        for path in pages:
            assert web.get(path).status_code == 200, path
            took = p95_ms(lambda path=path: web.get(path))  # type: ignore[misc]
            slow += took > LIMIT_MS
            lines.append(f"{path.replace(sha256, sha256[:8]):<62}{took:>8.1f}{took / floor:>9.0f}")
    sys.stdout.write(
        "\n".join(lines) + f"\n{FACES:,} faces, {RUNS} runs, {MODELS} models; {slow} over {LIMIT_MS:g} ms\n"
    )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

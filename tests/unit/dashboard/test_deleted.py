"""What the dashboard answers once somebody has deleted a part of the store, as docs/operations.md says one may."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dashboard_app import Site, open_site

OLD_RUN, JOB = "run-00000000000a", "job-00000000000a"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site with an old model, its run and its dataset, none of them in use, and newer ones that are."""
    with open_site(tmp_path) as site:
        old, new = site.builder.dataset(60), site.builder.dataset(40)
        site.builder.model(old, OLD_RUN)
        for run_id in ("run-00000000000b", "run-00000000000c"):
            site.builder.model(new, run_id)
        for version in (1, 2, 3):
            site.parts.client.promote(version, "newer")
        site.store.put(f"datasets/{old}/predictions/2.csv", b"index,probability_female\n" + b"0,0.5\n" * 60)
        site.store.put(f"datasets/{new}/predictions/1.csv", b"index,probability_female\n" + b"0,0.5\n" * 40)
        site.builder.job(JOB)
        yield site


def addresses(site: Site) -> list[str]:
    """Returns every page and call that shows something of the store."""
    datasets = site.store.children("datasets")
    runs, jobs, versions = site.store.children("runs"), site.store.children("jobs"), (1, 2, 3)
    return [
        *("/", "/datasets", "/runs", "/models", "/predict", "/jobs", "/dead", "/speed.json"),
        f"/runs/compare?{'&'.join(f'run={run}' for run in runs)}",
        *(f"/datasets/{sha256}{rest}" for sha256 in datasets for rest in ("", "/counts.json", "?version=1")),
        *(f"/datasets/{sha256}/faces/0{rest}" for sha256 in datasets for rest in ("", ".png", "/original")),
        *(f"/predict?dataset={sha256}&pick=wrong" for sha256 in datasets),
        *(f"/runs/{run}{rest}" for run in runs for rest in ("", "/history.csv", "/scores.json")),
        *(f"/jobs/{job}{rest}" for job in jobs for rest in ("", "/images/0.png", "?show=wrong")),
        *(f"/models/{version}" for version in versions),
        *(f"/api/v1/{what}" for what in ("runs", "jobs", "models", "dead", "status", "samples")),
        *(f"/api/v1/runs/{run}" for run in runs),
        *(f"/api/v1/jobs/{job}{rest}" for job in jobs for rest in ("", "/results.csv")),
        *(f"/api/v1/models/{version}{rest}" for version in versions for rest in ("", "/model.onnx")),
    ]


def parts_of(site: Site) -> dict[str, tuple[str, str]]:
    """Returns, by what is deleted, its key and what the addresses hold that may be not found from then on."""
    old = next(card.dataset.sha256 for card in site.parts.store_cache.cards().records if card.version == 1)
    return {
        "dataset": (f"datasets/{old}", old),
        "archive": (f"datasets/{old}/archive.zip", f"{old}/faces/0/original"),
        "run": (f"runs/{OLD_RUN}", OLD_RUN),
        "model": ("models/gender/1", "models/1"),
        "job": (f"jobs/{JOB}", JOB),
        "images of a job": (f"jobs/{JOB}/archive.zip", f"{JOB}/images"),
    }


@pytest.mark.parametrize("seen_before", ["lately", "long ago", "never"])
@pytest.mark.parametrize("what", ["dataset", "archive", "run", "model", "job", "images of a job"])
def test_what_is_not_in_use_is_missed_at_its_own_address_alone(
    site: Site, caplog: pytest.LogCaptureFixture, what: str, seen_before: str
) -> None:
    key, own = parts_of(site)[what]
    asked = addresses(site)
    if seen_before != "never":
        assert [path for path in asked if site.web.get(path, buffered=True).status_code != 200] == []
    if seen_before == "long ago":
        site.parts.store_cache.close()  # what is large is no longer kept in memory, what is small is

    site.store.delete(key)

    answers = {path: site.web.get(path, buffered=True).status_code for path in asked}
    needs_both = f"/runs/{OLD_RUN}/scores.json"  # counts what the model predicted for the dataset
    allowed = {path for path in asked if own in path or (what in {"dataset", "model"} and path == needs_both)}
    assert {path: status for path, status in answers.items() if status not in {200, 404, 409}} == {}
    assert {path for path, status in answers.items() if status != 200} <= allowed
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []

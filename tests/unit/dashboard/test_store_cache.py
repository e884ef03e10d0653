"""What is kept of the store in memory, and when it is let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from dashboard import store_cache
from dashboard.store_cache import StoreCache
from shared.archives.archive import Archive, ArchiveLimits
from shared.client import Client
from shared.datasets.columns import Dataset, load_dataset
from shared.errors import NotFound, Retryable
from shared.records.annotations import Kind
from shared.records.dataset import DatasetSummary
from shared.records.jobs import Jobs
from shared.store.base import Store
from shared.store.files import FileStore
from tests.support.dashboard_app import Site, open_site

RUN, JOB = "run-00000000000a", "job-00000000000a"


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path: Path, clock: Clock) -> Iterator[Site]:
    """A site with a model that is not in use, its run, its dataset with corrected labels, and a job."""
    with open_site(tmp_path) as site:
        sha256 = site.builder.dataset(60)
        site.builder.model(sha256, RUN)
        site.builder.job(JOB)
        site.parts.client.edits.add(sha256, "male", [1])
        site.parts.client.edits.freeze(sha256)
        site.parts.store_cache = StoreCache(site.store, clock)
        yield site


def addresses(site: Site) -> dict[Kind, list[str]]:
    """Returns what shows each kind of thing, and nothing of the others."""
    (sha256,) = site.store.children("datasets")
    labels = site.parts.client.edits.freeze(sha256)
    face = [f"/datasets/{sha256}/faces/4.{kind}" for kind in ("png", "webp")]
    calls = [f"/api/v1/datasets/{sha256}/{call}" for call in ("faces", "faces.zip", f"faces?labels={labels}")]
    return {
        "dataset": [f"/datasets/{sha256}", f"/datasets/{sha256}/faces/4", *face, *calls],
        "model": ["/models/1", "/api/v1/models/1", "/api/v1/models/1/measures"],
        "run": [f"/runs/{RUN}", f"/api/v1/runs/{RUN}", f"/runs/{RUN}/scores.json"],
        "job": [f"/jobs/{JOB}", f"/api/v1/jobs/{JOB}"],
    }


def delete_elsewhere(site: Site, kind: Kind, which: str) -> None:
    """Deletes something as another process does, such as the command line."""
    Client(site.broker, FileStore(site.store.root)).delete(kind, which)


def delete_here(site: Site, kind: Kind, which: str) -> None:
    answer = site.web.delete(f"/api/v1/{kind}s/{which}?confirm=true")
    assert answer.status_code == 200


@pytest.mark.parametrize("delete", [delete_elsewhere, delete_here])
@pytest.mark.parametrize("kind", ["dataset", "model", "run", "job"])
def test_what_was_deleted_is_found_no_more_whoever_did_it(
    site: Site, clock: Clock, kind: Kind, delete: Callable[[Site, Kind, str], None]
) -> None:
    (sha256,) = site.store.children("datasets")
    asked = addresses(site)[kind]
    for path in asked:
        assert site.web.get(path, buffered=True).status_code == 200, path

    delete(site, kind, {"dataset": sha256, "model": "1", "run": RUN, "job": JOB}[kind])
    if delete is delete_elsewhere:
        clock.now_s += 1

    assert {path: site.web.get(path, buffered=True).status_code for path in asked} == dict.fromkeys(asked, 404)


def test_predictions_go_with_the_run_that_made_them(site: Site, clock: Clock) -> None:
    (sha256,) = site.store.children("datasets")
    cache = site.parts.store_cache
    assert cache.predictions(sha256, 1) is not None
    assert cache.test_accuracy(sha256, 1) is not None
    delete_elsewhere(site, "run", RUN)
    clock.now_s += 1
    assert cache.predictions(sha256, 1) is None
    assert cache.test_accuracy(sha256, 1) is None


def test_a_page_of_thumbnails_looks_for_its_dataset_once(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sha256,) = site.store.children("datasets")
    exists = FileStore.exists
    asked: list[str] = []
    site.web.get(f"/datasets/{sha256}/faces/0.webp")

    def note(self: FileStore, key: str) -> bool:
        asked.append(key)
        return exists(self, key)

    monkeypatch.setattr(FileStore, "exists", note)
    for index in range(30):
        assert site.web.get(f"/datasets/{sha256}/faces/{index}.webp").status_code == 200
    assert asked == [f"datasets/{sha256}/summary.json"]
    clock.now_s += 1
    site.web.get(f"/datasets/{sha256}/faces/0.webp")
    assert len(asked) == 2


def test_what_is_in_memory_is_served_while_the_store_is_away(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sha256,) = site.store.children("datasets")
    cache = site.parts.store_cache
    before = cache.dataset(sha256)
    clock.now_s += 1

    def fail(self: FileStore, key: str) -> bool:
        raise Retryable("the disk is away")

    monkeypatch.setattr(FileStore, "exists", fail)
    assert cache.dataset(sha256) is before


def test_accuracies_are_kept_of_more_datasets_than_can_be(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = site.parts.store_cache
    shas = [sha256 for sha256, _ in cache.named_datasets()] + [site.builder.dataset(60) for _ in range(6)]
    for number, sha256 in enumerate(shas[1:]):
        site.builder.model(sha256, f"run-{number:012d}")
    loaded: list[str] = []

    def note(store: Store, sha256: str, summary: DatasetSummary) -> Dataset:
        loaded.append(sha256)
        return load_dataset(store, sha256, summary)

    monkeypatch.setattr(store_cache, "load_dataset", note)
    first = site.web.get("/api/v1/compare/matrix").json
    assert sorted(loaded) == sorted(shas)
    assert site.web.get("/api/v1/compare/matrix").json == first
    assert len(loaded) == len(shas)

    site.parts.client.edits.add(shas[1], "exclude", range(10))
    assert site.web.get("/api/v1/compare/matrix").json != first


def test_an_archive_is_opened_once_and_closed_when_nobody_reads_it_any_more(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    opening = Archive.__init__

    def note(self: Archive, source: Path | BinaryIO, limits: ArchiveLimits) -> None:
        opened.append(1)
        opening(self, source, limits)

    monkeypatch.setattr(Archive, "__init__", note)
    for row in range(20):
        assert site.web.get(f"/jobs/{JOB}/images/{row}.png").status_code == 200
    assert len(opened) == 1
    cache, limits = site.parts.store_cache, ArchiveLimits.from_settings(site.parts.settings)
    archive = cache.archive(Jobs.archive_key(JOB), limits)
    cache.close()
    assert archive.read(archive.entries[0])

    assert cache.archive(Jobs.archive_key(JOB), limits) is not archive
    delete_elsewhere(site, "job", JOB)
    clock.now_s += 1
    assert site.web.get(f"/jobs/{JOB}/images/0.png").status_code == 404


def test_what_never_was_is_not_found(site: Site) -> None:
    cache = site.parts.store_cache
    for find in (cache.dataset, cache.run, cache.job):
        with pytest.raises(NotFound):
            find("0" * 64)
    assert cache.find_card(9) is None

"""Deleting from a store that the services have filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import Conflict, InvalidMessage, NotFound
from shared.params import TrainingParams
from shared.records.annotations import KINDS, Annotations, Kind
from shared.records.deletion import Deletion
from shared.records.jobs import JobState
from shared.records.model_card import CardStart
from shared.records.runs import RunState
from shared.store.files import FileStore
from tests.support.builders.stores import StoreBuilder

RUNS = ("run-00000000000a", "run-00000000000b", "run-00000000000c")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def builder(store: FileStore) -> StoreBuilder:
    """Three models, each of a dataset of its own: version 3 serves, 2 is the previous one, 1 is not in use."""
    builder = StoreBuilder(store)
    for run_id in RUNS:
        builder.registry.promote(builder.model(builder.dataset(30), run_id), "newer")
    builder.job()
    return builder


def dataset_of(builder: StoreBuilder, version: int) -> str:
    return str(builder.registry.card(version).dataset.sha256)


def after(builder: StoreBuilder, version: int, role: str) -> int:
    """Registers a model of a new dataset that began from a version, or was taught by it."""
    name = f"gender:{version}"
    start = CardStart(name=name, source="faces", archive_sha256=dataset_of(builder, version), faces=20)
    run_id = f"run-{len(builder.registry.versions()):012}"
    if role == "start":
        return builder.model(builder.dataset(30), run_id, start=start)
    return builder.model(builder.dataset(30), run_id, distil=name)


def test_what_is_not_in_use_is_deleted_whole_and_alone(store: FileStore, builder: StoreBuilder) -> None:
    sha256, (job_id,) = dataset_of(builder, 1), store.children("jobs")
    deletion = Deletion(store)
    deletion.delete("dataset", sha256)
    deletion.delete("run", RUNS[0])
    deletion.delete("job", job_id)
    assert sha256 not in store.children("datasets")
    assert len(store.children("datasets")) == 2
    assert store.children("runs") == list(RUNS[1:])
    assert store.children("jobs") == []
    assert builder.registry.versions() == [1, 2, 3]


@pytest.mark.parametrize(("version", "alias"), [(3, "champion"), (2, "previous"), (1, "challenger")])
def test_run_and_dataset_of_a_model_in_use_are_refused(
    store: FileStore, builder: StoreBuilder, version: int, alias: str
) -> None:
    if alias == "challenger":
        builder.registry.challenge(version, "to see")
    with pytest.raises(Conflict, match=f"version {version}, the {alias} model, was trained on it"):
        Deletion(store).delete("dataset", dataset_of(builder, version))
    with pytest.raises(Conflict, match=f"version {version}, the {alias} model, came of it"):
        Deletion(store).delete("run", RUNS[version - 1])
    assert (len(store.children("datasets")), len(store.children("runs"))) == (3, 3)


def test_what_has_not_ended_is_refused_and_so_is_every_dataset_that_it_may_need(
    store: FileStore, builder: StoreBuilder
) -> None:
    free = dataset_of(builder, 1)
    builder.runs.create("run-q", message_id="q", name="q", params=TrainingParams(), state=RunState.QUEUED)
    builder.jobs.create("job-q", message_id="q", name="q", state=JobState.QUEUED)
    deletion = Deletion(store)
    with pytest.raises(Conflict, match="run run-q is queued; expected one that has ended"):
        deletion.delete("run", "run-q")
    with pytest.raises(Conflict, match="job job-q is queued; expected one that has ended"):
        deletion.delete("job", "job-q")
    with pytest.raises(Conflict, match="run run-q is queued and may need the dataset"):
        deletion.delete("dataset", free)
    builder.runs.update("run-q", state=RunState.TRAINING, dataset=dataset_of(builder, 2))
    with pytest.raises(Conflict, match="job job-q is queued and may need the dataset"):
        deletion.delete("dataset", free)
    builder.jobs.accept("job-q", archive="jobs/job-q/archive.zip")
    deletion.delete("dataset", free)


def test_a_dataset_that_a_job_predicts_is_refused(store: FileStore, builder: StoreBuilder) -> None:
    sha256 = dataset_of(builder, 1)
    builder.jobs.create("job-p", message_id="p", name="p")
    builder.jobs.accept("job-p", archive=f"datasets/{sha256}/archive.zip", images=30, shards=1)
    with pytest.raises(Conflict, match="job job-p is accepted and may need the dataset; expected it to have ended"):
        Deletion(store).delete("dataset", sha256)
    assert sha256 in store.children("datasets")
    builder.jobs.end("job-p", JobState.FINISHED)
    Deletion(store).delete("dataset", sha256)


def test_a_model_that_is_not_in_use_goes_and_its_number_never_comes_again(
    store: FileStore, builder: StoreBuilder
) -> None:
    deletion = Deletion(store)
    other = dataset_of(builder, 2)
    store.put(f"datasets/{other}/predictions/1.csv", b"index,probability_female\n")
    for version, alias in ((3, "champion"), (2, "previous")):
        with pytest.raises(Conflict, match=f"version {version} is the {alias} model"):
            deletion.delete("model", str(version))

    deletion.delete("model", "1", user="alice")

    assert builder.registry.versions() == [2, 3]
    assert store.children("models/gender/1") == ["claim.json"]
    assert store.children(f"datasets/{other}/predictions") == []
    assert builder.registry.claim("run-new") == 4
    (entry,) = Annotations(store).deletions("model")
    assert (entry.which, entry.by) == ("1", "alice")


@pytest.mark.parametrize("params", [{"init": "gender:1"}, {"distil": "gender:1"}])
def test_a_model_that_an_open_run_begins_from_or_learns_from_is_refused(
    store: FileStore, builder: StoreBuilder, params: dict[str, str]
) -> None:
    builder.runs.create("run-q", message_id="q", name="q", params=TrainingParams.parse(params), state=RunState.TRAINING)
    with pytest.raises(Conflict, match="run run-q is training and needs version 1; expected it to have ended"):
        Deletion(store).delete("model", "1")
    assert builder.registry.versions() == [1, 2, 3]
    builder.runs.update("run-q", state=RunState.CANCELLED)
    Deletion(store).delete("model", "1")


def test_a_model_that_an_open_job_uses_is_refused(store: FileStore, builder: StoreBuilder) -> None:
    builder.jobs.create("job-q", message_id="q", name="q")
    builder.jobs.accept("job-q", model={"name": "gender", "version": 1}, archive="x", images=1, shards=1)
    with pytest.raises(Conflict, match="job job-q is accepted and uses version 1; expected it to have ended"):
        Deletion(store).delete("model", "1")
    builder.jobs.end("job-q", JobState.CANCELLED)
    Deletion(store).delete("model", "1")


@pytest.mark.parametrize("role", ["start", "teacher"])
def test_a_model_that_another_one_has_learned_from_is_refused(
    store: FileStore, builder: StoreBuilder, role: str
) -> None:
    """Its card says which faces that one knows."""
    after(builder, 1, role)
    deletion = Deletion(store)
    with pytest.raises(Conflict, match="version 4 has learned from version 1; expected it to be deleted before"):
        deletion.delete("model", "1")
    deletion.delete("model", "4")
    deletion.delete("model", "1")


@pytest.mark.parametrize("role", ["start", "teacher"])
def test_a_dataset_that_the_champion_knows_through_another_model_is_refused(
    store: FileStore, builder: StoreBuilder, role: str
) -> None:
    known = dataset_of(builder, 1)
    version = after(builder, after(builder, 1, role), "start")
    builder.registry.promote(version, "newest")
    with pytest.raises(Conflict, match=f"version {version}, the champion model, has learned from it through version 1"):
        Deletion(store).delete("dataset", known)
    store.delete("models/gender/1")  # by hand: then nobody knows any more
    Deletion(store).delete("dataset", known)


def test_what_depends_on_it_is_said_before(store: FileStore, builder: StoreBuilder) -> None:
    deletion = Deletion(store)

    def told(kind: Kind, which: str) -> list[tuple[str, str]]:
        return [(found.kind, found.which) for found in deletion.dependents(kind, which)]

    assert told("dataset", dataset_of(builder, 1)) == [("run", RUNS[0]), ("model", "1")]
    assert told("run", RUNS[0]) == [("model", "1")]
    assert told("model", "1") == [("run", RUNS[0])]
    assert told("job", store.children("jobs")[0]) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["nope", "", "..", "a/b"])
def test_what_is_not_there_is_said(store: FileStore, builder: StoreBuilder, kind: Kind, which: str) -> None:
    before = sorted(store.root.rglob("*"))
    with pytest.raises((NotFound, InvalidMessage), match=r"there is no|is not a store key"):
        Deletion(store).delete(kind, which)
    assert sorted(store.root.rglob("*")) == before

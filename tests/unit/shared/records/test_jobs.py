from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from shared.errors import Conflict, NotFound
from shared.records.jobs import RESULT_COLUMNS, JobProgress, Jobs, JobState, shard_bounds
from shared.store.files import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture
def records(store: FileStore) -> Jobs:
    return Jobs(store)


def create(records: Jobs, job_id: str = "job-1", state: JobState = JobState.QUEUED) -> bool:
    return records.create(job_id, message_id="m1", name="faces", state=state)


def test_a_new_job_has_all_its_fields_and_is_not_made_anew(records: Jobs) -> None:
    assert create(records)
    record = records.update("job-1", state=JobState.ACCEPTED, images=10)
    assert not create(records)
    assert records.get("job-1") == record
    assert (record.job_id, record.message_id, record.name, record.state) == (
        "job-1",
        "m1",
        "faces",
        "accepted",
    )
    assert [getattr(record, key) for key in ("counts", "accuracy", "results", "error", "model")] == [None] * 5


def test_an_unknown_job_is_not_found(records: Jobs) -> None:
    assert records.find("job-9") is None
    for ask in (records.get, records.update, records.request_cancel):
        with pytest.raises(NotFound, match="there is no job 'job-9'"):
            ask("job-9")


def test_all_jobs_come_newest_first(records: Jobs) -> None:
    for number in (1, 2, 3):
        create(records, f"job-{number}")
        records.update(f"job-{number}", created=f"2026-01-0{number}T00:00:00.000Z")
    assert [record.job_id for record in records.all().records] == ["job-3", "job-2", "job-1"]


def test_a_job_can_be_asked_to_stop_until_it_has_ended(records: Jobs) -> None:
    create(records)
    records.request_cancel("job-1")
    assert records.cancel_requested("job-1")
    for state in [state for state in JobState if state.is_final]:
        create(records, f"job-{state}", state)
        with pytest.raises(Conflict, match=f"job job-{state} has ended: it is {state}"):
            records.request_cancel(f"job-{state}")
        assert not records.cancel_requested(f"job-{state}")


def test_progress_counts_full_shards_and_the_shorter_last_one(store: FileStore, records: Jobs) -> None:
    create(records)
    assert records.progress(records.get("job-1")) == JobProgress(done=0, total=0)
    record = records.update("job-1", state=JobState.ACCEPTED, images=25, shards=3, shard_images=10)
    done = [records.progress(record).done]
    for shard in (2, 0, 1):  # in whatever order the workers finish
        store.put(Jobs.part_key("job-1", shard), b"")
        done.append(records.progress(record).done)
    assert done == [0, 5, 15, 25]
    assert records.parts("job-1") == [0, 1, 2]


@pytest.mark.parametrize("images", [0, 1, 63, 512, 513, 700, 2047, 2048, 20_000])
@pytest.mark.parametrize("size", [1, 10, 64, 512])
def test_shards_hold_every_image_once_and_taper_to_the_end(images: int, size: int) -> None:
    bounds = shard_bounds(images, size)
    sizes = [stop - start for start, stop in pairwise(bounds)]
    assert (bounds[0], bounds[-1]) == (0, images)
    assert sizes == sorted(sizes, reverse=True)
    assert all(0 < shard <= size for shard in sizes)
    assert all(shard >= min(64, size) for shard in sizes[:-1])
    for at, shard in zip(bounds, sizes, strict=False):
        assert shard <= max(min(64, size), (images - at) // 4)


def test_progress_knows_how_large_each_shard_is(store: FileStore, records: Jobs) -> None:
    create(records)
    bounds = shard_bounds(3000, 512)
    record = records.update("job-1", state=JobState.ACCEPTED, images=3000, shards=len(bounds) - 1, shard_images=512)
    for shard in range(record.shards or 0):
        assert records.progress(record) == JobProgress(done=bounds[shard], total=3000)
        store.put(Jobs.part_key("job-1", shard), b"")
    assert records.progress(record) == JobProgress(done=3000, total=3000)


def test_a_finished_job_is_done_though_its_parts_are_deleted(records: Jobs) -> None:
    create(records)
    record = records.update("job-1", state=JobState.FINISHED, images=25, shards=3, shard_images=10)
    assert records.progress(record) == JobProgress(done=25, total=25)


def test_keys_are_those_of_the_contract() -> None:
    assert Jobs.archive_key("job-1") == "jobs/job-1/archive.zip"
    assert Jobs.part_key("job-1", 12) == "jobs/job-1/parts/000012.csv"
    assert Jobs.results_key("job-1") == "jobs/job-1/results.csv"
    assert ",".join(RESULT_COLUMNS) == "name,gender,probability_female,confidence,true_gender,correct,error"


def test_a_reply_tells_the_results_only_once_finished_and_the_error_where_there_is_one(records: Jobs) -> None:
    create(records)
    record = records.get("job-1")
    assert record.reply("accepted") == {"job_id": "job-1", "status": "accepted", "name": "faces"}
    counts = {"images": 5, "errors": 1}
    finished = record.changed(state="finished", counts=counts, model={"version": 3}).reply()
    assert finished == {
        "job_id": "job-1",
        "status": "finished",
        "name": "faces",
        "results": "store:jobs/job-1/results.csv",
        "counts": counts,
        "accuracy": None,
        "model": {"name": "gender", "version": 3},
    }
    error = {"code": "cancelled", "message": "x"}
    assert record.changed(state="cancelled", error=error).reply()["error"] == error


def test_of_several_that_accept_a_job_the_first_one_s_fields_hold(records: Jobs) -> None:
    create(records)
    first = records.accept("job-1", images=10, shards=1)
    assert (first.state, first.images) == (JobState.ACCEPTED, 10)
    assert records.accept("job-1", images=99, shards=9) == first == records.get("job-1")


def test_a_job_ends_once(records: Jobs) -> None:
    create(records)
    ended = records.end("job-1", JobState.CANCELLED, error={"code": "cancelled", "message": "x"})
    assert ended is not None
    assert ended.state == JobState.CANCELLED
    assert records.end("job-1", JobState.FINISHED, accuracy=1.0) is None
    assert records.accept("job-1", images=10) == records.get("job-1") == ended


def test_what_is_unknown_is_neither_accepted_nor_ended_nor_made(records: Jobs) -> None:
    with pytest.raises(NotFound, match="there is no job 'job-9'"):
        records.accept("job-9")
    with pytest.raises(NotFound, match="there is no job 'job-9'"):
        records.end("job-9", JobState.FAILED)
    assert records.all().records == []


def test_of_many_that_end_a_job_at_the_same_time_one_does(store: FileStore, records: Jobs) -> None:
    create(records)
    barrier = threading.Barrier(4)

    def end(number: int) -> bool:
        barrier.wait()
        return Jobs(store).end("job-1", JobState.FINISHED, accuracy=number) is not None

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(end, range(4))).count(True) == 1


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.REJECTED])
def test_a_job_that_went_wrong_is_opened_once_for_each_time_it_is_requeued_copy(records: Jobs, state: JobState) -> None:
    create(records)
    records.end("job-1", state, error={"code": "internal", "message": "x"})
    opened = records.reopen("job-1", 1.5)
    assert (opened.state, opened.error, opened.retried_at) == (JobState.QUEUED, None, 1.5)
    ended = records.end("job-1", state)
    assert records.reopen("job-1", 1.5) == ended
    assert records.reopen("job-1", 2.5).state == JobState.QUEUED


def test_a_job_that_had_been_accepted_is_so_again_when_opened_with_its_model_and_shards(records: Jobs) -> None:
    create(records)
    accepted = records.accept("job-1", images=10, shards=1, model={"version": 3})
    records.mark_confirmed("job-1", shards_published=True)
    records.end("job-1", JobState.FAILED, error={"code": "internal", "message": "x"})
    records.mark_confirmed("job-1", final_reply_sent=True)
    assert records.reopen("job-1", 1.5) == accepted.changed(retried_at=1.5, updated=records.get("job-1").updated)


def test_an_accepted_job_that_was_sent_back_waits_until_its_message_opens_it(records: Jobs) -> None:
    create(records)
    accepted = records.accept("job-1", images=10, shards=1, model={"version": 3})
    records.end("job-1", JobState.FAILED, error={"code": "internal", "message": "x"})
    assert records.mark_requeued("job-1", 1.5).state is JobState.QUEUED
    assert records.reopen("job-1", 1.5) == accepted.changed(retried_at=1.5, updated=records.get("job-1").updated)


@pytest.mark.parametrize("state", [JobState.ACCEPTED, JobState.FINISHED, JobState.CANCELLED])
def test_no_other_job_is_opened_again(records: Jobs, state: JobState) -> None:
    create(records, state=state)
    record = records.get("job-1")
    assert records.reopen("job-1", 1.5) == record == records.get("job-1")


def test_what_is_noted_of_a_job_does_not_change_when_it_changed(records: Jobs) -> None:
    create(records)
    record = records.update("job-1", state=JobState.FINISHED)
    records.mark_confirmed("job-1", final_reply_sent=True)
    assert records.get("job-1") == record.changed(final_reply_sent=True)

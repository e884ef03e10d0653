"""The client, on a real broker and store; where a worker must answer, a thread plays it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared import client as client_module
from shared.broker.base import BrokerFull, Delivery, Message
from shared.broker.sqlite.broker import SqliteBroker
from shared.client import Client
from shared.connect import open_client
from shared.errors import Conflict, GenderlineError, InvalidMessage, NotFound
from shared.messages import job_id_of, json_reply, parse_dataset, parse_job, parse_prediction, prediction, run_id_of
from shared.records.jobs import Jobs, JobState
from shared.records.record import Fault, ModelRef
from shared.records.runs import Runs, RunState
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from tests.support.builders.cards import card_of

CONTENT = b"PK" + b"x" * 3_000_000

MODEL = {"name": "gender", "version": 3}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with SqliteBroker(tmp_path / "broker.db") as broker:
        yield Client(broker, FileStore(tmp_path / "store"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "my faces.zip"
    path.write_bytes(CONTENT)
    return path


def waiting(client: Client, queue: str) -> list[Message]:
    with client.broker.consume([queue], prefetch=10) as consumer:
        return [delivery.message for delivery in consumer.receive(10, timeout_s=0)]


# -- datasets


def test_a_dataset_is_stored_under_its_hash_and_its_message_names_it(client: Client, archive: Path) -> None:
    run_id = client.submit_dataset(archive, params={"epochs": 3}, message_id="m1")
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    (message,) = waiting(client, client.broker.topology.datasets)
    request = parse_dataset(message)
    assert (request.uri, request.sha256, request.name) == (f"store:datasets/{sha256}/archive.zip", sha256, "my faces")
    assert request.params.epochs == 3
    assert client.store.get(f"datasets/{sha256}/archive.zip") == CONTENT
    assert archive.exists()
    record = client.runs.get(run_id)
    assert run_id == run_id_of("m1") == run_id_of(message.message_id)
    assert (record.state, record.name, record.params.epochs) == (RunState.QUEUED, "my faces", 3)


@pytest.mark.parametrize(("name", "called"), [("n" * 201, "n" * 200), ("bad \udcff", "bad ?")])
def test_a_name_that_a_message_does_not_take_is_made_to_fit(
    client: Client, archive: Path, name: str, called: str
) -> None:
    run_id, job_id = client.submit_dataset(archive, name=name), client.submit_job(archive, name=name)
    (dataset,) = waiting(client, client.broker.topology.datasets)
    (job,) = waiting(client, client.broker.topology.jobs)
    assert (parse_dataset(dataset).name, parse_job(job).name) == (called, called)
    assert (client.runs.get(run_id).name, client.jobs.get(job_id).name) == (called, called)


def test_copying_is_told_piece_by_piece_and_done_once_for_the_same_archive(client: Client, archive: Path) -> None:
    copied: list[int] = []
    first = client.submit_dataset(archive, on_copied=copied.append)
    assert len(copied) > 1
    assert sum(copied) == len(CONTENT)
    second = client.submit_dataset(archive, name="again", on_copied=copied.append)
    assert sum(copied) == len(CONTENT)
    assert first != second
    assert client.runs.get(second).name == "again"


@pytest.mark.parametrize("move", [False, True])
def test_a_damaged_archive_in_the_store_is_replaced_by_the_right_one(client: Client, archive: Path, move: bool) -> None:
    client.submit_dataset(archive)
    key = f"datasets/{hashlib.sha256(CONTENT).hexdigest()}/archive.zip"
    client.store.put(key, CONTENT[:-1] + b"?")
    client.submit_dataset(archive, move=move)
    assert client.store.get(key) == CONTENT


def test_a_file_may_be_given_away(client: Client, archive: Path) -> None:
    client.submit_dataset(archive, move=True)
    assert not archive.exists()
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert client.store.get(f"datasets/{sha256}/archive.zip") == CONTENT


def test_a_wrong_parameter_is_refused_before_anything_is_stored(client: Client, archive: Path) -> None:
    with pytest.raises(InvalidMessage, match="'epoch': unknown parameter"):
        client.submit_dataset(archive, params={"epoch": 3})
    assert client.store.children("") == []
    assert waiting(client, client.broker.topology.datasets) == []


def test_a_file_that_changes_while_it_is_copied_does_not_poison_the_store(client: Client, archive: Path) -> None:
    def change(_: int) -> None:
        with archive.open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"more")

    with pytest.raises(Conflict, match=r"my faces\.zip changed while it was copied"):
        client.submit_dataset(archive, on_copied=change)
    assert client.store.children("datasets") == []
    assert client.runs.all().records == []


def test_a_message_that_the_broker_refuses_leaves_no_run_that_waits_forever(tmp_path: Path, archive: Path) -> None:
    with SqliteBroker(tmp_path / "full.db", queue_limit=1) as broker:
        client = Client(broker, FileStore(tmp_path / "store"))
        client.submit_dataset(archive)
        client.submit_job(archive)
        for submit in (client.submit_dataset, client.submit_job):
            with pytest.raises(BrokerFull):
                submit(archive)
        assert (len(client.runs.all().records), len(client.jobs.all().records)) == (1, 1)


def test_a_run_that_a_trainer_took_at_once_is_not_set_back_to_queued(client: Client, archive: Path) -> None:
    run_id = run_id_of("m1")

    def take(_: int) -> None:
        client.runs.create(run_id, message_id="m1", name="x", params=None, state=RunState.TRAINING)

    client.submit_dataset(archive, message_id="m1", on_copied=take)
    assert client.runs.get(run_id).state == RunState.TRAINING


def test_a_dataset_that_is_submitted_again_under_its_id_is_not_sent_twice(client: Client, archive: Path) -> None:
    first = client.submit_dataset(archive, params={"epochs": 3}, message_id="m1")
    client.runs.update(first, state=RunState.TRAINING)
    assert client.submit_dataset(archive, name="another name", params={"epochs": 3}, message_id="m1") == first
    assert client.runs.get(first).state == RunState.TRAINING
    assert len(waiting(client, client.broker.topology.datasets)) == 1


def test_an_id_is_refused_for_another_dataset_before_anything_is_stored(client: Client, archive: Path) -> None:
    run_id = client.submit_dataset(archive, message_id="m1")
    (dataset,) = client.store.children("datasets")
    told = f"the key 'm1' belongs to {run_id} of .*, whose archive or parameters are others; expected the same request"
    with pytest.raises(Conflict, match=told):
        client.submit_dataset(archive, params={"epochs": 4}, message_id="m1")
    with pytest.raises(Conflict, match=told):
        client.submit_dataset(archive, train=False, message_id="m1")
    with pytest.raises(Conflict, match=told):
        client.train_dataset(dataset, params={"epochs": 4}, message_id="m1")
    archive.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(Conflict, match=told):
        client.submit_dataset(archive, message_id="m1")
    assert client.store.children("datasets") == [dataset]
    assert len(waiting(client, client.broker.topology.datasets)) == 1


# -- retrying


def fail(client: Client, record: Runs | Jobs, record_id: str) -> None:
    """Takes the message of a run or job as its service does, buries it, and notes the failure."""
    queue = client.broker.topology.datasets if isinstance(record, Runs) else client.broker.topology.jobs
    with client.broker.consume([queue], 1) as consumer:
        (delivery,) = consumer.receive(1, timeout_s=1.0)
        consumer.dead_letter(delivery, "internal")
    record.update(record_id, state="failed", error=Fault(code="internal", message="x"))


def test_a_run_that_is_retried_is_queued_at_once_and_no_second_time(client: Client, archive: Path) -> None:
    run_id = client.submit_dataset(archive)
    client.runs.update(run_id, dataset=hashlib.sha256(CONTENT).hexdigest(), attempts=3)
    fail(client, client.runs, run_id)

    with client.broker.subscribe(["run.*"]) as events:
        assert client.retry_run(run_id) == run_id
        assert [(event.topic, event.payload["run_id"]) for event in events.receive(10)] == [("run.queued", run_id)]

    run = client.runs.get(run_id)
    assert (run.state, run.error, run.attempts) == (RunState.QUEUED, None, 0)
    assert [record.run_id for record in client.runs.open().records] == [run_id]
    with pytest.raises(Conflict, match="is queued; only a run that failed"):
        client.retry_run(run_id)
    assert [record.run_id for record in client.runs.all().records] == [run_id]
    assert client.broker.depths()[client.broker.topology.datasets].ready == 1


def test_a_job_that_is_retried_is_queued_at_once_and_no_second_time(client: Client, archive: Path) -> None:
    job_id = client.submit_job(archive)
    fail(client, client.jobs, job_id)

    assert client.retry_job(job_id) == job_id

    job = client.jobs.get(job_id)
    assert (job.state, job.error) == (JobState.QUEUED, None)
    with pytest.raises(Conflict, match="is queued; only a job that failed"):
        client.retry_job(job_id)
    assert client.broker.depths()[client.broker.topology.jobs].ready == 1


def test_what_is_retried_as_a_failed_message_is_queued_at_once_as_well(client: Client, archive: Path) -> None:
    run_id, job_id = client.submit_dataset(archive), client.submit_job(archive)
    fail(client, client.runs, run_id)
    fail(client, client.jobs, job_id)
    client.broker.publish(client.broker.topology.datasets, Message(b"{", "application/json"))  # it has no record
    with client.broker.consume([client.broker.topology.datasets], 1) as consumer:
        consumer.dead_letter(consumer.receive(1, 10)[0], "invalid_message")

    with client.broker.subscribe(["run.queued", "job.queued"]) as events:
        assert client.retry_dead() == 3
        told: set[str] = set()
        while told != {"run.queued", "job.queued"}:
            received = events.receive(10)
            assert received
            told |= {event.topic for event in received}

    assert client.runs.get(run_id).state is RunState.QUEUED
    assert client.jobs.get(job_id).state is JobState.QUEUED
    assert client.retry_dead() == 0


def test_a_shard_that_is_retried_makes_its_job_queued(client: Client, archive: Path) -> None:
    job_id = client.submit_job(archive)
    client.jobs.update(job_id, state=JobState.FAILED, error=Fault(code="internal", message="x"))
    shards = client.broker.topology.shards
    client.broker.publish(shards, Message(b"{}", "application/json", message_id=f"{job_id}.3"))
    with client.broker.consume([shards], 1) as consumer:
        consumer.dead_letter(consumer.receive(1, 10)[0], "internal")

    (dead,) = client.broker.dead_letters()
    assert client.retry_dead([dead.dead_id]) == 1
    assert client.jobs.get(job_id).state is JobState.QUEUED


@pytest.mark.parametrize("stranger", ["hello", "../hello.3", ".", "x" * 3000])
def test_a_message_or_record_that_cannot_be_read_keeps_no_other_from_being_queued(
    client: Client, archive: Path, stranger: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards = client.broker.topology.shards
    client.broker.publish(shards, Message(b"not one of ours", "text/plain", stranger))
    with client.broker.consume([shards], 1) as consumer:
        consumer.dead_letter(consumer.receive(1, 10)[0], "invalid_message")
    damaged, run_id, job_id = client.submit_dataset(archive), client.submit_dataset(archive), client.submit_job(archive)
    for record_id in (damaged, run_id):
        fail(client, client.runs, record_id)
    fail(client, client.jobs, job_id)
    client.store.put(client.runs.key(damaged), b"{")

    assert client.retry_dead() == 4
    assert client.runs.get(run_id).state is RunState.QUEUED
    assert client.jobs.get(job_id).state is JobState.QUEUED
    assert f"runs/{damaged}/run.json in the store is damaged" in caplog.text


def test_what_a_worker_opened_faster_is_not_set_back_to_queued(client: Client, archive: Path) -> None:
    run_id = client.submit_dataset(archive)
    fail(client, client.runs, run_id)
    client.runs.reopen(run_id, 1.5)
    failed = client.runs.update(run_id, state=RunState.FAILED)

    assert client.runs.mark_requeued(run_id, 1.5) == failed == client.runs.get(run_id)


# -- following


def test_a_run_is_followed_by_events_to_its_end(client: Client, archive: Path) -> None:
    run_id = client.submit_dataset(archive)

    def train() -> None:
        client.runs.update(run_id, state=RunState.TRAINING)
        client.broker.emit(
            "run.progress", {"run_id": "another", "progress": {"stage": "training", "done": 99, "total": 99}}
        )
        client.broker.emit(
            "run.progress", {"run_id": run_id, "progress": {"stage": "training", "done": 5, "total": 99}}
        )

    followed = client.follow_run(run_id, timeout_s=20)
    assert next(followed).state == RunState.QUEUED
    train()
    record = next(followed)
    assert (record.state, record.progress.done) == (RunState.TRAINING, 5)
    client.runs.update(run_id, state=RunState.REGISTERED, model=MODEL)
    client.broker.emit("run.registered", {"run_id": run_id})
    rest = list(followed)
    assert (rest[-1].state, rest[-1].model) == (RunState.REGISTERED, ModelRef.model_validate(MODEL))


def test_an_end_without_an_event_is_found_all_the_same(
    client: Client, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_POLL_S", 0.01)
    run_id = client.submit_dataset(archive)
    followed = client.follow_run(run_id, timeout_s=20)
    assert next(followed).state == RunState.QUEUED
    client.runs.update(run_id, state=RunState.FAILED)
    assert list(followed)[-1].state == RunState.FAILED


def test_a_run_that_has_ended_is_told_once(client: Client, archive: Path) -> None:
    run_id = client.submit_dataset(archive)
    client.runs.update(run_id, state=RunState.REJECTED)
    assert [record.state for record in client.follow_run(run_id)] == [RunState.REJECTED]


def test_following_ends_with_a_time_out_that_says_the_state(
    client: Client, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_POLL_S", 0.01)
    run_id = client.submit_dataset(archive)
    with pytest.raises(GenderlineError, match=f"{run_id} is still queued after 0.05 s; it goes on") as caught:
        list(client.follow_run(run_id, timeout_s=0.05))
    assert caught.value.code == "timeout"


def test_nothing_to_follow_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="there is no run 'run-9'"):
        next(client.follow_run("run-9"))
    with pytest.raises(NotFound, match="there is no job 'job-9'"):
        next(client.follow_job("job-9"))


# -- jobs


def test_a_job_is_stored_and_its_message_names_it(client: Client, archive: Path) -> None:
    job_id = client.submit_job(archive, name="batch", message_id="m1")
    (message,) = waiting(client, client.broker.topology.jobs)
    request = parse_job(message)
    assert (job_id, request.name, request.uri) == (job_id_of("m1"), "batch", f"store:jobs/{job_id}/archive.zip")
    assert client.store.get(f"jobs/{job_id}/archive.zip") == CONTENT
    assert client.jobs.get(job_id).state == JobState.QUEUED


def test_a_job_is_submitted_again_under_its_id_only_with_its_archive(client: Client, archive: Path) -> None:
    job_id = client.submit_job(archive, message_id="m1")
    assert client.submit_job(archive, name="another name", message_id="m1") == job_id
    archive.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(Conflict, match=f"the key 'm1' belongs to {job_id} of .*, whose archive is another"):
        client.submit_job(archive, message_id="m1")
    assert client.store.get(f"jobs/{job_id}/archive.zip") == CONTENT
    assert len(waiting(client, client.broker.topology.jobs)) == 1


def test_the_archive_of_a_job_that_could_not_be_sent_is_replaced_by_that_of_the_next_try(
    tmp_path: Path, archive: Path
) -> None:
    with SqliteBroker(tmp_path / "full.db", queue_limit=1) as broker:
        client = Client(broker, FileStore(tmp_path / "store"))
        client.submit_job(archive)
        with pytest.raises(BrokerFull):
            client.submit_job(archive, message_id="m1")
        with broker.consume([broker.topology.jobs], 1) as consumer:
            consumer.settle(consumer.receive(1, 10), [])
        archive.write_bytes(CONTENT[:-1] + b"?")
        job_id = client.submit_job(archive, message_id="m1")
        assert client.store.get(f"jobs/{job_id}/archive.zip") == CONTENT[:-1] + b"?"


def test_a_job_is_followed_with_the_images_done_to_its_end(
    client: Client, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_POLL_S", 0.01)
    job_id = client.submit_job(archive)
    client.jobs.update(job_id, state=JobState.ACCEPTED, images=15, shards=2, shard_images=10)
    client.store.put(client.jobs.part_key(job_id, 1), b"")
    followed = client.follow_job(job_id, timeout_s=20)
    assert next(followed)[1].done == 5
    client.jobs.update(job_id, state=JobState.FINISHED)
    *_, (job, progress) = followed
    assert (job.state, progress.done) == (JobState.FINISHED, 15)


# -- predictions


@contextmanager
def worker(client: Client, answer: Callable[[Delivery], dict[str, Any]]) -> Iterator[list[Delivery]]:
    """A thread that answers the predictions' queue until the context ends. Gives what it took."""
    stop = threading.Event()
    taken: list[Delivery] = []

    def work() -> None:
        with client.broker.consume([client.broker.topology.predictions], prefetch=10) as consumer:
            while not stop.is_set():
                for delivery in consumer.receive(1, timeout_s=0.1):
                    taken.append(delivery)
                    consumer.settle([delivery], json_reply(delivery.message, answer(delivery)))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join(10)


def by_first_byte(delivery: Delivery) -> dict[str, Any]:
    request = parse_prediction(delivery.message)
    entries = [prediction(key, data[0] / 255) for key, data in zip(request.ids, request.images, strict=True)]
    return {"model": MODEL, "predictions": entries[::-1]}  # whatever the order


def test_many_images_go_in_packs_and_come_back_in_order(client: Client) -> None:
    images = [bytes([number % 256]) for number in range(600)]
    told: list[int] = []
    with worker(client, by_first_byte) as taken:
        entries, model = client.predict(images, on_done=told.append)
    assert [entry["id"] for entry in entries] == list(range(600))
    assert [entry["gender"] for entry in entries[:256]] == ["male"] * 128 + ["female"] * 128
    assert model == MODEL
    assert sorted(len(parse_prediction(one.message).images) for one in taken) == [88, 256, 256]
    assert told[-1] == 600
    assert told == sorted(told)


def test_large_images_go_in_packs_that_any_broker_takes(client: Client) -> None:
    with worker(client, by_first_byte) as taken:
        entries, _ = client.predict([b"\xff" * 3_000_000] * 7 + [b"\x00" * 9_000_000])
    assert len(entries) == 8
    assert [len(parse_prediction(one.message).images) for one in taken] == [2, 2, 2, 1, 1]
    assert max(len(one.message.body) for one in taken) < 16 * 2**20


def test_a_pinned_version_and_the_deadline_travel_along(client: Client) -> None:
    before = time.time()
    with worker(client, by_first_byte) as taken:
        client.predict([b"x"], model_version=3, timeout_s=30)
    request = parse_prediction(taken[0].message)
    assert request.model_version == 3
    assert request.deadline is not None
    assert before + 30 <= request.deadline <= time.time() + 30


def test_no_images_need_no_worker(client: Client) -> None:
    assert client.predict([], timeout_s=3600) == ([], None)


def test_the_error_of_a_whole_pack_is_raised_as_the_worker_put_it(client: Client) -> None:
    error = {"code": "unknown_model_version", "message": "there is no model version 9; registered: 3"}
    with (
        worker(client, lambda _: {"error": error}),
        pytest.raises(GenderlineError, match="no model version 9") as caught,
    ):
        client.predict([b"x"], model_version=9)
    assert caught.value.code == "unknown_model_version"


def test_the_error_of_one_image_is_its_entry(client: Client) -> None:
    error = {"code": "invalid_image", "message": "truncated"}
    with worker(client, lambda _: {"model": MODEL, "predictions": [{"id": 0, "error": error}]}):
        assert client.predict([b"x"]) == ([{"id": 0, "error": error}], MODEL)


def test_without_an_answer_in_time_the_error_says_how_many_are_missing(client: Client) -> None:
    with pytest.raises(GenderlineError, match=r"no prediction for 2 of 2 images within 0\.05 s; is an inf") as caught:
        client.predict([b"x", b"y"], timeout_s=0.05)
    assert caught.value.code == "timeout"


# -- models


def test_promoting_and_rolling_back_are_told_to_the_workers(client: Client) -> None:
    for version in (1, 2):
        client.registry.register(card_of(client.registry.claim(f"run-{version}"), f"run-{version}"), "", {})
        client.store.put(client.registry.model_key(version), b"onnx")
    with client.broker.subscribe(["model.*"]) as events:
        client.promote(1, "first")
        client.promote(2, "better")
        assert client.rollback("worse") == 1
        told = [(event.topic, event.payload["version"], event.payload["reason"]) for event in events.receive(10)]
    assert told == [("model.promoted", n, why) for n, why in ((1, "first"), (2, "better"), (1, "worse"))]


def test_an_imported_model_is_promoted_only_where_nothing_serves(client: Client) -> None:
    for version in (1, 2):
        client.registry.register(card_of(client.registry.claim(f"run-{version}"), f"run-{version}"), "", {})
        client.store.put(client.registry.model_key(version), b"onnx")
    with client.broker.subscribe(["model.*"]) as events:
        assert client.adopt(2, "imported")
        assert not client.adopt(1, "imported")
        told = [(event.topic, event.payload["version"]) for event in events.receive(10)]
    assert told == [("model.registered", 2), ("model.promoted", 2), ("model.registered", 1)]
    assert client.registry.aliases().champion == 2


def test_a_client_is_opened_as_the_settings_say(tmp_path: Path, archive: Path) -> None:
    settings = Settings(
        broker_url=f"sqlite:///{tmp_path}/broker.db", store_url=f"file:{tmp_path}/store", queue_prefix="mine"
    )
    with open_client(settings) as client:
        client.submit_dataset(archive)
        assert client.broker.topology.datasets == "mine.datasets"
        assert client.broker.depths()["mine.datasets"].ready == 1
    assert (tmp_path / "store" / "runs").is_dir()

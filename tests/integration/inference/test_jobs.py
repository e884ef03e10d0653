"""Batch jobs on both brokers: from the archive through shards to one CSV and one final reply."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from inference.model.loader import ServedModel
from inference.model.predictor import Predictor, Result
from shared.broker.base import Message, ReplyQueue
from shared.client import Client
from shared.connect import open_broker_for
from shared.errors import InvalidModel
from shared.messages import ZIP, by_reference, job_id_of, json_message, request_digest
from shared.records.jobs import RESULT_COLUMNS, Job, Jobs, JobState
from shared.store.files import FileStore
from tests.support.brokers.rabbitmq_shared import SharedNode
from tests.support.brokers.wire import typed
from tests.support.builders.models import brightness_answer, brightness_model, constant_model, image_of
from tests.support.inference_loops import Loops, open_loops
from tests.support.services import eventually

Entries = Sequence[tuple[str, bytes]]


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    """On the embedded broker, with a model and shards of three images."""
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}", lease_s=1.0, shard_images=3) as made:
        yield serving(made)


@pytest.fixture(params=["sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loops]:
    """The same on the embedded broker, and on RabbitMQ."""
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbitmq").url
    with open_loops(tmp_path, url, shard_images=3) as made:
        yield serving(made)


def serving(loops: Loops) -> Loops:
    loops.builder.register(brightness_model())
    loops.models.refresh()
    return loops


def zip_of(entries: Entries) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def faces(count: int) -> list[tuple[str, bytes]]:
    """Returns dark images labelled male and bright ones labelled female, by turns; every fifth label is wrong."""
    return [
        (f"30_{(i % 2) ^ (i % 5 == 4)}_0_{i}.png", image_of(220 + i % 20 if i % 2 else 20 + i % 20))
        for i in range(count)
    ]


def send(loops: Loops, message: Message) -> str:
    loops.broker.publish(loops.broker.topology.jobs, message)
    return job_id_of(message.message_id)


def job_replies(inbox: ReplyQueue, *statuses: str) -> list[dict[str, Any]]:
    """Waits for replies with these statuses, in this order, and makes sure that no more come."""
    found: list[Message] = []

    def look() -> bool:
        found.extend(inbox.receive(0.5))
        return len(found) >= len(statuses)

    eventually(look, 40, f"replies {statuses}")
    found += inbox.receive(0.3)
    bodies: list[dict[str, Any]] = [json.loads(message.body) for message in found]
    assert [body["status"] for body in bodies] == list(statuses), bodies
    return bodies


def rows_of(loops: Loops, job_id: str) -> list[dict[str, str]]:
    text = loops.store.get(Jobs.results_key(job_id)).decode()
    assert text.splitlines()[0] == ",".join(RESULT_COLUMNS)
    return list(csv.DictReader(io.StringIO(text)))


def queues_empty(loops: Loops) -> None:
    topology = loops.broker.topology

    def look() -> bool:
        depths = loops.broker.depths()
        return not any(depths[q].ready or depths[q].unacknowledged for q in (topology.jobs, topology.shards))

    eventually(look, 20, "empty queues")


def test_an_archive_becomes_one_csv_in_archive_order_and_two_replies(either: Loops) -> None:
    entries = [
        *faces(7),
        ("no label.png", image_of(250)),
        ("deep/folder/8_1_2.png", b"no image"),
        ("__MACOSX/x", b""),
        ("line\r\nbreak.png", image_of(0)),
        ('quoted ",".png', image_of(0)),
    ]
    told = ("job.accepted", "job.progress", "job.finished")
    with (
        typed(open_broker_for(either.settings), either.store, *told),
        either.broker.reply_queue() as inbox,
        either.running(either.bulk().run),
    ):
        message = Message(zip_of(entries), ZIP, "m1", "c1", inbox.name, {"name": "holiday"})
        job_id = send(either, message)
        accepted, finished = job_replies(inbox, "accepted", "finished")
        queues_empty(either)
    assert accepted == {"schema": 1, "job_id": job_id, "status": "accepted", "name": "holiday"}
    assert finished == {
        "schema": 1,
        "job_id": job_id,
        "status": "finished",
        "name": "holiday",
        "results": f"store:jobs/{job_id}/results.csv",
        "counts": {"images": 11, "errors": 2},
        "accuracy": pytest.approx(6 / 7),
        "model": {"name": "gender", "version": 1},
    }
    rows = rows_of(either, job_id)
    names = [name for name, _ in entries if name != "__MACOSX/x"]
    assert [row["name"] for row in rows] == [name.replace("\r", "␍").replace("\n", "␊") for name in names]
    first, labelled_wrongly, unlabelled, broken, unsafe = rows[0], rows[4], rows[7], rows[8], rows[9]
    assert (first["gender"], first["true_gender"], first["correct"], first["error"]) == ("male", "male", "true", "")
    assert float(first["probability_female"]) == pytest.approx(brightness_answer(20), abs=1e-4)
    assert float(first["confidence"]) == pytest.approx(1 - brightness_answer(20), abs=1e-4)
    assert (labelled_wrongly["gender"], labelled_wrongly["true_gender"]) == ("male", "female")
    assert labelled_wrongly["correct"] == "false"
    assert (unlabelled["gender"], unlabelled["true_gender"], unlabelled["correct"]) == ("female", "", "")
    assert (broken["gender"], broken["probability_female"], broken["true_gender"]) == ("", "", "female")
    assert broken["error"].startswith("invalid_image: ")
    assert unsafe["error"].startswith("unsafe_name: ")
    record = Jobs(either.store).get(job_id)
    assert (record.state, record.images, record.shards) == ("finished", 11, 4)
    assert not either.store.exists(Jobs.part_key(job_id, 0))
    # The one shard that may end the job, and that repeats the reply should it come again.
    assert either.store.get(f"jobs/{job_id}/finisher") == b"3"
    assert either.broker.dead_letters() == []


def test_beside_interactive_work_a_job_goes_in_small_steps(loops: Loops) -> None:
    loops = replace(loops, settings=loops.settings.model_copy(update={"shard_images": 100}))
    lately = iter([True, True])
    bulk = loops.bulk(interactive_recently=lambda: next(lately, False))
    with loops.broker.reply_queue() as inbox, loops.running(bulk.run):
        job_id = send(loops, Message(zip_of(faces(50)), ZIP, reply_to=inbox.name))
        _, finished = job_replies(inbox, "accepted", "finished")
    assert finished["counts"] == {"images": 50, "errors": 0}
    assert [row["name"] for row in rows_of(loops, job_id)] == [name for name, _ in faces(50)]
    assert loops.value("genderline_batch_size_bucket", le="8.0") == 2
    assert loops.value("genderline_batch_size_count") == 3


def test_a_job_without_labels_has_no_accuracy(loops: Loops) -> None:
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        send(loops, Message(zip_of([("a.png", image_of(0))]), ZIP, reply_to=inbox.name))
        _, finished = job_replies(inbox, "accepted", "finished")
    assert finished["accuracy"] is None


@pytest.mark.parametrize("kind", ["store", "file"])
def test_an_archive_can_be_named_in_the_store_or_in_an_allowed_folder(loops: Loops, tmp_path: Path, kind: str) -> None:
    data = zip_of(faces(4))
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    if kind == "store":
        loops.store.put("uploads/a.zip", data)
        uri = "store:uploads/a.zip"
    else:
        (allowed / "a.zip").write_bytes(data)
        uri = (allowed / "a.zip").as_uri()
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        job_id = send(loops, by_reference(uri, name="by name", reply_to=inbox.name))
        _, finished = job_replies(inbox, "accepted", "finished")
    assert finished["counts"] == {"images": 4, "errors": 0}
    assert len(rows_of(loops, job_id)) == 4
    if kind == "file":
        assert (allowed / "a.zip").read_bytes() == data


def test_the_python_client_follows_a_job_to_its_end(loops: Loops, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of(faces(7)))
    client = Client(loops.broker, loops.store)
    with loops.running(loops.bulk().run):
        *_, (job, progress) = client.follow_job(client.submit_job(archive), 30)
    assert (job.state, progress.done) == (JobState.FINISHED, 7)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"no zip at all", "invalid_archive"),
        (zip_of([]), "invalid_archive"),
        (zip_of([("a.png", image_of(0))])[:-30], "invalid_archive"),
    ],
)
def test_a_bad_archive_is_rejected_with_one_reply_and_no_dead_letter(loops: Loops, body: bytes, code: str) -> None:
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        job_id = send(loops, Message(body, ZIP, reply_to=inbox.name, correlation_id="c"))
        (rejected,) = job_replies(inbox, "rejected")
        queues_empty(loops)
    assert rejected["error"]["code"] == code
    assert rejected["error"]["message"]
    assert Jobs(loops.store).get(job_id).state == "rejected"
    assert loops.broker.dead_letters() == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Message(b"", "text/plain"), "unsupported_content_type"),
        (Message(b'{"schema": 2, "uri": "store:a"}', "application/json"), "unsupported_schema"),
        (by_reference("file:///etc/passwd"), "uri_not_allowed"),
        (by_reference("store:../../etc/passwd"), "uri_not_allowed"),
        (by_reference("ftp://example.org/a.zip"), "uri_not_allowed"),
        (by_reference("store:nothing/here.zip"), "uri_not_found"),
    ],
)
def test_an_invalid_job_message_is_rejected_with_a_reply_and_buried_and_again_when_sent_again(
    loops: Loops, message: Message, code: str
) -> None:
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        asked = replace(message, reply_to=inbox.name, message_id="bad")
        for _ in range(2):
            send(loops, asked)
            (rejected,) = job_replies(inbox, "rejected")
            assert rejected["error"]["code"] == code
    assert {letter.reason for letter in loops.broker.dead_letters()} == {code}
    assert Jobs(loops.store).get(job_id_of("bad")).state == "rejected"


def test_the_same_message_again_after_the_end_only_repeats_the_reply(loops: Loops) -> None:
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        message = Message(zip_of(faces(7)), ZIP, "twice", reply_to=inbox.name)
        job_id = send(loops, message)
        _, first = job_replies(inbox, "accepted", "finished")
        updated = Jobs(loops.store).get(job_id).updated
        send(loops, message)
        (second,) = job_replies(inbox, "finished")
    assert second == first
    assert Jobs(loops.store).get(job_id).updated == updated
    assert loops.value("genderline_predictions_total", outcome="ok") == 7


def test_a_deleted_job_that_is_sent_again_is_predicted_from_its_new_archive(loops: Loops) -> None:
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        for prefix, count in (("monday", 4), ("tuesday", 6)):
            entries = [(f"{prefix}{i}.png", image_of(200)) for i in range(count)]
            job_id = send(loops, Message(zip_of(entries), ZIP, "nightly", reply_to=inbox.name))
            job_replies(inbox, "accepted", "finished")
            queues_empty(loops)
            assert [row["name"] for row in rows_of(loops, job_id)] == [name for name, _ in entries]
            Jobs(loops.store).delete(job_id)


def test_the_same_message_twice_at_once_is_computed_once_and_who_asked_last_is_told(loops: Loops) -> None:
    with loops.broker.reply_queue() as gone, loops.broker.reply_queue() as inbox:
        message = Message(zip_of(faces(7)), ZIP, "twice", reply_to=gone.name)
        send(loops, message)
        send(loops, replace(message, reply_to=inbox.name))
        with loops.running(loops.bulk().run):
            job_replies(inbox, "accepted", "finished")
            job_replies(gone, "accepted")
    assert loops.value("genderline_predictions_total", outcome="ok") == 7


def test_a_message_that_comes_again_just_as_its_job_ends_is_answered_by_how_it_ended(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = Message(zip_of(faces(4)), ZIP, "m")
    job_id, records = job_id_of("m"), Jobs(loops.store)
    records.create(job_id, message_id="m", name="a")
    records.accept(job_id, images=4, shards=2, shard_images=3)
    records.mark_confirmed(job_id, shards_published=True)
    update = Jobs.update

    def end_first(self: Jobs, which: str, **changes: Any) -> Job:
        records.end(job_id, JobState.FINISHED, counts={"images": 4, "errors": 0})  # by the worker of the last shard
        return update(self, which, **changes)

    monkeypatch.setattr(Jobs, "update", end_first)
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        send(loops, replace(message, reply_to=inbox.name))
        (finished,) = job_replies(inbox, "finished")
        queues_empty(loops)
    assert finished["counts"] == {"images": 4, "errors": 0}
    assert loops.broker.dead_letters() == []


def test_a_shard_delivered_twice_changes_nothing(loops: Loops) -> None:
    with loops.broker.reply_queue() as inbox:
        message = Message(zip_of(faces(7)), ZIP, "m", reply_to=inbox.name)
        job_id = job_id_of("m")
        shard = {"job_id": job_id, "shard": 1, "start": 3, "stop": 6}
        with loops.running(loops.bulk().run):
            send(loops, message)
            loops.broker.publish(loops.broker.topology.shards, json_message(shard))
            job_replies(inbox, "accepted", "finished")
            loops.broker.publish(loops.broker.topology.shards, json_message(shard))
            queues_empty(loops)
            assert inbox.receive(0.2) == []
    assert len(rows_of(loops, job_id)) == 7
    assert loops.broker.dead_letters() == []


def test_a_malformed_shard_is_buried(loops: Loops) -> None:
    with loops.running(loops.bulk().run):
        loops.broker.publish(loops.broker.topology.shards, Message(b"[]", "application/json"))
        eventually(loops.broker.dead_letters, 10, "a dead letter")
        queues_empty(loops)
    assert [letter.reason for letter in loops.broker.dead_letters()] == ["invalid_message"]


@pytest.mark.parametrize("opened", [None, JobState.QUEUED, JobState.FAILED])
def test_a_shard_whose_job_is_unknown_is_tried_again_and_then_buried(tmp_path: Path, opened: JobState | None) -> None:
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}") as opened_loops:
        loops = replace(opened_loops, missing_for_s=0.3, first_pause_s=0.1)
        if opened is not None:
            Jobs(loops.store).create(job_id_of("m"), message_id="m", name="a", state=opened)
        shard = {"job_id": job_id_of("m"), "shard": 0, "start": 0, "stop": 1}
        with serving(loops).running(loops.bulk().run):
            for _ in range(2):  # what is known of the first one's job need not be found out again
                loops.broker.publish(loops.broker.topology.shards, json_message(shard))
                eventually(loops.broker.dead_letters, 10, "a dead letter")
                (letter,) = loops.broker.dead_letters()
                assert letter.reason == "not_found"
                loops.broker.drop_dead()
        assert getattr(Jobs(loops.store).find(job_id_of("m")), "state", None) == opened


def test_a_job_whose_record_is_out_of_sight_for_a_moment_goes_on(
    loops: Loops, caplog: pytest.LogCaptureFixture
) -> None:
    halted, predictor = halting(loops)
    with loops.broker.reply_queue() as inbox, halted.running(halted.bulk().run):
        job_id = send(loops, Message(zip_of(faces(9)), ZIP, reply_to=inbox.name))
        assert predictor.reached.wait(20)
        record = loops.store.path(f"jobs/{job_id}/job.json")
        aside = record.rename(record.with_name("aside"))
        predictor.go_on.set()
        eventually(lambda: "there is no job" in caplog.text, 20, "a shard without a job")
        aside.rename(record)
        _, finished = job_replies(inbox, "accepted", "finished")
    assert finished["counts"] == {"images": 9, "errors": 0}


def test_a_shard_that_its_job_does_not_have_is_buried_and_the_job_goes_on(loops: Loops) -> None:
    halted, predictor = halting(loops)
    with loops.broker.reply_queue() as inbox, halted.running(halted.bulk().run):
        job_id = send(loops, Message(zip_of(faces(7)), ZIP, reply_to=inbox.name))
        assert predictor.reached.wait(20)
        for shard, start, stop in [(3, 7, 9), (0, 0, 7), (1, 2, 1), (10**9, 0, 3)]:
            body = {"job_id": job_id, "shard": shard, "start": start, "stop": stop}
            loops.broker.publish(loops.broker.topology.shards, json_message(body))
        loops.broker.publish(loops.broker.topology.shards, json_message({**body, "job_id": "../x"}))
        predictor.go_on.set()
        _, finished = job_replies(inbox, "accepted", "finished")
        queues_empty(loops)
    assert finished["counts"] == {"images": 7, "errors": 0}
    assert [letter.reason for letter in loops.broker.dead_letters()] == ["invalid_message"] * 5


def test_a_damaged_record_costs_its_job_and_not_the_worker(loops: Loops) -> None:
    loops.store.put(f"jobs/{job_id_of('damaged')}/job.json", b"{")
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        send(loops, Message(zip_of(faces(3)), ZIP, "damaged", reply_to=inbox.name))
        (reply,) = job_replies(inbox, "failed")
        assert reply["error"]["code"] == "damaged_record"
        assert f"jobs/{job_id_of('damaged')}/job.json" in reply["error"]["message"]
        send(loops, Message(zip_of(faces(3)), ZIP, "sound", reply_to=inbox.name))
        job_replies(inbox, "accepted", "finished")
    assert [letter.reason for letter in loops.broker.dead_letters()] == ["damaged_record"]


def test_a_job_waits_for_a_store_that_is_away_as_long_as_it_takes(
    either: Loops, caplog: pytest.LogCaptureFixture
) -> None:
    either = replace(either, first_pause_s=0.05)
    away = either.store.path("jobs")
    away.symlink_to("jobs")
    with either.broker.reply_queue() as inbox, either.running(either.bulk().run):
        job_id = send(either, Message(zip_of(faces(7)), ZIP, reply_to=inbox.name))
        eventually(lambda: caplog.text.count("trying again in") > 5, 30, "tries")
        away.unlink()
        job_replies(inbox, "accepted", "finished")
        queues_empty(either)
    assert len(rows_of(either, job_id)) == 7
    assert either.broker.dead_letters() == []


def test_progress_tells_how_many_are_done_how_fast_and_how_long_it_will_take(loops: Loops) -> None:
    with (
        loops.broker.subscribe(["job.#"]) as events,
        loops.broker.reply_queue() as inbox,
        loops.running(loops.bulk().run),
    ):
        job_id = send(loops, Message(zip_of(faces(7)), ZIP, reply_to=inbox.name))
        job_replies(inbox, "accepted", "finished")
        seen = events.receive(1)
    assert [event.topic for event in seen] == [
        "job.accepted",
        "job.progress",
        "job.progress",
        "job.progress",
        "job.finished",
    ]
    assert all(event.payload["job_id"] == job_id for event in seen)
    progress = [event.payload["progress"] for event in seen if event.topic == "job.progress"]
    assert [(each["done"], each["total"]) for each in progress] == [(3, 7), (6, 7), (7, 7)]
    assert all(each["rate"] > 0 for each in progress)
    assert progress[-1]["eta_s"] == 0


def test_told_to_stop_in_the_midst_of_a_shard_a_worker_gives_it_back_uncounted(loops: Loops) -> None:
    loops = replace(loops, settings=loops.settings.model_copy(update={"shard_images": 1000}))
    stop = threading.Event()

    class Stopping(Predictor):
        def predict(
            self,
            model: ServedModel,
            images: Sequence[bytes],
            owners: Sequence[int] | None = None,
            *,
            probe: bool = False,
        ) -> list[Result]:
            stop.set()
            return Predictor.predict(self, model, images, owners, probe=probe)

    stopping = replace(loops, predictor=Stopping(loops.predictor.decoder, 64, loops.metrics))
    with loops.broker.reply_queue() as inbox:
        job_id = send(loops, Message(zip_of(faces(300)), ZIP, reply_to=inbox.name))
        stopping.bulk().run(stop)
        assert loops.store.children(f"jobs/{job_id}/parts") == []
        with loops.broker.consume([loops.broker.topology.shards], 1) as consumer:
            assert consumer.receive(1, 5)[0].delivery_count == 0
        with loops.running(loops.bulk().run):
            job_replies(inbox, "accepted", "finished")
    assert len(rows_of(loops, job_id)) == 300


def test_a_message_that_has_the_id_of_an_accepted_job_and_cannot_be_read_leaves_the_job_alone(loops: Loops) -> None:
    halted, predictor = halting(loops)
    with (
        loops.broker.reply_queue() as inbox,
        loops.broker.reply_queue() as other,
        halted.running(halted.bulk().run),
    ):
        job_id = send(loops, Message(zip_of(faces(9)), ZIP, "same", reply_to=inbox.name))
        assert predictor.reached.wait(20)
        send(loops, Message(b"", "text/plain", "same", reply_to=other.name))
        predictor.go_on.set()
        (refused,) = job_replies(other, "rejected")
        _, finished = job_replies(inbox, "accepted", "finished")
    assert refused["error"]["code"] == "unsupported_content_type"
    assert finished["counts"] == {"images": 9, "errors": 0}
    assert Jobs(loops.store).get(job_id).state == JobState.FINISHED


@dataclass(frozen=True, slots=True)
class Halting(Predictor):
    """A predictor that waits at its second batch for leave to go on."""

    reached: threading.Event = None  # type: ignore[assignment]
    go_on: threading.Event = None  # type: ignore[assignment]
    fail: bool = False

    def predict(
        self,
        model: ServedModel,
        images: Sequence[bytes],
        owners: Sequence[int] | None = None,
        *,
        probe: bool = False,
    ) -> list[Result]:
        (sizes,) = self.metrics.batch_size.collect()
        predicted = sum(sample.value for sample in sizes.samples if sample.name.endswith("_sum"))
        if predicted > 0 and not self.go_on.is_set():
            self.reached.set()
            self.go_on.wait(20)
        if self.fail and self.reached.is_set():
            raise RuntimeError("a bug")
        return Predictor.predict(self, model, images, owners, probe=probe)


def halting(loops: Loops, *, fail: bool = False) -> tuple[Loops, Halting]:
    predictor = Halting(loops.predictor.decoder, 64, loops.metrics, (), threading.Event(), threading.Event(), fail)
    return replace(loops, predictor=predictor), predictor


def test_a_cancelled_job_ends_with_one_reply_and_without_results(loops: Loops) -> None:
    halted, predictor = halting(loops)
    with loops.broker.reply_queue() as inbox, halted.running(halted.bulk().run):
        job_id = send(loops, Message(zip_of(faces(12)), ZIP, reply_to=inbox.name))
        assert predictor.reached.wait(20)
        Jobs(loops.store).request_cancel(job_id)
        predictor.go_on.set()
        _, cancelled = job_replies(inbox, "accepted", "cancelled")
        queues_empty(loops)
    assert cancelled["error"] == {"code": "cancelled", "message": "cancelled by a user"}
    assert not loops.store.exists(Jobs.results_key(job_id))
    assert not loops.store.exists(Jobs.part_key(job_id, 0))


def test_a_shard_that_is_computed_as_its_job_is_cancelled_leaves_no_rows(loops: Loops) -> None:
    job_id = job_id_of("m")

    class Slow(Predictor):
        def predict(
            self,
            model: ServedModel,
            images: Sequence[bytes],
            owners: Sequence[int] | None = None,
            *,
            probe: bool = False,
        ) -> list[Result]:
            Jobs(loops.store).end(job_id, JobState.CANCELLED)  # by the worker of another shard
            return Predictor.predict(self, model, images, owners, probe=probe)

    slow = replace(loops, predictor=Slow(loops.predictor.decoder, 64, loops.metrics))
    with loops.broker.reply_queue() as inbox:
        send(loops, Message(zip_of(faces(4)), ZIP, "m", reply_to=inbox.name))
        with loops.running(slow.bulk().run):
            job_replies(inbox, "accepted")
            queues_empty(loops)
    assert loops.store.children(f"jobs/{job_id}/parts") == []


def test_a_shard_that_is_computed_as_its_job_is_deleted_is_done_with(loops: Loops) -> None:
    halted, predictor = halting(loops)
    with halted.running(halted.bulk().run):
        job_id = send(loops, Message(zip_of(faces(7)), ZIP))
        assert predictor.reached.wait(20)
        Jobs(loops.store).end(job_id, JobState.CANCELLED)  # by the worker of another shard
        Client(loops.broker, loops.store).delete("job", job_id)
        predictor.go_on.set()
        topology = loops.broker.topology
        eventually(lambda: not loops.broker.depths()[topology.shards].unacknowledged, 10, "a settled shard")
    assert loops.broker.dead_letters() == []
    assert not loops.store.path(f"jobs/{job_id}").exists()


def test_a_shard_of_a_deleted_job_leaves_no_rows_to_the_job_that_was_sent_again(loops: Loops) -> None:
    halted, predictor = halting(loops)
    jobs = Jobs(loops.store)
    with halted.running(halted.bulk().run):
        job_id = send(loops, Message(zip_of(faces(6)), ZIP, "m"))
        assert predictor.reached.wait(20)
        jobs.end(job_id, JobState.CANCELLED)
        Client(loops.broker, loops.store).delete("job", job_id)
        jobs.create(job_id, message_id="m", name="sent again")
        jobs.accept(job_id, images=6, shards=2, shard_images=3)
        predictor.go_on.set()
        queues_empty(loops)
    assert jobs.parts(job_id) == []
    assert loops.broker.dead_letters() == []


def test_a_job_cancelled_before_it_was_opened_never_starts(loops: Loops) -> None:
    message = Message(zip_of(faces(3)), ZIP, "m")
    job_id = job_id_of("m")
    Jobs(loops.store).create(job_id, message_id="m", name="a", state=JobState.QUEUED)
    Jobs(loops.store).request_cancel(job_id)
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        send(loops, replace(message, reply_to=inbox.name))
        job_replies(inbox, "cancelled")
    assert loops.value("genderline_predictions_total", outcome="ok") == 0


def test_all_shards_of_a_job_use_the_model_it_began_with(loops: Loops) -> None:
    halted, predictor = halting(loops)
    with loops.broker.reply_queue() as inbox, halted.running(halted.bulk().run):
        job_id = send(loops, Message(zip_of(faces(9)), ZIP, reply_to=inbox.name))
        assert predictor.reached.wait(20)
        loops.builder.register(constant_model(0.99))
        loops.models.refresh()
        predictor.go_on.set()
        _, finished = job_replies(inbox, "accepted", "finished")
    assert loops.models.champion is not None
    assert loops.models.champion.version == 2
    assert finished["model"] == {"name": "gender", "version": 1}
    assert {row["gender"] for row in rows_of(loops, job_id)[6:]} == {"male", "female"}


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "uncounted"])
def test_a_job_opened_again_after_a_crash_keeps_its_model_and_its_shards(loops: Loops, counted: bool) -> None:
    """Its worker died after it had handed out the shards; the next one has another champion and other settings."""
    message = Message(zip_of(faces(7)), ZIP, "m")
    job_id = job_id_of("m")
    record = Jobs(loops.store)
    record.create(job_id, message_id="m", name="a", state=JobState.QUEUED)
    model = {"name": "gender", "version": 1}
    key = Jobs.archive_key(job_id)
    loops.store.put(key, message.body)
    loops.builder.register(constant_model(0.99))
    loops.models.refresh()
    with loops.broker.reply_queue() as inbox:
        record.accept(
            job_id,
            reply_to=inbox.name,
            correlation_id=None,
            model=model,
            archive=key,
            images=7,
            shards=2,
            shard_images=5,
        )
        send(loops, replace(message, reply_to=inbox.name))
        with loops.broker.consume([loops.broker.topology.jobs], 1) as dying:
            (delivery,) = dying.receive(1, 5)
            if counted:
                dying.requeue(delivery)
        with loops.running(loops.bulk().run):
            _, finished = job_replies(inbox, "accepted", "finished")
    assert finished["model"] == model
    assert {row["gender"] for row in rows_of(loops, job_id)} == {"male", "female"}
    assert record.get(job_id).shards == 2


def test_a_job_whose_shards_find_no_room_is_handed_out_once_there_is_some(tmp_path: Path) -> None:
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}", shard_images=3, queue_limit=3) as loops:
        serving(loops)
        shards = loops.broker.topology.shards
        loops.broker.publish(shards, Message(b"in the way", "text/plain"))
        with loops.broker.consume([shards], 1) as other, loops.broker.reply_queue() as inbox:
            in_the_way = other.receive(1, 5)
            with loops.running(loops.bulk().run):
                job_id = send(loops, Message(zip_of(faces(7)), ZIP, reply_to=inbox.name))
                records = Jobs(loops.store)
                eventually(lambda: records.find(job_id), 10, "a job")
                eventually(
                    lambda: (job := records.find(job_id)) and job.state is JobState.ACCEPTED, 10, "an accepted job"
                )
                other.settle(in_the_way)
                job_replies(inbox, "accepted", "finished")
                queues_empty(loops)


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "uncounted"])
@pytest.mark.parametrize("state", [JobState.FINISHED, JobState.CANCELLED])
def test_a_final_reply_is_sent_again_where_its_worker_died_before_it_was_out(
    loops: Loops, state: JobState, counted: bool
) -> None:
    record = Jobs(loops.store)
    job_id = job_id_of("m")
    record.create(job_id, message_id="m", name="a", state=JobState.QUEUED)
    with loops.broker.reply_queue() as inbox:
        record.accept(job_id, reply_to=inbox.name, correlation_id="c", images=6, shards=2, shard_images=3)
        loops.store.create(f"jobs/{job_id}/finisher", b"1")
        record.end(job_id, state, counts={"images": 6, "errors": 0})
        for shard in (0, 1):
            loops.store.put(Jobs.part_key(job_id, shard), b"left")
            body = {"job_id": job_id, "shard": shard, "start": shard * 3, "stop": shard * 3 + 3}
            loops.broker.publish(loops.broker.topology.shards, json_message(body))
        with loops.broker.consume([loops.broker.topology.shards], 2) as dying:
            for delivery in dying.receive(2, 5):
                if counted:
                    dying.requeue(delivery)
        with loops.running(loops.bulk().run):
            job_replies(inbox, state)
            queues_empty(loops)
            assert record.parts(job_id) == []
            # Now that it is out, no duplicate repeats it.
            loops.broker.publish(loops.broker.topology.shards, json_message(body))
            queues_empty(loops)
            assert inbox.receive(0.2) == []


@pytest.mark.rabbitmq
def test_a_job_that_was_only_held_when_connections_went_is_not_given_up(rabbitmq: SharedNode, tmp_path: Path) -> None:
    with open_loops(tmp_path, rabbitmq.url) as loops, loops.broker.reply_queue() as inbox:
        serving(loops)
        job_id = send(loops, Message(zip_of(faces(3)), ZIP, "job", reply_to=inbox.name))
        with loops.broker.consume([loops.broker.topology.jobs], 1) as holding:
            for _ in range(8):
                holding.requeue(holding.receive(1, 10)[0])
        with loops.running(loops.bulk().run):
            job_replies(inbox, "accepted", "finished")
            assert len(rows_of(loops, job_id)) == 3
            queues_empty(loops)
        assert loops.broker.dead_letters() == []


def test_a_bug_in_one_shard_fails_the_job_once_and_buries_the_shard(loops: Loops) -> None:
    failing, predictor = halting(loops, fail=True)
    predictor.go_on.set()
    predictor.reached.set()
    with loops.broker.reply_queue() as inbox, failing.running(failing.bulk().run):
        job_id = send(loops, Message(zip_of(faces(6)), ZIP, reply_to=inbox.name))
        _, failed = job_replies(inbox, "accepted", "failed")
        queues_empty(loops)
    assert failed["error"]["code"] == "internal"
    assert "internal error" in failed["error"]["message"]
    assert Jobs(loops.store).get(job_id).state == "failed"
    assert {letter.reason for letter in loops.broker.dead_letters()} == {"internal"}


def test_a_job_whose_model_is_gone_fails(loops: Loops) -> None:
    """Nobody can delete a model that an open job uses; somebody may do so by hand."""
    message = Message(zip_of(faces(7)), ZIP, "m")
    job_id, gone = job_id_of("m"), {"name": "gender", "version": 7}
    records, key = Jobs(loops.store), Jobs.archive_key(job_id_of("m"))
    loops.store.put(key, message.body)
    records.create(job_id, message_id="m", name="a")
    with loops.broker.reply_queue() as inbox:
        records.accept(job_id, reply_to=inbox.name, model=gone, archive=key, images=7, shards=3, shard_images=3)
        send(loops, replace(message, reply_to=inbox.name))
        with loops.running(loops.bulk().run):
            _, failed = job_replies(inbox, "accepted", "failed")
            queues_empty(loops)
    assert failed["error"]["code"] == "unknown_model_version"
    assert "there is no model version 7" in failed["error"]["message"]
    records.delete(job_id)


def test_a_machine_without_room_for_temporary_files_tries_a_job_again(
    loops: Loops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "gone"
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        monkeypatch.setattr(tempfile, "tempdir", str(gone))
        send(loops, Message(zip_of(faces(7)), ZIP, reply_to=inbox.name))
        eventually(lambda: "no room for temporary files" in caplog.text, 20, "a try that failed")
        gone.mkdir()
        job_replies(inbox, "accepted", "finished")
    assert loops.broker.dead_letters() == []


def test_a_rejected_job_that_is_sent_back_is_tried_anew(either: Loops) -> None:
    with either.broker.reply_queue() as inbox, either.running(either.bulk().run):
        job_id = send(either, by_reference("store:uploads/a.zip", message_id="m", reply_to=inbox.name))
        job_replies(inbox, "rejected")
        eventually(either.broker.dead_letters, 10, "a dead letter")
        either.store.put("uploads/a.zip", zip_of(faces(7)))
        assert len(either.broker.retry_dead()) == 1
        _, finished = job_replies(inbox, "accepted", "finished")
        queues_empty(either)
    assert "error" not in finished
    assert len(rows_of(either, job_id)) == 7
    assert either.broker.dead_letters() == []


@pytest.mark.parametrize("retried_by", ["its job", "its letter"])
def test_a_job_that_failed_of_a_shard_is_computed_when_the_shard_is_requeued_copy(
    either: Loops, retried_by: str
) -> None:
    failing, predictor = halting(either, fail=True)
    predictor.go_on.set()
    predictor.reached.set()
    with either.broker.reply_queue() as inbox, failing.running(failing.bulk().run):
        job_id = send(either, Message(zip_of(faces(7)), ZIP, reply_to=inbox.name))
        job_replies(inbox, "accepted", "failed")
        queues_empty(either)
        predictor.reached.clear()  # no bug any more
        if retried_by == "its job":
            Client(either.broker, either.store).retry_job(job_id)
        else:
            assert len(either.broker.retry_dead()) >= 1
        (finished,) = job_replies(inbox, "finished")
        queues_empty(either)
    assert finished["counts"] == {"images": 7, "errors": 0}
    assert len(rows_of(either, job_id)) == 7
    assert either.broker.dead_letters() == []


def test_a_job_of_which_two_shards_failed_is_computed_whichever_is_sent_back(either: Loops) -> None:
    @dataclass(frozen=True, slots=True)
    class FailingTwice(Predictor):
        both: threading.Barrier = None  # type: ignore[assignment]

        def predict(self, model: ServedModel, *args: Any, **options: Any) -> list[Result]:
            if not self.both.broken:
                self.both.wait(20)
                raise InvalidModel("version 1 is damaged")
            return Predictor.predict(self, model, *args, **options)

    predictor = FailingTwice(either.predictor.decoder, 64, either.metrics, (), threading.Barrier(2))
    failing, client = replace(either, predictor=predictor), Client(either.broker, either.store)
    with either.broker.reply_queue() as inbox, failing.running(failing.bulk().run, failing.bulk().run):
        job_id = send(either, Message(zip_of(faces(6)), ZIP, reply_to=inbox.name))
        job_replies(inbox, "accepted", "failed")
        eventually(lambda: len(either.broker.dead_letters()) == 2, 20, "two dead shards")
        queues_empty(either)
        predictor.both.abort()  # the model is sound again
        owner = int(either.store.get(f"jobs/{job_id}/finisher"))
        of_owner = {letter.message.message_id == f"{job_id}.{owner}": letter for letter in either.broker.dead_letters()}
        assert client.retry_dead([of_owner[False].dead_id]) == 1
        (finished,) = job_replies(inbox, "finished")
        assert client.retry_dead() == 1
        queues_empty(either)
        assert inbox.receive(0.3) == []
    assert finished["counts"] == {"images": 6, "errors": 0}
    assert len(rows_of(either, job_id)) == 6
    assert Jobs(either.store).get(job_id).state is JobState.FINISHED
    assert either.broker.dead_letters() == []


def test_a_dead_shard_that_a_failed_job_does_not_have_opens_it_all_the_same(loops: Loops) -> None:
    """It was a shard of a job that was deleted, and then sent again with fewer images."""
    message = Message(zip_of(faces(4)), ZIP, "m")
    job_id, records = job_id_of("m"), Jobs(loops.store)
    key, model = Jobs.archive_key(job_id), {"name": "gender", "version": 1}
    loops.store.put(key, message.body)
    records.create(job_id, message_id="m", name="a")
    with loops.broker.reply_queue() as inbox:
        records.accept(job_id, reply_to=inbox.name, model=model, archive=key, images=4, shards=2, shard_images=3)
        records.end(job_id, JobState.FAILED)
        shard = json_message({"job_id": job_id, "shard": 2, "start": 6, "stop": 9}, message_id=f"{job_id}.2")
        loops.broker.publish(loops.broker.topology.shards, shard)
        with loops.broker.consume([loops.broker.topology.shards], 1) as consumer:
            consumer.dead_letter(consumer.receive(1, 5)[0], "internal", [])
        assert Client(loops.broker, loops.store).retry_dead() == 1
        assert records.get(job_id).state is JobState.QUEUED
        with loops.running(loops.bulk().run):
            job_replies(inbox, "finished")
            queues_empty(loops)
    assert len(rows_of(loops, job_id)) == 4
    assert loops.broker.dead_letters() == []


def test_a_job_can_end_only_once_and_stays_ended(tmp_path: Path) -> None:
    record = Jobs(FileStore(tmp_path))
    record.create("job-1", message_id="m", name="a", state=JobState.QUEUED)
    assert record.accept("job-1", images=5).state == "accepted"
    assert record.accept("job-1", images=6).images == 5
    ended = [record.end("job-1", state) for state in (JobState.CANCELLED, JobState.FINISHED)]
    assert [each and each.state for each in ended] == ["cancelled", None]
    assert record.accept("job-1", images=7).state == "cancelled"


@pytest.mark.parametrize(
    "second",
    [
        Message(b"{", "application/json", "m"),
        Message(b"{}", "text/plain", "m"),
        Message(zip_of(faces(2)), ZIP, "m"),
    ],
    ids=["not JSON", "unknown type", "another job"],
)
def test_a_second_message_with_a_known_id_neither_ends_the_first_one_s_job_nor_takes_its_reply(
    loops: Loops, second: Message
) -> None:
    first = Message(zip_of(faces(5)), ZIP, "m")
    jobs = Jobs(loops.store)
    jobs.create(job_id_of("m"), message_id="m", name="archive", request_sha256=request_digest(first))
    with loops.broker.reply_queue() as inbox, loops.broker.reply_queue() as others, loops.running(loops.bulk().run):
        for before in (JobState.QUEUED, JobState.FINISHED):
            assert jobs.get(job_id_of("m")).state is before
            send(loops, replace(second, reply_to=others.name))
            (reply,) = job_replies(others, "rejected")
            assert reply["error"]["code"] in {"invalid_message", "unsupported_content_type", "conflict"}
            assert jobs.get(job_id_of("m")).state is before
            if before is JobState.QUEUED:
                send(loops, replace(first, reply_to=inbox.name))
                job_replies(inbox, "accepted", "finished")
        assert jobs.get(job_id_of("m")).reply_to == inbox.name
        assert inbox.receive(0.2) == []

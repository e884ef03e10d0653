"""The interactive loop on both brokers, from the message to the reply."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from inference.model.champion import Models
from inference.model.loader import ServedModel
from inference.model.predictor import Predictor, Result
from inference.monitoring.recent_predictions import KEPT
from shared.broker import open_broker
from shared.broker.base import Broker, DeadLetter, Message, Outgoing, ReplyQueue
from shared.errors import InvalidModel
from shared.messages import MSGPACK, PROBE, pack_message
from shared.topology import MODEL_PROMOTED
from shared.worker.loop import Context, Defer, Done
from tests.support.brokers.rabbitmq_shared import SharedNode
from tests.support.brokers.tcp_proxy import TcpProxy
from tests.support.builders import models as build
from tests.support.builders.models import brightness_answer, brightness_model, constant_model, image_of
from tests.support.inference_loops import Loops, open_loops, replies
from tests.support.services import eventually


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    """On the embedded broker."""
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}", lease_s=0.5) as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loops]:
    """On the embedded broker, and on RabbitMQ."""
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbitmq").url
    with open_loops(tmp_path, url) as made:
        yield made


def send(loops: Loops, *messages: Message) -> None:
    loops.broker.publish_many([Outgoing(loops.broker.topology.predictions, message) for message in messages])


def single(level: int, inbox: ReplyQueue, correlation_id: str | None = None, **headers: Any) -> Message:
    return Message(image_of(level), "image/png", reply_to=inbox.name, correlation_id=correlation_id, headers=headers)


def serving(loops: Loops) -> Loops:
    loops.builder.register(brightness_model())
    loops.models.refresh()
    return loops


def dead(loops: Loops, count: int = 1) -> list[DeadLetter]:
    def look() -> list[DeadLetter]:
        letters = loops.broker.dead_letters()
        return letters if len(letters) >= count else []

    letters = eventually(look, 15, f"{count} dead letters")
    assert len(letters) == count
    return letters


def nothing_left(loops: Loops) -> None:
    def drained() -> bool:
        depth = loops.broker.depths()[loops.broker.topology.predictions]
        return depth.ready == 0 and not depth.unacknowledged

    eventually(drained, 15, "an empty queue")


def test_single_images_of_every_type_are_answered_by_their_correlation_or_message_id(either: Loops) -> None:
    serving(either)
    kinds = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/bmp": "bmp"}
    with either.broker.reply_queue() as inbox, either.running(either.interactive().run):
        for content_type, kind in kinds.items():
            send(either, Message(image_of(230, kind), content_type, f"m-{kind}", reply_to=inbox.name))
        send(either, Message(image_of(10, "jpg"), "IMAGE/JPEG; q=1", "m", "my own", inbox.name))
        found = replies(inbox, 5)
    assert set(found) == {"m-jpg", "m-png", "m-webp", "m-bmp", "my own"}
    assert found["m-png"] == {
        "schema": 1,
        "model": {"name": "gender", "version": 1},
        "predictions": [
            {
                "id": None,
                "gender": "female",
                "probability_female": pytest.approx(brightness_answer(230), abs=1e-4),
                "confidence": pytest.approx(brightness_answer(230), abs=1e-4),
            }
        ],
    }
    (dark,) = found["my own"]["predictions"]
    assert dark["gender"] == "male"
    assert dark["confidence"] == pytest.approx(1 - brightness_answer(10), abs=1e-4)


def test_a_pack_is_answered_in_order_and_a_bad_image_in_it_costs_one_entry(either: Loops) -> None:
    serving(either)
    images: list[tuple[str | int | None, bytes]] = [("a", image_of(0)), (2, b"no image"), ("c", image_of(255))]
    with either.broker.reply_queue() as inbox, either.running(either.interactive().run):
        send(either, pack_message(images, reply_to=inbox.name, correlation_id="pack"))
        entries = replies(inbox, 1)["pack"]["predictions"]
        assert [entry["id"] for entry in entries] == ["a", 2, "c"]
        assert [entry.get("gender") for entry in entries] == ["male", None, "female"]
        assert entries[1]["error"]["code"] == "invalid_image"
        assert entries[1].keys() == {"id", "error"}
        nothing_left(either)
    assert either.broker.dead_letters() == []


def test_a_pack_holds_1_to_256_images(loops: Loops) -> None:
    serving(loops)
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        face = image_of(0)
        for count in (0, 256, 257):
            images = [(number, face) for number in range(count)]
            send(loops, pack_message(images, reply_to=inbox.name, correlation_id=str(count)))
        found = replies(inbox, 3)
        assert len(found["256"]["predictions"]) == 256
        for refused in ("0", "257"):
            assert found[refused]["error"]["code"] == "invalid_message"
            assert "images" in found[refused]["error"]["message"]
        letters = dead(loops, 2)
    assert {letter.reason for letter in letters} == {"invalid_message"}


def test_a_message_that_cannot_be_read_gets_an_error_reply_and_a_dead_letter(either: Loops) -> None:
    serving(either)
    queue = either.broker.topology.predictions
    with either.broker.reply_queue() as inbox, either.running(either.interactive().run):
        send(either, Message(b"GIF89a", "image/gif", "gif", reply_to=inbox.name))
        send(either, Message(b"\xc1", MSGPACK, "odd", reply_to=inbox.name))
        send(either, Message(image_of(1), "image/png", "version", None, inbox.name, {"model_version": "newest"}))
        send(either, single(200, inbox, "good"))
        found = replies(inbox, 4)
        letters = {letter.message.message_id: letter for letter in dead(either, 3)}
    assert found["gif"]["error"]["code"] == "unsupported_content_type"
    assert "image/gif" in found["gif"]["error"]["message"]
    assert "image/jpeg" in found["gif"]["error"]["message"]
    assert found["odd"]["error"]["code"] == "invalid_message"
    assert found["version"]["error"]["code"] == "invalid_message"
    assert "'newest'" in found["version"]["error"]["message"]
    assert found["good"]["predictions"][0]["gender"] == "female"
    assert letters["gif"].reason == "unsupported_content_type"
    assert (letters["gif"].origin, letters["gif"].delivery_count) == (queue, 0)
    assert letters["gif"].message.body == b"GIF89a"
    assert either.value("genderline_dead_letters_total", reason="unsupported_content_type") == 1


def test_model_version_pins_a_version_and_an_unknown_one_is_refused(loops: Loops) -> None:
    for probability in (0.9, 0.2):
        loops.builder.register(constant_model(probability))
    loops.models.refresh()
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        send(
            loops,
            single(0, inbox, "champion"),
            single(0, inbox, "pinned", model_version=1),
            single(0, inbox, "as text", model_version="1"),
            single(0, inbox, "unknown", model_version=7),
            single(0, inbox, "zero", model_version=0),
        )
        found = replies(inbox, 5)
        dead(loops, 2)
    told = {
        key: (body["model"]["version"], body["predictions"][0]["probability_female"])
        for key, body in found.items()
        if "model" in body
    }
    assert told == {
        "champion": (2, pytest.approx(0.2)),
        "pinned": (1, pytest.approx(0.9)),
        "as text": (1, pytest.approx(0.9)),
    }
    for key in ("unknown", "zero"):
        assert found[key]["error"]["code"] == "unknown_model_version"
        assert "registered: 1, 2" in found[key]["error"]["message"]


def test_requests_for_a_loaded_model_do_not_wait_for_those_that_pin_another(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(loops)
    pinned, load, go_on = loops.builder.register(constant_model(0.2), promote=False), Models.load, threading.Event()

    def load_slowly(self: Models, version: int) -> ServedModel:
        assert go_on.wait(20)
        return load(self, version)

    monkeypatch.setattr(Models, "load", load_slowly)
    with loops.broker.reply_queue() as inbox:
        names = ("first", "second")
        send(loops, *(single(200, inbox, f"pinned {name}", model_version=pinned) for name in names))
        send(loops, *(single(200, inbox, name) for name in names))
        with loops.running(loops.interactive().run):
            try:
                assert set(replies(inbox, 2, 10)) == {"first", "second"}
            finally:
                go_on.set()
            found = replies(inbox, 2)
    assert {body["model"]["version"] for body in found.values()} == {pinned}
    assert loops.broker.dead_letters() == []


def test_requests_that_pin_a_version_come_up_though_others_keep_coming(loops: Loops) -> None:
    serving(loops)
    pinned, handler = loops.builder.register(constant_model(0.2), promote=False), loops.predictions()
    asked = [
        handler.parse(Message(image_of(200), "image/png", headers=headers))
        for headers in ({}, {"model_version": pinned})
    ]
    with loops.broker.consume([loops.broker.topology.predictions], 1) as consumer:
        context = Context(consumer, threading.Event())
        outcomes = [[type(outcome) for outcome in handler.handle(asked, context)] for _ in range(2)]
    assert outcomes == [[Done, Defer], [Done, Done]]


def test_a_pinned_version_that_is_broken_fails_alone_and_says_so(loops: Loops) -> None:
    serving(loops)
    broken = loops.builder.register(constant_model(0.9, build.not_a_number), promote=False)
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        send(loops, single(200, inbox, "good"), single(200, inbox, "broken", model_version=broken))
        found = replies(inbox, 2)
        (letter,) = dead(loops)
    assert found["good"]["predictions"][0]["gender"] == "female"
    assert found["broken"]["error"]["code"] == letter.reason == "invalid_model"


def test_what_is_past_its_deadline_is_answered_expired_and_not_computed(loops: Loops) -> None:
    serving(loops)
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        late = {"deadline": time.time() - 1}
        images: list[tuple[str | int | None, bytes]] = [("a", image_of(0)), ("b", image_of(255))]
        send(
            loops,
            pack_message(images, reply_to=inbox.name, correlation_id="late", headers=late),
            single(255, inbox, "in time", deadline=time.time() + 60),
        )
        found = replies(inbox, 2)
    assert [(entry["id"], entry["error"]["code"]) for entry in found["late"]["predictions"]] == [
        ("a", "expired"),
        ("b", "expired"),
    ]
    assert found["in time"]["predictions"][0]["gender"] == "female"
    assert loops.value("genderline_predictions_total", outcome="expired") == 2
    assert loops.value("genderline_predictions_total", outcome="ok") == 1
    assert loops.value("genderline_batch_size_sum") == 1


def test_what_expires_while_its_model_is_loaded_is_not_computed(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    serving(loops)
    pinned, deadline, load = loops.builder.register(constant_model(0.2), promote=False), time.time() + 0.5, Models.load

    def load_slowly(self: Models, version: int) -> ServedModel:
        while time.time() <= deadline:
            time.sleep(0.05)
        return load(self, version)

    monkeypatch.setattr(Models, "load", load_slowly)
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        send(loops, single(0, inbox, "late", model_version=pinned, deadline=deadline))
        late = replies(inbox, 1)["late"]
    assert [entry["error"]["code"] for entry in late["predictions"]] == ["expired"]
    assert loops.value("genderline_predictions_total", outcome="expired") == 1
    assert loops.value("genderline_batch_size_sum") == 0


def test_images_that_expired_count_as_such_and_nowhere_else(loops: Loops) -> None:
    serving(loops)
    with loops.broker.reply_queue() as inbox:
        past = {"deadline": time.time() - 1}
        images: list[tuple[str | int | None, bytes]] = [(number, image_of(0)) for number in range(10)]
        send(
            loops,
            pack_message(images, reply_to=inbox.name, correlation_id="late", headers=past),
            single(0, inbox, "unknown", model_version=99),
        )
        with loops.running(loops.interactive().run):
            replies(inbox, 2)
            nothing_left(loops)
    assert loops.value("genderline_predictions_total", outcome="expired") == 10
    assert loops.value("genderline_prediction_latency_seconds_count") == 0
    summary = loops.throughput.summary()
    assert (summary["images_per_second"], summary["latency_p50_ms"]) == (0.0, None)


def test_images_beside_a_model_that_fails_are_counted_once(loops: Loops) -> None:
    serving(loops)
    pinned = loops.builder.register(constant_model(0.2), promote=False)
    loops.models.get(pinned)

    class FailingPinned(Predictor):
        def predict(self, model: ServedModel, *args: Any, **options: Any) -> list[Result]:
            if model.version == pinned:
                raise InvalidModel("it fails on any image")
            return Predictor.predict(self, model, *args, **options)

    failing = replace(loops, predictor=FailingPinned(loops.predictor.decoder, 64, loops.metrics))
    with loops.broker.reply_queue() as inbox:
        send(loops, single(0, inbox, "good"), single(0, inbox, "bad", model_version=pinned))
        with failing.running(failing.interactive().run):
            replies(inbox, 2)
            nothing_left(loops)
    assert loops.value("genderline_predictions_total", outcome="ok") == 1
    assert loops.value("genderline_predicted_gender_total", gender="male") == 1
    assert [entry["images"] for entry in loops.recent_predictions.summary()] == [1]


def test_predictions_sent_before_there_is_any_model_wait_and_are_then_answered(either: Loops) -> None:
    with either.broker.reply_queue() as inbox, either.running(either.follow, either.interactive().run):
        send(either, *(single(200, inbox, str(number)) for number in range(5)))
        assert inbox.receive(0.3) == []
        assert either.broker.depths()[either.broker.topology.predictions].ready == 5
        either.builder.register(brightness_model())
        either.broker.emit(MODEL_PROMOTED, {"version": 1, "reason": "a test"})
        assert len(replies(inbox, 5)) == 5


def test_a_message_without_reply_to_is_worked_on_and_settled(loops: Loops) -> None:
    serving(loops)
    with loops.running(loops.interactive().run):
        send(loops, Message(image_of(0), "image/png"))
        nothing_left(loops)
    assert loops.value("genderline_predictions_total", outcome="ok") == 1
    assert loops.value("genderline_queue_wait_seconds_count") == 1
    assert loops.value("genderline_prediction_latency_seconds_count") == 1
    assert loops.throughput.summary()["latency_p50_ms"] > 0


def test_the_newest_answers_are_told_without_image_name_or_id(loops: Loops) -> None:
    serving(loops)
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        for number in range(7):
            send(loops, single(10 * number, inbox, f"secret {number}"))
            replies(inbox, 1)
        images = [("secret", b"no image"), ("private", image_of(200))]
        send(loops, pack_message(images, reply_to=inbox.name))
        (reply,) = replies(inbox, 1).values()
        eventually(lambda: loops.recent_predictions.summary()[0]["images"] == 2, 5, "the pack is the newest")

    told = loops.recent_predictions.summary()

    assert len(told) == KEPT
    answer = reply["predictions"][1]
    assert {key: told[0][key] for key in ("gender", "probability_female", "confidence")} == {
        key: answer[key] for key in ("gender", "probability_female", "confidence")
    }
    assert [(entry["version"], entry["images"]) for entry in told] == [(1, 2), *[(1, 1)] * 4]
    assert "secret" not in json.dumps(told)
    assert len(json.dumps(told)) < 1000


def test_probes_are_answered_and_nothing_is_concluded_from_them(loops: Loops) -> None:
    serving(loops)
    observed: list[int] = []
    loops.predictor = replace(loops.predictor, observers=[lambda _, faces, __: observed.append(len(faces))])
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        images: list[tuple[str | int | None, bytes]] = [("a", image_of(0)), ("b", image_of(255))]
        send(
            loops,
            pack_message(images, reply_to=inbox.name, correlation_id="probe", headers={PROBE: True}),
            single(0, inbox, "as text", probe="true"),
            single(0, inbox, "traffic", probe=False),
            single(0, inbox, "neither", probe="yes"),
        )
        found = replies(inbox, 4)
        eventually(loops.recent_predictions.summary, 5, "the traffic is told of")
    assert [entry["gender"] for entry in found["probe"]["predictions"]] == ["male", "female"]
    assert found["as text"]["predictions"][0]["gender"] == "male"
    assert "header probe is 'yes'; expected true or false" in found["neither"]["error"]["message"]
    assert observed == [1]
    assert [entry["images"] for entry in loops.recent_predictions.summary()] == [1]
    assert loops.value("genderline_predictions_total", outcome="ok") == 1
    assert loops.value("genderline_prediction_latency_seconds_count") == 1
    assert loops.throughput.summary()["images_per_second"] <= 0.1
    assert loops.value("genderline_predicted_gender_total", gender="male") == 1
    assert loops.value("genderline_predicted_gender_total", gender="female") == 0


def test_when_told_to_stop_the_loop_answers_what_it_holds(loops: Loops) -> None:
    serving(loops)
    with loops.broker.reply_queue() as inbox:
        send(loops, *(single(200, inbox, str(number)) for number in range(20)))
        with loops.running(loops.interactive().run):
            first = inbox.receive(10)
        answered = len(first) + sum(len(inbox.receive(0)) for _ in range(20))
        waiting = loops.broker.depths()[loops.broker.topology.predictions]
    assert (answered + waiting.ready, waiting.unacknowledged) == (20, 0)


@dataclass(frozen=True, slots=True)
class Held(Predictor):
    """A predictor that holds the first images it gets until it may go on."""

    has_some: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)

    def predict(
        self,
        model: ServedModel,
        images: Sequence[bytes],
        owners: Sequence[int] | None = None,
        *,
        probe: bool = False,
    ) -> list[Result]:
        self.has_some.set()
        assert self.may_go_on.wait(30)
        return Predictor.predict(self, model, images, owners, probe=probe)


@pytest.mark.rabbitmq
def test_images_that_were_waiting_are_answered_with_those_that_come_in_a_moment(
    rabbitmq: SharedNode, tmp_path: Path
) -> None:
    with open_loops(tmp_path, rabbitmq.url) as loops, loops.broker.reply_queue() as inbox:
        serving(loops)
        queue = loops.broker.topology.predictions
        held = Held(loops.predictor.decoder, loops.predictor.batch_size, loops.metrics)
        has_more = threading.Event()

        def on_idle(idle: bool) -> None:
            if not idle and held.may_go_on.is_set():
                has_more.set()

        with loops.running(replace(loops, predictor=held).interactive(batch_delay_s=2.0, on_idle=on_idle).run):
            send(loops, single(200, inbox, "first"))
            assert held.has_some.wait(30)
            send(loops, *(single(200, inbox, f"waiting {number}") for number in range(2)))
            eventually(lambda: loops.broker.depths()[queue].ready == 0, 15, "all messages at the worker")
            held.may_go_on.set()
            assert has_more.wait(30)
            send(loops, *(single(200, inbox, f"later {number}") for number in range(3)))
            assert len(replies(inbox, 6)) == 6
    assert loops.value("genderline_batch_size_count") == 2
    assert loops.value("genderline_batch_size_sum") == 6


def test_the_handler_tells_whether_it_was_active_recently(loops: Loops) -> None:
    serving(loops)
    handler = loops.predictions()
    assert not handler.active_recently
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive(handler).run):
        send(loops, single(200, inbox))
        replies(inbox, 1)
        assert eventually(lambda: handler.active_recently, 1, "work lately")
        assert eventually(lambda: not handler.active_recently, 5, "no work for a second")


def test_on_the_embedded_broker_images_do_not_gather(loops: Loops) -> None:
    serving(loops)
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive(batch_delay_s=60.0).run):
        for first in range(0, 200, 10):
            send(loops, *(single(200, inbox, str(first + number)) for number in range(10)))
        replies(inbox, 200)


def test_an_image_that_comes_alone_waits_for_no_other_and_neither_do_packs(either: Loops) -> None:
    loops = serving(either)
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive(batch_delay_s=60.0).run):
        for number in range(3):
            send(loops, single(200, inbox, str(number)))
            replies(inbox, 1)
        pack = [(number, image_of(200)) for number in range(2)]
        send(loops, *(pack_message(pack, reply_to=inbox.name) for _ in range(20)))
        replies(inbox, 20)


POISON = image_of(77)


@dataclass(frozen=True, slots=True)
class Stumbling(Predictor):
    """A predictor with a bug that one image provokes."""

    def predict(
        self,
        model: ServedModel,
        images: Sequence[bytes],
        owners: Sequence[int] | None = None,
        *,
        probe: bool = False,
    ) -> list[Result]:
        if POISON in images:
            raise RuntimeError("a bug that this image provokes: secret detail")
        return Predictor.predict(self, model, images, owners, probe=probe)


def stumbling(loops: Loops) -> Loops:
    return replace(loops, predictor=Stumbling(loops.predictor.decoder, loops.predictor.batch_size, loops.metrics))


def test_a_message_that_provokes_a_bug_takes_no_neighbour_with_it(either: Loops) -> None:
    loops = stumbling(serving(either))
    with loops.broker.reply_queue() as inbox:
        neighbours = [single(200, inbox, str(number)) for number in range(10)]
        poison = Message(POISON, "image/png", "poison", reply_to=inbox.name)
        send(loops, *neighbours[:5], poison, *neighbours[5:])
        with loops.running(loops.interactive().run):
            found = replies(inbox, 11)
            (letter,) = dead(loops)
    assert found.pop("poison")["error"] == {
        "code": "internal",
        "message": "internal error; the service's log has the details",
    }
    assert {body["predictions"][0]["gender"] for body in found.values()} == {"female"}
    assert (letter.message.message_id, letter.reason, letter.delivery_count) == ("poison", "internal", 1)
    assert loops.value("genderline_predictions_total", outcome="ok") == 10
    assert loops.value("genderline_predictions_total", outcome="failed") == 1


def give_back_unsettled(loops: Loops, count: int, times: int) -> None:
    """Takes `count` messages and gives them back counted, as if a worker had died of each; so many times."""
    with loops.broker.consume([loops.broker.topology.predictions], 64) as consumer:
        for _ in range(times):
            left = count
            while left:
                deliveries = eventually(lambda: consumer.receive(64, 5), 10, "what was given back")
                left -= len(deliveries)
                for delivery in deliveries:
                    consumer.requeue(delivery)


def test_a_message_delivered_too_often_is_buried_without_being_worked_on(either: Loops) -> None:
    loops = stumbling(serving(either))
    with loops.broker.reply_queue() as inbox:
        send(loops, Message(POISON, "image/png", "deadly", reply_to=inbox.name))
        give_back_unsettled(loops, 1, loops.settings.delivery_limit)
        with loops.running(loops.interactive().run):
            found = replies(inbox, 1)
            (letter,) = dead(loops)
    assert found["deadly"]["error"]["code"] == "internal"
    assert f"given up after {letter.delivery_count} deliveries" in found["deadly"]["error"]["message"]
    assert letter.reason == "delivery_limit"
    assert letter.delivery_count >= loops.settings.delivery_limit  # a prefetched message counts when it is given back


def cut_connection(proxy: TcpProxy, broker: Broker) -> None:
    """Returns when there is a new one."""
    before = broker.reconnects
    proxy.cut()
    eventually(lambda: broker.reconnects > before, 15, "a new connection")


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_connections_that_are_lost_again_and_again_bury_nothing(rabbitmq: SharedNode, tmp_path: Path) -> None:
    """Quorum queues count each loss for every message that was prefetched, though nobody had begun with it."""
    with open_loops(tmp_path, rabbitmq.url) as loops, loops.broker.reply_queue() as inbox:
        serving(loops)
        queue = loops.broker.topology.predictions
        send(loops, *(single(200, inbox, str(number)) for number in range(20)))
        with (
            TcpProxy(rabbitmq.url) as proxy,
            open_broker(proxy.url, loops.broker.topology) as holding,
            holding.consume([queue], 20) as consumer,
        ):
            for loss in range(8):
                assert eventually(lambda: consumer.receive(1, 5), 15, "a message")[0].delivery_count == loss
                eventually(lambda: loops.broker.depths()[queue].ready == 0, 15, "all messages held")
                cut_connection(proxy, holding)
        with loops.running(loops.interactive().run):
            found = replies(inbox, 20)
        assert {body["predictions"][0]["gender"] for body in found.values()} == {"female"}
        assert loops.broker.dead_letters() == []
        assert loops.value("genderline_batch_size_count") < 20  # together, as if they came for the first time


def test_fifty_swaps_under_load_fail_no_reply_and_mix_none(loops: Loops) -> None:
    """Each model has an answer of its own, so a reply shows which one made it."""
    answers = {number + 1: 0.2 + 0.01 * number for number in range(51)}
    for probability in answers.values():
        loops.builder.register(constant_model(probability), promote=False)
    loops.builder.registry.promote(1, "first")
    loops.models.refresh()
    seen: set[int] = set()
    done = threading.Event()

    def promote_all(_: threading.Event) -> None:
        for version in range(2, 52):
            loops.builder.registry.promote(version, "next")
            loops.models.refresh(at_once=True)
        done.set()

    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run, promote_all):
        images: list[tuple[str | int | None, bytes]] = [(number, image_of(128)) for number in range(4)]
        asked = 0
        while not done.is_set():
            asked += 20
            send(loops, *(pack_message(images, reply_to=inbox.name) for _ in range(20)))
            for body in replies(inbox, 20).values():
                version = body["model"]["version"]
                seen.add(version)
                told = {entry["probability_female"] for entry in body["predictions"]}
                assert [*told] == [pytest.approx(answers[version], abs=1e-5)]
    assert loops.models.champion is not None
    assert loops.models.champion.version == 51
    assert loops.value("genderline_model_swaps_total", outcome="ok") == 51
    assert loops.value("genderline_predictions_total", outcome="ok") == asked * 4
    assert len(seen) > 5
    assert loops.broker.dead_letters() == []

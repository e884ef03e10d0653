"""What becomes of a failed message, on a real broker."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from shared.broker.base import Broker, BrokerFull, Consumer, DeadLetter, Delivery, Message, Outgoing, ReplyQueue
from shared.broker.sqlite.broker import SqliteBroker
from shared.errors import (
    Cancelled,
    Conflict,
    GenderlineError,
    InvalidDataset,
    InvalidImage,
    InvalidMessage,
    InvalidModel,
    NotFound,
    Retryable,
)
from shared.messages import json_reply
from shared.store.files import FileStore
from shared.worker import retry as failures
from shared.worker.attempts import Attempts
from shared.worker.retry import FailurePolicy

LIMIT = 3


class Scene:
    """A message that is being worked on, its sender who waits for a reply, and the policy."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.inbox: ReplyQueue = broker.reply_queue()
        self.consumer: Consumer = broker.consume([broker.topology.jobs], prefetch=10)
        self.metrics = CollectorRegistry()
        self.policy = FailurePolicy(LIMIT, Counter("dead", "-", ["reason"], registry=self.metrics))
        self.pauses: list[float] = []
        broker.publish(broker.topology.jobs, Message(b"work", "text/plain", "m1", reply_to=self.inbox.name))

    def receive(self) -> Delivery:
        (delivery,) = self.consumer.receive(1, timeout_s=10)
        return delivery

    def replies_to(self, delivery: Delivery, error: GenderlineError) -> list[Outgoing]:
        return json_reply(delivery, {"error": error.as_dict()})

    def fail(self, error: Exception) -> bool:
        """Takes the message and lets its work fail. Returns whether that was its end."""
        delivery = self.receive()
        try:
            raise error
        except Exception as raised:
            return self.policy.handle(self.consumer, delivery, raised, lambda e: self.replies_to(delivery, e))

    def answer(self) -> dict[str, str]:
        (reply,) = self.inbox.receive(timeout_s=10)
        error: dict[str, str] = json.loads(reply.body)["error"]
        return error

    def dead(self) -> list[DeadLetter]:
        return self.broker.dead_letters()

    def counted(self, reason: str) -> float | None:
        return self.metrics.get_sample_value("dead_total", {"reason": reason})


class Recorded(Consumer):
    """A real consumer that shortens pauses, so that tests need not wait, and notes what they would have been."""

    def __init__(self, inner: Consumer, pauses: list[float]) -> None:
        self._inner = inner
        self._pauses = pauses

    @property
    def dead_queue(self) -> str:
        return self._inner.dead_queue

    def receive(self, limit: int, timeout_s: float | None = None) -> list[Delivery]:
        return self._inner.receive(limit, timeout_s)

    def settle(self, deliveries: Sequence[Delivery], outgoing: Sequence[Outgoing] = ()) -> None:
        self._inner.settle(deliveries, outgoing)

    def requeue(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        self._pauses.append(delay_s)
        self._inner.requeue(delivery)

    def defer(self, delivery: Delivery, delay_s: float) -> None:
        self._inner.defer(delivery, delay_s)

    def flush(self, timeout_s: float = 30.0) -> None:
        self._inner.flush(timeout_s)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with SqliteBroker(tmp_path / "broker.db") as broker:
        scene = Scene(broker)
        scene.consumer = Recorded(scene.consumer, scene.pauses)
        yield scene


@pytest.mark.parametrize(
    "error",
    [
        InvalidMessage("uri: missing"),
        InvalidMessage("content type is 'x'; expected y", code="unsupported_content_type"),
        InvalidDataset("empty"),
        InvalidImage("truncated"),
        InvalidModel("no input"),
        NotFound("no model version 9", code="unknown_model_version"),
        Cancelled("by a user"),
        Conflict("it has ended"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.code}",
)
def test_what_a_second_try_cannot_help_is_a_dead_letter_at_once(scene: Scene, error: GenderlineError) -> None:
    assert scene.fail(error) is True
    (dead,) = scene.dead()
    assert (dead.reason, dead.origin, dead.delivery_count) == (error.code, "genderline.jobs", 0)
    assert (dead.message.body, dead.message.message_id) == (b"work", "m1")
    assert scene.answer() == error.as_dict()
    assert scene.counted(error.code) == 1
    assert scene.consumer.receive(1, timeout_s=0) == []
    assert scene.pauses == []


def test_what_may_pass_is_tried_again_with_growing_pauses_up_to_the_limit(scene: Scene) -> None:
    away = Retryable("the store is away")
    assert [scene.fail(away) for _ in range(LIMIT)] == [False, False, True]
    assert scene.pauses == [1.0, 2.0]
    (dead,) = scene.dead()
    assert (dead.reason, dead.delivery_count) == ("delivery_limit", LIMIT - 1)
    assert scene.answer() == {"code": "unavailable", "message": "the store is away"}
    assert scene.counted("delivery_limit") == 1


def test_a_full_queue_is_one_of_those_that_may_pass(scene: Scene) -> None:
    assert scene.fail(BrokerFull("the shards' queue is full")) is False
    assert scene.dead() == []


def test_nobody_is_answered_and_nothing_is_counted_while_there_is_hope(scene: Scene) -> None:
    scene.fail(Retryable("away"))
    assert scene.inbox.receive(timeout_s=0) == []
    assert scene.counted("delivery_limit") is None


def test_no_pause_is_longer_than_half_a_minute(scene: Scene) -> None:
    scene.policy = FailurePolicy(100, Counter("dead2", "-", ["reason"], registry=scene.metrics))
    for _ in range(8):
        scene.fail(Retryable("away"))
    assert scene.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_bug_is_tried_once_more_and_then_buried_without_details_for_the_client(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [scene.fail(KeyError("/secret/path")) for _ in range(2)] == [False, True]
    (dead,) = scene.dead()
    assert (dead.reason, dead.delivery_count) == ("internal", 1)
    answer = scene.answer()
    assert answer["code"] == "internal"
    assert "secret" not in json.dumps(answer)
    assert "secret" not in json.dumps(dict(dead.message.headers))
    assert scene.counted("internal") == 1
    assert "/secret/path" in caplog.text
    assert "Traceback" in caplog.text
    assert scene.pauses == [1.0]


def test_a_message_that_came_too_often_is_buried_unread(scene: Scene) -> None:
    for _ in range(LIMIT):
        delivery = scene.receive()
        assert not scene.policy.exhausted(delivery)
        scene.consumer.requeue(delivery)
    delivery = scene.receive()
    assert scene.policy.exhausted(delivery)
    scene.policy.bury_exhausted(scene.consumer, delivery, lambda error: scene.replies_to(delivery, error))
    (dead,) = scene.dead()
    assert (dead.reason, dead.delivery_count) == ("delivery_limit", LIMIT)
    assert scene.answer() == {"code": "internal", "message": "given up after 3 deliveries"}
    assert scene.counted("delivery_limit") == 1


def recording(scene: Scene, store: FileStore, limit: int = LIMIT) -> None:
    """Sets a policy as for a broker whose counts do not tell how often a message was worked on."""
    counter = Counter(f"dead{limit}", "-", ["reason"], registry=scene.metrics)
    scene.policy = FailurePolicy(limit, counter, Attempts(store))


def held_only(scene: Scene, times: int) -> None:
    """Takes the message and gives it back untouched, as a lost connection does."""
    for _ in range(times):
        scene.consumer.requeue(scene.receive())


def begun(scene: Scene) -> Delivery:
    delivery = scene.policy.begin(scene.consumer, scene.receive())
    assert delivery is not None
    return delivery


@pytest.mark.parametrize("limit", [1, 2, LIMIT, 7])
def test_where_counts_tell_nothing_only_attempts_that_were_recorded_make_the_end(
    scene: Scene, tmp_path: Path, limit: int
) -> None:
    recording(scene, FileStore(tmp_path / "store"), limit)
    held_only(scene, 20)
    tried = 0
    while not scene.policy.exhausted(delivery := begun(scene)):
        tried += 1
        scene.consumer.requeue(delivery)
    assert tried == max(1, limit - 2)
    scene.policy.bury_exhausted(scene.consumer, delivery, lambda _: [])
    (dead,) = scene.dead()
    assert (dead.reason, dead.delivery_count) == ("delivery_limit", max(3, limit))
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))


def test_where_counts_tell_nothing_what_fails_by_itself_is_tried_as_often_as_elsewhere(
    scene: Scene, tmp_path: Path
) -> None:
    recording(scene, FileStore(tmp_path / "store"), 5)
    ends = []
    while True not in ends:
        delivery = begun(scene)
        assert not scene.policy.exhausted(delivery)
        ends.append(scene.policy.handle(scene.consumer, delivery, Retryable("away"), lambda _: []))
    assert scene.pauses == [1.0, 2.0, 4.0, 8.0]
    (dead,) = scene.dead()
    assert (dead.reason, dead.delivery_count) == ("delivery_limit", 4)


def test_a_message_whose_attempt_cannot_be_recorded_is_not_tried_and_waits_uncounted(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_NO_RECORD_PAUSE_S", 0.0)
    store = FileStore(tmp_path / "store")
    recording(scene, store)
    held_only(scene, 20)
    store.root.rmdir()
    store.root.touch()
    for _ in range(20):
        assert scene.policy.begin(scene.consumer, scene.receive()) is None
    store.root.unlink()
    assert not scene.policy.exhausted(begun(scene))
    assert scene.dead() == []


def test_a_dead_letter_that_is_sent_back_starts_anew(scene: Scene) -> None:
    scene.fail(InvalidMessage("x"))
    assert scene.broker.retry_dead() == 1
    again = scene.receive()
    assert (again.delivery_count, again.message.message_id, again.message.reply_to) == (0, "m1", scene.inbox.name)
    assert "reason" not in again.message.headers


def failing_replies(scene: Scene, error: Exception, failure: Exception) -> bool:
    """Lets the work of a message fail, and the making of its replies too."""

    def replies(_: GenderlineError) -> list[Outgoing]:
        raise failure

    return scene.policy.handle(scene.consumer, scene.receive(), error, replies)


def test_what_cannot_even_be_answered_is_buried_without_a_reply(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    assert failing_replies(scene, InvalidMessage("x"), ValueError("a damaged record")) is True
    assert [letter.reason for letter in scene.dead()] == ["invalid_message"]
    assert scene.inbox.receive(timeout_s=0) == []
    assert "what is buried now gets no reply" in caplog.text
    assert "a damaged record" in caplog.text


@pytest.mark.parametrize("failure", [Retryable("the store is away"), OSError(errno.ENOSPC, "No space left on device")])
def test_an_end_that_cannot_be_recorded_now_waits_uncounted(
    scene: Scene, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_NO_RECORD_PAUSE_S", 0.0)
    assert failing_replies(scene, InvalidMessage("x"), failure) is False
    assert scene.dead() == []
    assert scene.counted("invalid_message") is None
    again = scene.receive()
    assert again.delivery_count == 0
    assert scene.policy.handle(scene.consumer, again, InvalidMessage("x"), lambda _: []) is True
    assert [letter.reason for letter in scene.dead()] == ["invalid_message"]

"""The one way of every message, on a real broker."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from shared.broker.base import BrokerError, Message, Outgoing, ReplyQueue
from shared.broker.sqlite.broker import SqliteBroker
from shared.errors import GenderlineError, InvalidMessage, Retryable
from shared.messages import json_reply
from shared.worker.loop import ConsumerLoop, Context, Defer, Done, Handler, Outcome
from shared.worker.retry import RetryPolicy
from tests.support.services import eventually

Work = Callable[[Sequence[str], Context], Sequence[Outcome] | None]


class Words(Handler[str]):
    """Takes messages that are words, notes which came together, and does with them what a test wants."""

    def __init__(self, work: Work | None = None) -> None:
        self.batches: list[list[str]] = []
        self.failed: list[str] = []
        self.confirmed: list[str] = []
        self._work = work

    def parse(self, message: Message) -> str:
        if not message.body:
            raise InvalidMessage("found no word, expected one")
        return message.body.decode()

    def size_of(self, request: str) -> int:
        return len(request)

    def handle(self, requests: Sequence[str], context: Context) -> Sequence[Outcome]:
        self.batches.append(list(requests))
        outcomes = self._work(requests, context) if self._work else None
        return outcomes or [Done((), functools.partial(self.confirmed.append, word)) for word in requests]

    def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
        self.failed.append(error.code)
        return json_reply(message, {"error": error.as_dict()})


class Scene:
    def __init__(self, broker: SqliteBroker) -> None:
        self.broker = broker
        self.queue = broker.topology.predictions
        self.inbox: ReplyQueue = broker.reply_queue()
        self.registry = CollectorRegistry()
        self.stop = threading.Event()

    def send(self, *words: str) -> None:
        self.broker.publish_many(
            [Outgoing(self.queue, Message(word.encode(), "x", reply_to=self.inbox.name)) for word in words]
        )

    @contextlib.contextmanager
    def running(self, handler: Words, *, batch_size: int = 100) -> Iterator[None]:
        counter = Counter("dead", "-", ["reason"], registry=self.registry)
        loop = ConsumerLoop(
            self.broker,
            {self.queue: handler},
            RetryPolicy(3, counter, first_pause_s=0.01),
            prefetch=100,
            batch_size=batch_size,
        )
        failures: list[BaseException] = []

        def body() -> None:
            try:
                loop.run(self.stop)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join(20)
        assert not thread.is_alive()
        assert failures == []

    def drained(self) -> None:
        def empty() -> bool:
            depth = self.broker.depths()[self.queue]
            return (depth.ready, depth.unacknowledged) == (0, 0)

        eventually(empty, 20, "an empty queue")

    def waiting(self) -> int:
        return self.broker.depths()[self.queue].ready


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with SqliteBroker(tmp_path / "broker.db") as broker:
        yield Scene(broker)


def test_what_waits_is_handled_in_batches_by_size_settled_and_told_of_its_confirmation(scene: Scene) -> None:
    handler = Words()
    scene.send("aaa", "bbb", "cccc", "d" * 20, "e")
    with scene.running(handler, batch_size=8):
        scene.drained()
        eventually(lambda: len(handler.confirmed) == 5, 5, "all confirmed")
    assert handler.batches == [["aaa", "bbb"], ["cccc"], ["d" * 20], ["e"]]
    assert scene.broker.dead_letters() == []


def test_a_message_that_is_no_request_is_answered_and_buried_and_costs_no_other(scene: Scene) -> None:
    handler = Words()
    scene.send("good", "", "fine")
    with scene.running(handler):
        scene.drained()
    assert [word for batch in handler.batches for word in batch] == ["good", "fine"]
    assert [letter.reason for letter in scene.broker.dead_letters()] == ["invalid_message"]
    (reply,) = scene.inbox.receive(5)
    assert json.loads(reply.body)["error"]["code"] == "invalid_message"
    assert scene.registry.get_sample_value("dead_total", {"reason": "invalid_message"}) == 1


def test_of_a_batch_that_raises_each_is_handled_by_itself_and_only_the_culprit_fails(scene: Scene) -> None:
    def work(words: Sequence[str], _: Context) -> None:
        if "bad" in words:
            raise RuntimeError("a bug")

    handler = Words(work)
    scene.send("one", "bad", "two")
    with scene.running(handler):
        scene.drained()
    assert handler.batches == [["one", "bad", "two"], ["one"], ["bad"], ["two"], ["bad"]]
    (letter,) = scene.broker.dead_letters()
    assert (letter.message.body, letter.reason, letter.delivery_count) == (b"bad", "internal", 1)
    assert handler.failed == ["internal"]


def test_what_is_away_is_waited_for_beyond_any_count_and_nothing_is_buried(scene: Scene) -> None:
    def work(_: Sequence[str], __: Context) -> None:
        if len(handler.batches) < 6:
            raise Retryable("the store is away")

    handler = Words(work)
    scene.send("word")
    with scene.running(handler):
        scene.drained()
    assert len(handler.batches) == 6
    assert handler.failed == []


def test_where_the_end_cannot_be_recorded_the_message_comes_again_until_it_can(scene: Scene) -> None:
    class Forgetful(Words):
        def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
            replies = super().fail(message, error)
            if len(self.failed) < 4:
                raise Retryable("the store is away")
            return replies

    handler = Forgetful()
    scene.send("")
    with scene.running(handler):
        scene.drained()
    assert len(handler.failed) == 4
    assert len(scene.broker.dead_letters()) == 1
    assert len(scene.inbox.receive(5)) == 1


def test_a_reply_that_cannot_be_made_keeps_no_message_from_its_end(scene: Scene) -> None:
    class Broken(Words):
        def fail(self, _: Message, __: GenderlineError) -> Sequence[Outgoing]:
            raise KeyError("a damaged record")

    scene.send("")
    with scene.running(Broken()):
        scene.drained()
    assert len(scene.broker.dead_letters()) == 1


def test_what_is_deferred_comes_again_uncounted(scene: Scene) -> None:
    def work(words: Sequence[str], _: Context) -> Sequence[Outcome] | None:
        return [Defer(0.01) for _ in words] if len(handler.batches) < 6 else None

    handler = Words(work)
    scene.send("word")
    with scene.running(handler):
        scene.drained()
    assert (len(handler.batches), handler.confirmed, handler.failed) == (6, ["word"], [])


def test_an_interim_answer_leaves_before_the_work_is_done(scene: Scene) -> None:
    may_end = threading.Event()

    def work(_: Sequence[str], context: Context) -> None:
        context.send([Outgoing(scene.inbox.name, Message(b"begun", "x"))])
        assert may_end.wait(20)

    scene.send("word")
    with scene.running(Words(work)):
        assert [message.body for message in scene.inbox.receive(10)] == [b"begun"]
        may_end.set()
        scene.drained()


def test_told_to_stop_it_finishes_the_batch_at_hand_and_gives_the_others_back(scene: Scene) -> None:
    at_work, may_end = threading.Event(), threading.Event()

    def work(_: Sequence[str], __: Context) -> None:
        at_work.set()
        assert may_end.wait(20)

    handler = Words(work)
    scene.send(*(f"word {number:03}" for number in range(50)))
    with scene.running(handler, batch_size=8):
        assert at_work.wait(10)
        scene.stop.set()
        may_end.set()
    assert handler.batches == [["word 000"]]
    depth = scene.broker.depths()[scene.queue]
    assert (depth.ready, depth.unacknowledged) == (49, 0)
    with scene.broker.consume([scene.queue], 10) as consumer:
        assert consumer.receive(1, 5)[0].delivery_count == 0


def test_what_was_delivered_too_often_is_buried_unread(scene: Scene) -> None:
    scene.send("word")
    with scene.broker.consume([scene.queue], 1) as consumer:
        for _ in range(3):
            (delivery,) = consumer.receive(1, 5)
            consumer.requeue(delivery)
    handler = Words()
    with scene.running(handler):
        scene.drained()
    assert handler.batches == []
    assert [letter.reason for letter in scene.broker.dead_letters()] == ["delivery_limit"]


def test_a_broker_that_is_lost_is_taken_up_again_and_what_was_at_hand_comes_again(scene: Scene) -> None:
    def work(_: Sequence[str], __: Context) -> None:
        if len(handler.batches) == 1:
            raise BrokerError("the connection was lost")

    handler = Words(work)
    scene.send("word")
    with scene.running(handler):
        scene.drained()
    assert len(handler.batches) == 2
    assert handler.failed == []


def test_what_fails_after_the_confirmation_changes_nothing(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def work(words: Sequence[str], _: Context) -> Sequence[Outcome]:
        return [Done((), lambda: json.loads("{")) for _ in words]

    scene.send("word")
    with scene.running(Words(work)):
        scene.drained()
        eventually(lambda: "after a message was settled" in caplog.text, 5, "a line in the log")
    assert scene.broker.dead_letters() == []

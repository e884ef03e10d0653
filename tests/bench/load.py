"""Load for the prediction queue, from this process: as much as the workers take, or so many a second."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from shared.broker.base import Broker, Message, Outgoing, ReplyQueue
from shared.messages import pack_message
from tests.bench.bare import Lap

REPLY_TIMEOUT_S = 30.0


class LostReply(RuntimeError):
    """A reply did not come, or was an error: no figure may be taken from such a run."""


class Saturation:
    """Keeps the queue from running empty: as many images outstanding as two workers hold, and some more.

    Args:
        broker: where to publish; it should be of no other use.
        inbox: for the replies.
        images: encoded images, sent over and over.
        pack: images in a message; 1 sends the images themselves.
        outstanding: messages under way.
    """

    def __init__(
        self, broker: Broker, inbox: ReplyQueue, images: Sequence[bytes], *, pack: int, outstanding: int
    ) -> None:
        self._broker = broker
        self._inbox = inbox
        self._pack = pack
        self._outstanding = outstanding
        self._images = itertools.cycle(images)
        self._under_way = 0

    def run(self, seconds: float, cpu_s: Callable[[], float] = time.process_time) -> Lap:
        """Publishes for a while and counts the replies of that while, after a running start; then takes the rest.

        Args:
            seconds: how long.
            cpu_s: the processor time that counts, so far; by default that of this process.
        """
        self._fill()
        self._take_some(self._outstanding // 2)
        started, cpu = time.perf_counter(), cpu_s()
        done = 0
        while (took := time.perf_counter() - started) < seconds:
            done += self._take_some(self._outstanding // 8)
            self._fill()
        lap = Lap(done * self._pack, took, cpu_s() - cpu)
        while self._under_way:
            self._take_some(self._under_way)
        return lap

    def _fill(self) -> None:
        missing = self._outstanding - self._under_way
        messages = [self._message() for _ in range(missing)]
        self._broker.publish_many([Outgoing(self._broker.topology.predictions, message) for message in messages])
        self._under_way += missing

    def _message(self) -> Message:
        if self._pack == 1:
            return Message(next(self._images), "image/jpeg", reply_to=self._inbox.name)
        pack: list[tuple[str | int | None, bytes]] = list(zip(range(self._pack), self._images, strict=False))
        return pack_message(pack, reply_to=self._inbox.name)

    def _take_some(self, count: int) -> int:
        """Takes at least so many replies; looks into every one whether it is whole."""
        taken = 0
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while taken < count:
            for reply in self._inbox.receive(1.0):
                check(reply, self._pack)
                taken += 1
            if time.monotonic() > deadline:
                raise LostReply(f"{self._under_way - taken} replies did not come in {REPLY_TIMEOUT_S:g} s")
        self._under_way -= taken
        return taken


def check(reply: Message, images: int = 1) -> None:
    """Raises `LostReply` unless the reply has a prediction for every image."""
    if reply.body.count(b'"probability_female"') != images:
        raise LostReply(f"expected {images} predictions, found {reply.body[:300]!r}")


def one_by_one(broker: Broker, inbox: ReplyQueue, images: Sequence[bytes], *, pause_s: float = 0.0) -> list[float]:
    """Sends each image once the one before is answered. Returns each one's seconds from before sending to the reply."""
    latencies = []
    for image in images:
        started = time.perf_counter()
        broker.publish(broker.topology.predictions, Message(image, "image/jpeg", reply_to=inbox.name))
        replies: list[Message] = []
        while not replies:
            replies = inbox.receive(REPLY_TIMEOUT_S)
            if time.perf_counter() - started > REPLY_TIMEOUT_S:
                raise LostReply(f"no reply in {REPLY_TIMEOUT_S:g} s")
        latencies.append(time.perf_counter() - started)
        check(replies[0])
        if pause_s:
            time.sleep(pause_s)
    return latencies


def at_rate(broker: Broker, inbox: ReplyQueue, images: Sequence[bytes], rate: float, seconds: float) -> list[float]:
    """Sends images at random moments, so many a second on average, whether or not earlier ones are answered.

    Returns:
        Each one's seconds from the moment when it was due, so that a sender held up does not hide what it waited for.
    """
    moments = deque(_moments(rate, seconds))
    expected = len(moments)
    endless = itertools.cycle(images)
    due: dict[str, float] = {}
    latencies: list[float] = []
    failures: list[BaseException] = []
    started = time.perf_counter()

    def send() -> None:
        try:
            while moments:
                time.sleep(max(0.0, started + moments[0] - time.perf_counter()))
                batch = []
                while moments and started + moments[0] <= time.perf_counter():
                    message = Message(next(endless), "image/jpeg", reply_to=inbox.name)
                    due[message.message_id] = started + moments.popleft()
                    batch.append(Outgoing(broker.topology.predictions, message))
                broker.publish_many(batch)
        except BaseException as error:
            failures.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    while len(latencies) < expected and not failures:
        replies = inbox.receive(REPLY_TIMEOUT_S)
        now = time.perf_counter()
        if not replies:
            failures.append(LostReply(f"{expected - len(latencies)} replies did not come in {REPLY_TIMEOUT_S:g} s"))
        for reply in replies:
            check(reply)
            latencies.append(now - due[str(reply.correlation_id)])
    sender.join()
    if failures:
        raise failures[0]
    return latencies


def _moments(rate: float, seconds: float) -> Iterator[float]:
    rng = random.Random(3)
    moment = rng.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += rng.expovariate(rate)


def served_by(reply: Message) -> int:
    """Returns the version that a reply names."""
    version: int = json.loads(reply.body)["model"]["version"]
    return version

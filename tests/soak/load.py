"""What a soak sends, and how it reads the answers."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pika
from pika.exceptions import AMQPError

from shared.broker.base import Broker, Message, Outgoing
from shared.errors import Retryable
from shared.messages import ZIP, job_id_of, pack_message, run_id_of
from tests.integration.inference.test_jobs import zip_of
from tests.soak.ledger import LEVELS, Answer, Ledger, Sent, SentJob
from tests.support.builders.models import image_of

MOST_WAITING = 100
"""Requests without an answer, beyond which nothing is sent: else the time to recover would be that of the queue."""
DATASET_PARAMS = {"network": "small", "epochs": 1, "quantize": False, "augment": False, "promote": False}

Clock = Callable[[], float]


class Sender:
    """Sends requests, jobs and datasets, and writes down which of them the broker has confirmed.

    Args:
        broker: a connection of its own.
        ledger: what is written to.
        clock: seconds of the soak.
        reply_queues: where answers may go; each request names one of them.
        dataset: an archive to train on; None trains nothing.
        seed: repeats what is sent, if not when.
    """

    def __init__(
        self, broker: Broker, ledger: Ledger, clock: Clock, reply_queues: list[str], dataset: bytes | None, seed: int
    ) -> None:
        self._broker = broker
        self._ledger = ledger
        self._clock = clock
        self._reply_queues = reply_queues
        self._dataset = dataset
        self._rng = random.Random(f"load {seed}")
        self._images = {level: image_of(level) for level in LEVELS}

    def run(self, stop: threading.Event, *, job_every_s: float, dataset_every_s: float) -> None:
        """Sends until `stop`."""
        next_job, next_dataset = 0.0, dataset_every_s / 10
        while not stop.wait(self._rng.uniform(0.0, 0.06)):
            if self._ledger.waiting() > MOST_WAITING:
                stop.wait(0.2)
                continue
            self._send_requests()
            if self._clock() > next_job:
                next_job = self._clock() + job_every_s
                self._send_job()
            if self._dataset is not None and self._clock() > next_dataset:
                next_dataset = self._clock() + dataset_every_s
                self._send_dataset(self._dataset)

    def _send_requests(self) -> None:
        made = [self._request() for _ in range(self._rng.randint(1, 6))]
        at = self._clock()
        accepted = self._publish([outgoing for outgoing, _, _ in made])
        with self._ledger.lock:
            self._ledger.sent += [
                Sent(item.message.message_id, reply_queue, levels, accepted, at) for item, reply_queue, levels in made
            ]

    def _request(self) -> tuple[Outgoing, str, tuple[int, ...]]:
        reply_queue = self._rng.choice(self._reply_queues)
        levels = tuple(self._rng.choices(LEVELS, k=self._rng.choice([1, 1, 1, 2, 8, 16])))
        if len(levels) == 1:
            message = Message(self._images[levels[0]], "image/png", self._id(), reply_to=reply_queue)
        else:
            pairs: list[tuple[str | int | None, bytes]] = [(n, self._images[level]) for n, level in enumerate(levels)]
            message = pack_message(pairs, message_id=self._id(), reply_to=reply_queue)
        return Outgoing(self._broker.topology.predictions, message), reply_queue, levels

    def _send_job(self) -> None:
        levels = tuple(self._rng.choices(LEVELS, k=self._rng.randint(1, 60)))
        data = zip_of([(f"{n:03}.png", self._images[level]) for n, level in enumerate(levels)])
        message = Message(data, ZIP, self._id())
        if self._publish([Outgoing(self._broker.topology.jobs, message)]):
            with self._ledger.lock:
                self._ledger.jobs.append(SentJob(job_id_of(message.message_id), levels))

    def _send_dataset(self, archive: bytes) -> None:
        message = Message(archive, ZIP, self._id(), headers={"params": json.dumps(DATASET_PARAMS)})
        if self._publish([Outgoing(self._broker.topology.datasets, message)]):
            with self._ledger.lock:
                self._ledger.datasets.append(run_id_of(message.message_id))

    def _publish(self, outgoing: list[Outgoing]) -> bool:
        """Returns whether the broker has confirmed them; where it has not, they may be answered or not."""
        try:
            self._broker.publish_many(outgoing, timeout_s=10)
        except Retryable:
            return False
        return True

    def _id(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128)))


class Receiver:
    """Reads a reply queue until it is told to stop, whatever becomes of the broker. Its queue outlives connections.

    A private queue of one of our clients ends with its connection: what lies in it then is gone, and its owner asks
    again. That is no loss of the services, so a soak does not use one on RabbitMQ.
    """

    def __init__(self, name: str, ledger: Ledger, clock: Clock, receive: Callable[[], list[Message]]) -> None:
        self.name = name
        self._ledger = ledger
        self._clock = clock
        self._receive = receive

    def run(self, stop: threading.Event) -> None:
        """Writes down every answer until `stop`."""
        while not stop.is_set():
            messages = self._receive()
            at = self._clock()
            with self._ledger.lock:
                self._ledger.answers += [
                    Answer(str(message.correlation_id), self.name, json.loads(message.body), at) for message in messages
                ]


@contextlib.contextmanager
def embedded_receiver(broker: Broker, ledger: Ledger, clock: Clock) -> Iterator[Receiver]:
    """Gives a receiver on the embedded broker."""
    with broker.reply_queue() as inbox:
        yield Receiver(inbox.name, ledger, clock, lambda: inbox.receive(0.3))


@contextlib.contextmanager
def rabbitmq_receiver(url: str, name: str, ledger: Ledger, clock: Clock) -> Iterator[Receiver]:
    """Gives a receiver on RabbitMQ, as any foreign client would be: a durable queue, made before and read by pika."""
    parameters = pika.URLParameters(url)
    made = pika.BlockingConnection(parameters)
    made.channel().queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
    made.close()
    open_channel: list[pika.adapters.blocking_connection.BlockingChannel] = []

    def receive() -> list[Message]:
        try:
            if not open_channel:
                open_channel.append(pika.BlockingConnection(parameters).channel())
            found = []
            for method, properties, body in open_channel[0].consume(name, inactivity_timeout=0.3):
                if method is None:
                    break
                found.append((method.delivery_tag, Message(body, "", "", properties.correlation_id)))
                if len(found) == 200:
                    break
            if found:
                # Acknowledged before it is written down: a lost connection in between brings it again, as a duplicate.
                open_channel[0].basic_ack(found[-1][0], multiple=True)
            return [message for _, message in found]
        except (AMQPError, OSError):
            close()
            time.sleep(0.2)
            return []

    def close() -> None:
        while open_channel:
            with contextlib.suppress(AMQPError, OSError):
                open_channel.pop().connection.close()

    try:
        yield Receiver(name, ledger, clock, receive)
    finally:
        close()
        with contextlib.suppress(AMQPError, OSError), pika.BlockingConnection(parameters) as last:
            last.channel().queue_delete(name)

"""What the brokers themselves can do, without any model."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from pathlib import Path

from shared.broker import open_broker
from shared.broker.base import Broker, Message, Outgoing
from shared.topology import Topology
from tests.bench.rows import Row
from tests.bench.stage import Stage

MESSAGES = 20_000
BATCH = 256
BODY = bytes(range(250)) * 20
"""5 kB."""


def confirmed_publishes(stage: Stage) -> list[Row]:
    """Messages that RabbitMQ has confirmed, by one client."""
    with open_broker(stage.broker_url("RabbitMQ", stage.folder), Topology(f"bench{uuid.uuid4().hex[:8]}")) as broker:
        rates = [_publish(broker, 5000, stage) for _ in range(1 if stage.quick else 3)]
    return [_row("confirmed publishes of 5 kB, RabbitMQ", rates, 10_000)]


def embedded_batches(stage: Stage) -> list[Row]:
    """Messages that the embedded broker has on disk, and messages taken and acknowledged, in batches."""
    published, settled = [], []
    for _ in range(1 if stage.quick else 3):
        with (
            tempfile.TemporaryDirectory(dir=stage.folder) as folder,
            open_broker(f"sqlite:///{Path(folder) / 'broker.db'}") as broker,
        ):
            published.append(_publish(broker, BATCH, stage))
            with broker.consume([broker.topology.predictions], BATCH) as consumer:
                started, done = time.perf_counter(), 0
                while deliveries := consumer.receive(BATCH, 0):
                    consumer.settle(deliveries)
                    done += len(deliveries)
                settled.append(done / (time.perf_counter() - started))
    return [
        _row(f"durable publishes of 5 kB in {BATCH}s, embedded", published, 15_000),
        _row(f"claim and acknowledge in {BATCH}s, embedded", settled, 15_000),
    ]


def _publish(broker: Broker, batch: int, stage: Stage) -> float:
    """Returns messages a second, from the first to the last one's confirmation."""
    messages = MESSAGES // 4 if stage.quick else MESSAGES
    started = time.perf_counter()
    for _ in range(messages // batch):
        queue = broker.topology.predictions
        broker.publish_many([Outgoing(queue, Message(BODY, "image/jpeg")) for _ in range(batch)])
    return messages // batch * batch / (time.perf_counter() - started)


def _row(name: str, rates: list[float], least: int) -> Row:
    rate = statistics.median(rates)
    return Row(name, f"{rate:,.0f}/s", None, f"≥ {least:,}/s", rate >= least)

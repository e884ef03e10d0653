"""Both brokers, each behind the same few fixtures; every test gets queues of its own."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pytest
import s3fs

from shared.broker import open_broker
from shared.broker.base import Broker
from shared.store import open_store
from shared.store.base import Store
from shared.topology import Topology
from tests.support.brokers.rabbitmq_node import RabbitNode
from tests.support.brokers.rabbitmq_shared import SharedNode
from tests.support.s3_server import serve_s3

CHILD = Path(__file__).with_name("child.py")
ROOT = Path(__file__).parents[2]
LEASE_S = 0.6
"""How long the embedded broker waits for a dead process; also what tests that wait for it take."""


@dataclass
class Place:
    """A broker's address with queues of this test's own, and everything opened there.

    Attributes:
        url: for `open_broker`.
        node: the RabbitMQ node, where it is this test's own to stop and to change.
    """

    url: str
    node: RabbitNode | None = None
    topology: Topology = field(default_factory=lambda: Topology(f"test-{uuid.uuid4().hex[:12]}"))
    brokers: list[Broker] = field(default_factory=list)
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    starts: int = field(init=False)

    def __post_init__(self) -> None:
        self.starts = self.node.starts if self.node is not None else 0

    @property
    def is_rabbitmq(self) -> bool:
        return self.url.startswith("amqp:")

    def open(self, **options: Any) -> Broker:
        """Opens a connection of its own, closed after the test."""
        broker = open_broker(self.url, self.topology, **{"lease_s": LEASE_S, **options})
        self.brokers.append(broker)
        return broker

    def emit_body(self, topic: str, body: bytes) -> None:
        """Publishes an event's body as it is, as a program that knows nothing of this code may."""
        if self.is_rabbitmq:
            with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
                connection.channel().basic_publish(self.topology.events, topic, body)
            return
        with contextlib.closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=30)) as db, db:
            db.execute("INSERT INTO events (happened_at, topic, payload) VALUES (?, ?, ?)", (time.time(), topic, body))

    def start(self, *arguments: str, url: str | None = None) -> subprocess.Popen[str]:
        """Starts `child.py` with the broker's address and `arguments`; killed after the test."""
        child = subprocess.Popen(
            [sys.executable, str(CHILD), url or self.url, self.topology.prefix, str(LEASE_S), *arguments],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        return child

    def clear(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        for broker in self.brokers:
            broker.close()
        # Queues that RabbitMQ 3.10 is still recovering must not be deleted: the crash of their workers takes the
        # supervisor of all others with it, and from then on no quorum queue of the node takes a message.
        if self.is_rabbitmq and (self.node is None or self.node.starts == self.starts):
            with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
                channel = connection.channel()
                for queue in self.topology.queues:
                    channel.queue_delete(queue)
                channel.exchange_delete(self.topology.events)
                channel.exchange_delete(self.topology.requests)


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Iterator[Place]:
    place = Place(f"sqlite:///{tmp_path / 'broker.db'}")
    yield place
    place.clear()


@pytest.fixture
def rabbitmq_place(rabbitmq: SharedNode) -> Iterator[Place]:
    place = Place(rabbitmq.url)
    yield place
    place.clear()


@pytest.fixture(params=["sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def place(request: pytest.FixtureRequest) -> Place:
    """Each broker in turn."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def broker(place: Place) -> Broker:
    """A connection to each broker in turn."""
    return place.open()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds that nobody announces."""

    def wait(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"still not so after {timeout_s:g} s"
            time.sleep(0.01)

    return wait


BUCKET = "faces"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A running S3 server with one bucket, which the environment's credentials lead to."""
    with serve_s3() as endpoint, pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem().call_s3("create_bucket", Bucket=BUCKET)
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str) -> str:
    """A place in the bucket where nothing is."""
    return f"s3://{BUCKET}/tests/{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["file", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store of either kind."""
    return str(request.getfixturevalue("s3_url")) if request.param == "s3" else f"file:{tmp_path / 'store'}"


@pytest.fixture
def open_again(store_url: str) -> Callable[[], Store]:
    """Opens the same store once more, as another process would."""
    return lambda: open_store(store_url)


@pytest.fixture
def store(open_again: Callable[[], Store]) -> Store:
    return open_again()

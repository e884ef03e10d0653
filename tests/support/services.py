"""Starting the real services as processes, each with its own data folder, free ports and a log to show on failure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from shared.broker import open_broker
from shared.broker.base import Broker, Message, ReplyQueue
from shared.client import Client
from shared.store.files import FileStore
from shared.store.identity import give_identity
from shared.topology import Topology
from tests.support.brokers.rabbitmq_node import free_port

T = TypeVar("T")


@dataclass
class Service:
    """A running service process."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def kill(self) -> None:
        """Kills the process as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def children(self) -> list[int]:
        """Returns the processes that this one has started and that still run."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in found.split()]

    def kill_with_children(self) -> None:
        """Kills the process and those that it started, as a machine that loses power would."""
        for pid in self.children():
            os.kill(pid, signal.SIGKILL)
        self.kill()

    def stop(self, timeout_s: float = 40.0) -> int:
        """Asks the process to end, and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def get(self, path: str, token: str | None = None) -> tuple[int, str]:
        """Returns status and body of a GET on the service's port."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ready(self) -> bool:
        """Returns whether `/readyz` says so; fails where the process has ended."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()}")
        try:
            status, body = self.get("/readyz")
        except OSError:
            return False
        return status == 200 and json.loads(body)["ready"]


@dataclass
class Installation:
    """One installation: a broker, a store, and the services that a test starts."""

    folder: Path
    broker_url: str
    extra: dict[str, str] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")
    delivery_limit: int = 5  # an argument of RabbitMQ's queues, so the same for all who open them

    def env(self, **more: str) -> dict[str, str]:
        """Returns the environment of the installation's processes."""
        return {
            **os.environ,
            "GENDERLINE_BROKER_URL": self.broker_url,
            "GENDERLINE_STORE_URL": f"file:{self.folder / 'store'}",
            "GENDERLINE_INBOX": str(self.folder / "inbox"),
            "GENDERLINE_ALLOWED_ROOTS": str(self.folder / "allowed"),
            "GENDERLINE_QUEUE_PREFIX": self.prefix,
            "GENDERLINE_LEASE_S": "4",
            "GENDERLINE_DELIVERY_LIMIT": str(self.delivery_limit),
            "OMP_NUM_THREADS": "1",
            **self.extra,
            **more,
        }

    def start(self, module: str, *, wait: bool = True, launcher: Sequence[str] = (), **env: str) -> Service:
        """Starts `python <launcher> -m <module>` and waits until it is ready."""
        port = free_port()
        name = f"{module}-{len(self.services)}"
        log = self.folder / f"{name}.log"
        ports = {"GENDERLINE_METRICS_PORT": str(port), "GENDERLINE_PORT": str(port)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *launcher, "-m", module],
                env=self.env(**ports, **env),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        service = Service(name, process, port, log)
        self.services.append(service)
        if wait:
            eventually(service.ready, 60, f"{name} is ready")
        return service

    def broker(self) -> Broker:
        """Opens the installation's broker."""
        return open_broker(self.broker_url, Topology(self.prefix), lease_s=4, delivery_limit=self.delivery_limit)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """Opens a client."""
        store = FileStore(self.folder / "store")
        give_identity(store)  # else the first service on RabbitMQ listens for others before it makes one
        with self.broker() as broker:
            yield Client(broker, store)

    def logs(self) -> str:
        """Returns what all services have printed, for a message of failure."""
        return "\n".join(f"--- {service.name}\n{service.log.read_text()}" for service in self.services)

    def close(self) -> None:
        """Kills whatever still runs, children included."""
        for service in self.services:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait()


def collect(inbox: ReplyQueue, count: int, timeout_s: float) -> list[Message]:
    """Returns the first `count` replies that come to an inbox, or fails with those that did."""
    replies: list[Message] = []
    deadline = time.monotonic() + timeout_s
    while len(replies) < count:
        assert time.monotonic() < deadline, f"{len(replies)} of {count} replies within {timeout_s:g} s: {replies}"
        replies += inbox.receive(1)
    return replies


SLACK: Final = 3
"""How much longer a slow machine may take than tests say."""


def eventually(look: Callable[[], T], timeout_s: float, what: str) -> T:
    """Returns the first true answer of `look`, asked again and again, or fails saying what was awaited."""
    deadline = time.monotonic() + SLACK * timeout_s
    while True:
        if answer := look():
            return answer
        assert time.monotonic() < deadline, f"not within {SLACK} times {timeout_s:g} s: {what}"
        time.sleep(0.05)

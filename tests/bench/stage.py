"""Where the benchmarks take place: a real RabbitMQ node, real stores and broker files, real worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.broker.base import ReplyQueue
from shared.client import Client
from tests.bench.material import Material
from tests.support.brokers.rabbitmq_node import RabbitNode, find_server
from tests.support.services import Installation, Service

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Stage:
    """What all benchmarks share.

    Attributes:
        material: faces and models.
        folder: for whatever is written; emptied afterwards.
        quick: whether to be satisfied with rougher figures.
    """

    material: Material
    folder: Path
    quick: bool
    _node: RabbitNode | None = None
    _close: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def broker_url(self, broker: str, folder: Path) -> str:
        """Returns the address of a broker: `embedded`, in that folder, or `RabbitMQ`, started with the first call."""
        if broker == "embedded":
            return f"sqlite:///{folder / 'broker.db'}"
        if self._node is None:
            server = find_server()
            if server is None:
                raise RuntimeError("no rabbitmq-server on this machine; on Debian: apt-get install rabbitmq-server")
            home = self.folder / "rabbitmq"
            home.mkdir()
            self._node = RabbitNode(home, server)
            self._close.callback(self._node.close)
            self._node.start()
        return self._node.url

    @contextlib.contextmanager
    def served(self, broker: str, model: str, *, workers: int = 2, provider: str = "cpu") -> Iterator[Served]:
        """Starts workers that serve a model, opens a client, and ends both afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        settings = {
            "GENDERLINE_LEASE_S": "15",
            "GENDERLINE_WORKERS": str(workers),
            "GENDERLINE_PROVIDER": provider,
        }
        installation = Installation(folder, self.broker_url(broker, folder), settings)
        self.material.install(model, folder / "store")
        with contextlib.ExitStack() as close:
            close.callback(installation.close)
            service = installation.start("inference")
            close.callback(service.stop)
            client = close.enter_context(installation.client())
            inbox = close.enter_context(client.broker.reply_queue())
            yield Served(installation, service, client, inbox)

    def rabbitmq_cpu_s(self) -> float:
        """Returns the processor time that the node has taken so far, in seconds."""
        assert self._node is not None
        return cpu_s(self._node.pid)

    @contextlib.contextmanager
    def rabbitmq_on(self, core: int) -> Iterator[None]:
        """Keeps the node and this process, and so what it starts and connects with, on one core meanwhile."""
        self.broker_url("RabbitMQ", self.folder)
        assert self._node is not None
        with pinned([self._node.pid, os.getpid()], core):
            yield

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()


@dataclass(frozen=True)
class Served:
    """Running workers and a client of theirs."""

    installation: Installation
    service: Service
    client: Client
    inbox: ReplyQueue

    @property
    def pids(self) -> list[int]:
        """The worker processes and the children that decode for them."""
        return [pid for worker in self._workers() for pid in family(worker)]

    def cpu_s(self) -> float:
        """Returns the processor time that the workers and their children have taken so far, in seconds."""
        return sum(cpu_s(pid) for pid in self.pids)

    def memory_bytes(self) -> int:
        """Returns the memory of the largest worker, its children's included."""
        return max(sum(memory_bytes(pid) for pid in family(worker)) for worker in self._workers())

    def _workers(self) -> list[int]:
        _, body = self.service.get("/readyz")
        return [state["pid"] for state in json.loads(body)["workers"]]


@contextlib.contextmanager
def pinned(pids: Sequence[int], core: int) -> Iterator[None]:
    """Keeps processes on one core meanwhile: the threads that they have, and what those start."""
    before = [(pid, os.sched_getaffinity(pid)) for pid in pids]
    for pid in pids:
        _pin(pid, {core})
    try:
        yield
    finally:
        for pid, cores in before:
            _pin(pid, cores)


def _pin(pid: int, cores: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").glob("*"):  # none, where the process has ended
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


def cpu_s(pid: int) -> float:
    """Returns the processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def family(pid: int) -> list[int]:
    """Returns a process, its children and theirs."""
    found = [pid]
    for known in found:
        for children in Path(f"/proc/{known}/task").glob("*/children"):  # each thread has its own
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                found += map(int, children.read_text().split())
    return found


def memory_bytes(pid: int) -> int:
    """Returns the memory that a process has in use; of what it shares with others, its share."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("\nPss:")[2].split()[0]) * 1024


@contextlib.contextmanager
def open_stage(material: Material, *, quick: bool) -> Iterator[Stage]:
    """Gives a stage with a folder of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="genderline-bench-", ignore_cleanup_errors=True) as folder,
        Stage(material, Path(folder), quick) as stage,
    ):
        yield stage

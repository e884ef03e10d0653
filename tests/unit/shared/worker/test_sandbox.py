"""Work in a child process that some items kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shared.errors import Retryable
from shared.worker.child import Child, ChildDied, ForkServer
from shared.worker.sandbox import Sandbox
from tests.support.services import eventually

BAD = "bad"


def serve(pipe: Connection) -> None:
    """Answers each list of words with their lengths and the process that counted them; dies of a bad one."""
    while True:
        words = pipe.recv()
        if BAD in words:
            os.abort()
        pipe.send([(len(word), os.getpid()) for word in words])


class Lengths(Sandbox[Sequence[str], int]):
    def __init__(self, server: ForkServer) -> None:
        super().__init__()
        self._server = server
        self.forks = 0
        self.pids: set[int] = set()

    def _fork(self) -> Child:
        self.forks += 1
        return self._server.fork()

    def _send(self, child: Child, request: Sequence[str]) -> None:
        child.send(list(request))

    def _receive(self, child: Child, _: Sequence[str]) -> list[int]:
        answers = child.receive()
        self.pids.update(pid for _, pid in answers)
        return [length for length, _ in answers]

    def _split(self, request: Sequence[str]) -> Sequence[Sequence[str]]:
        return [[word] for word in request]

    def _blame(self, _: Sequence[str]) -> int:
        return -1


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer("tests.unit.shared.worker.test_sandbox:serve") as made:
        yield made


@pytest.fixture
def sandbox(server: ForkServer) -> Iterator[Lengths]:
    made = Lengths(server)
    yield made
    made.close()


def test_requests_are_answered_in_order_by_one_child(sandbox: Lengths) -> None:
    for words in (["a", "bb"], ["ccc"], ["dddd"]):
        sandbox.submit(words)
    assert [sandbox.receive() for _ in range(3)] == [[1, 2], [3], [4]]
    assert sandbox.forks == len(sandbox.pids) == 1


def test_an_item_that_kills_its_child_costs_two_of_them_and_no_neighbour(sandbox: Lengths) -> None:
    for words in (["a"], ["bb", BAD, "ccc"], ["dddd"]):
        sandbox.submit(words)
    assert [sandbox.receive() for _ in range(3)] == [[1], [2, -1, 3], [4]]
    assert sandbox.forks == 3


def test_an_item_that_comes_alone_is_tried_twice_too(sandbox: Lengths) -> None:
    sandbox.submit([BAD])
    assert sandbox.receive() == [-1]
    assert sandbox.forks == 2


def test_a_child_that_died_with_nothing_to_do_costs_nothing(sandbox: Lengths) -> None:
    sandbox.submit(["a"])
    sandbox.receive()
    os.kill(sandbox.pids.copy().pop(), signal.SIGKILL)
    eventually(sandbox.pipe.poll, 10, "the pipe is closed")
    sandbox.submit(["bb"])
    assert sandbox.receive() == [2]


def test_a_child_killed_once_at_work_is_nobodys_fault(sandbox: Lengths) -> None:
    sandbox.submit(["a"])
    sandbox.receive()
    os.kill(sandbox.pids.copy().pop(), signal.SIGSTOP)
    sandbox.submit(["bb", "ccc"])
    os.kill(sandbox.pids.copy().pop(), signal.SIGKILL)
    assert sandbox.receive() == [2, 3]


def test_a_server_that_was_killed_is_replaced(sandbox: Lengths) -> None:
    with ForkServer("tests.unit.shared.worker.test_sandbox:serve") as own:
        lengths = Lengths(own)
        lengths.submit(["a"])
        lengths.receive()
        os.kill(own.pid, signal.SIGKILL)
        eventually(lambda: not _lives(own.pid), 10, "a dead server")
        lengths.close()
        lengths.submit(["bb"])
        assert lengths.receive() == [2]


def test_a_child_that_cannot_begin_is_waited_for_and_no_item_is_blamed() -> None:
    with ForkServer("no.such.module:serve") as broken:
        child = broken.fork()
        with pytest.raises(Retryable, match="before it began"):
            child.receive()


def test_at_its_end_a_server_takes_its_children_along_busy_or_not() -> None:
    with ForkServer("tests.unit.shared.worker.test_sandbox:serve") as own:
        child = own.fork()
        child.send(["a"])
        ((_, pid),) = child.receive()
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: not _lives(pid), 10, "a dead child")
    with pytest.raises(ChildDied):
        child.receive()


def test_children_end_by_themselves_when_their_parent_is_killed() -> None:
    code = (
        "from shared.worker.child import ForkServer\n"
        "import sys, time\n"
        "server = ForkServer('tests.unit.shared.worker.test_sandbox:serve')\n"
        "child = server.fork()\n"
        "child.send(['a'])\n"
        "print(server.pid, child.receive()[0][1], flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not any(map(_lives, pids)), 10, "nothing left")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

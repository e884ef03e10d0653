"""One RabbitMQ node for all processes of a test run: the first that wants it starts it, and it ends with the last.

Nobody counts them. Each process holds a shared lock on one file, which Linux releases even for a process that is
killed; the keeper, which owns the node, waits until it gets that lock for itself alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.brokers.rabbitmq_node import START_TIMEOUT_S, RabbitNode

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class SharedNode:
    """A node that others use at the same time.

    Attributes:
        url: where clients connect, with its user and password.
    """

    url: str


@contextlib.contextmanager
def shared_node(folder: Path, server: Path) -> Iterator[SharedNode]:
    """Gives the node that all processes with the same folder share, started by the first of them.

    Args:
        folder: for the locks and everything that the node writes; made where it is missing.
        server: the `rabbitmq-server` script.

    Raises:
        RuntimeError: the node did not start.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "users").open("a") as users, (folder / "starting").open("a") as starting:
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper ends its node
        fcntl.flock(starting, fcntl.LOCK_EX)
        url = folder / "url"
        if not url.exists():
            _start_keeper(folder, server)
        fcntl.flock(starting, fcntl.LOCK_UN)
        yield SharedNode(url.read_text())


def _start_keeper(folder: Path, server: Path) -> None:
    with (folder / "keeper.log").open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(server)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Its own session: Ctrl-C in the terminal is for the tests, and the keeper notices their end.
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S + 10
    while not (folder / "url").exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            keeper.kill()
            keeper.wait()
            raise RuntimeError(f"RabbitMQ did not start:\n{(folder / 'keeper.log').read_text(errors='replace')}")
        time.sleep(0.05)
    keeper.returncode = 0  # it outlives this process, which would complain of that


def keep(folder: Path, server: Path) -> None:
    """Runs the node until nobody uses it any more."""
    node = RabbitNode(Path(tempfile.mkdtemp(prefix="node-", dir=folder)), server)
    url = folder / "url"
    with (folder / "users").open("a") as users:
        try:
            node.start()
            (folder / "url.part").write_text(node.url)
            (folder / "url.part").rename(url)
            fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            url.unlink(missing_ok=True)
            node.close()


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))

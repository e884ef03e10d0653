"""The services under a soak: found as processes, hurt, and made whole again."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared.records.runs import Runs, RunState
from shared.store.files import FileStore
from tests.soak.clock import SettableClock
from tests.soak.ledger import Sample
from tests.support.brokers.rabbitmq_node import RabbitNode
from tests.support.services import Installation, Service, eventually

WORKERS = 1
STAGES: Final = (RunState.INGESTING, RunState.TRAINING, RunState.EVALUATING, RunState.EXPORTING)
"""Of a run: the trainer is killed in each of them."""
_STAGE_WITHIN_S: Final = 30.0
_WEIGHTS: Final = {
    "kill a worker": 6,
    "kill inference": 4,
    "cut every connection": 6,
    "stop the trainer past its lease": 2,
}
"""How often a fault is made for each time that the others are."""


def weight_of(fault: str) -> int:
    """Returns how often a fault is made, relative to others."""
    return _WEIGHTS.get(fault, 1)


@dataclass
class Target:
    """An installation whose services may be hurt.

    Args:
        installation: where everything is.
        node: the RabbitMQ node, where it is this soak's own.
        lease_s: of the installation: who is stopped for longer has lost its work.
        clock: of the services.
    """

    installation: Installation
    node: RabbitNode | None
    lease_s: float
    clock: SettableClock
    with_trainer: bool = True
    services: dict[str, Service] = field(default_factory=dict)

    def start(self) -> None:
        """Starts every service, and waits for it."""
        for module in ("inference", *(["trainer"] if self.with_trainer else [])):
            self.services[module] = self.installation.start(module, GENDERLINE_WORKERS=str(WORKERS))

    def faults(self) -> dict[str, Callable[[random.Random], None]]:
        """Returns every fault that can be made here, by name."""
        found: dict[str, Callable[[random.Random], None]] = {
            "kill a worker": lambda _: self._signal_worker(signal.SIGKILL),
            "kill inference": lambda _: self._restart("inference"),
            "stop a worker past its lease": lambda _: self._stop_worker(),
            "store away": lambda rng: self._take_store_away(rng.uniform(0.5, 3)),
            "step the clock": lambda rng: self.clock.step(rng.choice([-3600, 0, 3600])),
        }
        if self.with_trainer:
            found["kill the trainer"] = lambda _: self._restart("trainer")
            found["stop the trainer past its lease"] = lambda _: self._pause(self.services["trainer"].process.pid)
            for stage in STAGES:
                found[f"kill the trainer while {stage}"] = functools.partial(self._kill_trainer_at, stage)
        if self.node is not None:
            found["cut every connection"] = lambda _: self._cut()
            found["kill the broker"] = lambda rng: self._restart_broker(rng, kill=True)
            found["restart the broker"] = lambda rng: self._restart_broker(rng, kill=False)
        return found

    def heal(self) -> None:
        """Makes everything run again."""
        if self.node is not None:
            self.node.start()
        for service in self.services.values():
            eventually(service.ready, 90, f"{service.name} is ready again")

    def sample(self, at: float) -> Sample:
        """Returns what inference takes now: what a trainer takes depends on the stage that its run is in."""
        memory = descriptors = 0
        for pid in family(self.services["inference"].process.pid):
            with contextlib.suppress(OSError, ValueError, IndexError):
                memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count only
        return Sample(at, memory, descriptors)

    def _worker(self) -> int | None:
        for pid in family(self.services["inference"].process.pid):
            with contextlib.suppress(OSError):
                if b"--worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def _signal_worker(self, number: signal.Signals) -> None:
        if (pid := self._worker()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stop_worker(self) -> None:
        if (pid := self._worker()) is not None:
            self._pause(pid)

    def _pause(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.lease_s * 1.3)
            os.kill(pid, signal.SIGCONT)

    def _restart(self, module: str) -> None:
        self.services[module].kill()
        self.services[module] = self.installation.start(module, wait=False, GENDERLINE_WORKERS=str(WORKERS))

    def _kill_trainer_at(self, stage: RunState, _: random.Random) -> None:
        """Waits for a run in this stage, a while; kills the trainer at any rate."""
        runs = Runs(FileStore(self.installation.folder / "store"))
        until = time.monotonic() + _STAGE_WITHIN_S
        while time.monotonic() < until and all(run.state is not stage for run in runs.open().records):
            time.sleep(0.005)
        self._restart("trainer")

    def _take_store_away(self, seconds: float) -> None:
        place, away = self.installation.folder / "store", self.installation.folder / "away"
        place.rename(away)
        time.sleep(seconds)
        away.rename(place)

    def _cut(self) -> None:
        assert self.node is not None
        self.node.control("close_all_connections", "soak")

    def _restart_broker(self, rng: random.Random, *, kill: bool) -> None:
        assert self.node is not None
        self.node.kill() if kill else self.node.stop()
        time.sleep(rng.uniform(0, 2))
        self.node.start()


def family(pid: int) -> list[int]:
    """Returns a process and all that it has started, and they."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    found, new = [pid], [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, ())]
        found += new
    return found

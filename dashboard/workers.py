"""Who is alive and how fast: what the heartbeats of the last minutes say."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from shared.broker.base import Event
from shared.events import WorkerHeartbeat, parse_event
from shared.telemetry.liveness import MOST_WORKERS
from shared.topology import WORKER_HEARTBEAT

ALIVE_S: Final = 7.0
"""Heartbeats come every two seconds; three missed ones count as gone."""

_GONE_SHOWN_S: Final = 600.0
_SPEED_KEPT_S: Final = 600.0
_SAMPLE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A process as its last heartbeat described it.

    Attributes:
        state: the heartbeat's payload.
        silent_s: seconds since.
    """

    state: dict[str, Any]
    silent_s: float

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        return self.silent_s <= ALIVE_S


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast all inference workers together are.

    Attributes:
        images_per_second: of all of them.
        latency_p50_ms: of the slowest worker; None where none answered messages lately.
        latency_p99_ms: likewise.
    """

    images_per_second: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None


class WorkerStates:
    """Remembers the newest heartbeat of every process, and the speed over the last ten minutes.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._workers: dict[str, tuple[float, dict[str, Any]]] = {}
        self._speed: deque[tuple[float, Speed]] = deque()

    def on_event(self, event: Event) -> None:
        """Takes note of an event; all but heartbeats are passed over."""
        if event.topic != WORKER_HEARTBEAT or not isinstance(beat := parse_event(event), WorkerHeartbeat):
            return
        now = self._clock()
        with self._lock:
            self._workers.pop(beat.worker, None)
            self._workers[beat.worker] = (now, beat.as_dict())
            while len(self._workers) > MOST_WORKERS:  # those that were heard of longest ago
                del self._workers[next(iter(self._workers))]
            if not self._speed or now - self._speed[-1][0] >= _SAMPLE_S:
                self._speed.append((now, self._total(now)))
                while now - self._speed[0][0] > _SPEED_KEPT_S:
                    self._speed.popleft()

    def states(self) -> list[WorkerState]:
        """Returns every process heard of in the last ten minutes, by service and name."""
        now = self._clock()
        with self._lock:
            self._workers = {name: item for name, item in self._workers.items() if now - item[0] <= _GONE_SHOWN_S}
            found = [WorkerState(payload, now - heard) for heard, payload in self._workers.values()]
        return sorted(found, key=lambda worker: (str(worker.state.get("service")), str(worker.state.get("worker"))))

    def abandoned(self, run_id: str) -> bool:
        """Returns whether the trainer that worked on a run does not respond, and no other has taken the run over."""
        busy = [worker for worker in self.states() if worker.state.get("busy") == run_id]
        return bool(busy) and not any(worker.alive for worker in busy)

    def refused(self) -> dict[int, str]:
        """Returns the versions that living workers do not serve, and why."""
        told = [worker.state.get("refused") for worker in self.states() if worker.alive]
        return {refused["version"]: refused["message"] for refused in told if refused}

    def recent_predictions(self) -> list[dict[str, Any]]:
        """Returns the workers' last answers, newest first; see `recent_predictions` in docs/messages.md."""
        told = [entry for worker in self.states() for entry in worker.state.get("recent_predictions") or []]
        return sorted(told, key=lambda entry: str(entry["at"]), reverse=True)

    def speed(self) -> Speed:
        """Returns how fast the workers are now."""
        with self._lock:
            return self._total(self._clock())

    def speed_history(self) -> list[tuple[float, Speed]]:
        """Returns (seconds ago, speed), oldest first and now last, about every five seconds of the last ten minutes."""
        now = self._clock()
        with self._lock:
            past = [(now - at, speed) for at, speed in self._speed]
            return [*past, (0.0, self._total(now))] if past else []

    def _total(self, now: float) -> Speed:
        alive = [
            payload
            for heard, payload in self._workers.values()
            if now - heard <= ALIVE_S and payload.get("service") == "inference"
        ]

        def slowest(key: str) -> float | None:
            return max((float(payload[key]) for payload in alive if payload.get(key) is not None), default=None)

        rate = sum(float(payload.get("images_per_second") or 0.0) for payload in alive)
        return Speed(rate, slowest("latency_p50_ms"), slowest("latency_p99_ms"))


@dataclass(frozen=True, slots=True)
class Monitoring:
    """What the living workers say of drift and of the challenger, together.

    Attributes:
        drift: each signal's score, the highest of any worker.
        images: that these scores look back on, all workers together.
        problems: what keeps the challenger from answering, each said once.
    """

    drift: dict[str, float]
    images: int
    problems: list[str]


def summarize_monitoring(workers: Iterable[WorkerState]) -> Monitoring:
    """Returns what the newest heartbeats of some inference workers say."""
    drift: dict[str, float] = {}
    images, problems = 0, set()
    for worker in workers:
        if worker.alive:
            found = worker.state.get("drift") or {}
            images += found.get("images", 0)
            for signal, score in found.get("scores", {}).items():
                drift[signal] = max(score, drift.get(signal, 0.0))
            if problem := (worker.state.get("challenger") or {}).get("problem"):
                problems.add(problem)
    return Monitoring(drift, images, sorted(problems))

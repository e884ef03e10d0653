"""How fast a worker is at the moment, for its heartbeat."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

_WINDOW_S: Final = 10.0
_LATENCIES_KEPT: Final = 2000


class ThroughputMeter:
    """Images a second and latencies over the last ten seconds. Thread-safe.

    Args:
        clock: seconds that never jump.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._images: deque[tuple[float, int]] = deque()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_LATENCIES_KEPT)

    def add(self, images: int, latency_s: float | None = None) -> None:
        """Notes that some images are done and, for interactive ones, how long their message took in seconds."""
        now = self._clock()
        with self._lock:
            self._images.append((now, images))
            if latency_s is not None:
                self._latencies.append((now, latency_s))
            self._forget(now)

    def summary(self) -> dict[str, Any]:
        """Returns `images_per_second`, `latency_p50_ms` and `latency_p99_ms`; the latencies None without messages."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            images = sum(count for _, count in self._images)
            latencies = sorted(latency for _, latency in self._latencies)
        return {
            "images_per_second": round(images / _WINDOW_S, 1),
            "latency_p50_ms": _quantile_ms(latencies, 0.5),
            "latency_p99_ms": _quantile_ms(latencies, 0.99),
        }

    def _forget(self, now: float) -> None:
        for kept in (self._images, self._latencies):
            while kept and kept[0][0] < now - _WINDOW_S:
                kept.popleft()


def _quantile_ms(ordered: list[float], q: float) -> float | None:
    return round(ordered[min(int(len(ordered) * q), len(ordered) - 1)] * 1000, 2) if ordered else None

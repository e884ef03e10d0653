"""A worker's last answers, for its heartbeat: the dashboard shows the predictions of every client."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from shared.clock import iso

KEPT: Final = 5
"""Messages in one heartbeat: some 600 bytes."""
_REPORTED: Final = ("gender", "probability_female", "confidence")


class RecentPredictions:
    """The answers to the last few messages. Thread-safe.

    They hold no image, name or id: every subscriber to events sees them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[float, int, int, dict[str, Any]]] = deque(maxlen=KEPT)

    def add(self, version: int, entries: Sequence[dict[str, Any]]) -> None:
        """Notes the entries of one reply by a model version; only its first prediction is kept."""
        first = next((entry for entry in entries if "gender" in entry), None)
        if first is None:
            return
        # Most are never reported: formatting is left to `summary`.
        with self._lock:
            self._kept.appendleft((time.time(), version, len(entries), first))

    def summary(self) -> list[dict[str, Any]]:
        """Returns `at`, `version`, `images`, `gender`, `probability_female` and `confidence` of each, newest first."""
        with self._lock:
            kept = list(self._kept)
        return [
            {"at": iso(at), "version": version, "images": images, **{key: first[key] for key in _REPORTED}}
            for at, version, images, first in kept
        ]

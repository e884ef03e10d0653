"""What a worker answered last, for its heartbeat: so that a dashboard shows the predictions of every client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from shared.messages import now_iso

KEPT: Final = 5
"""Messages told of in one heartbeat: some 600 bytes."""


class Newest:
    """The answers to the last few messages. Thread-safe.

    No image, name or id is kept: everybody who may listen to events hears of these.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def add(self, version: int, entries: Sequence[dict[str, Any]]) -> None:
        """Notes the entries of one reply by a model version; only its first prediction is told in full."""
        first = next((entry for entry in entries if "gender" in entry), None)
        if first is None:
            return
        told = {key: first[key] for key in ("gender", "probability_female", "confidence")}
        with self._lock:
            self._kept.appendleft({"at": now_iso(), "version": version, "images": len(entries), **told})

    def summary(self) -> list[dict[str, Any]]:
        """Returns `at`, `version`, `images`, `gender`, `probability_female` and `confidence` of each, newest first."""
        with self._lock:
            return list(self._kept)

"""A dataset's faces by a model that was not trained on them: predicted through the queue, in the background."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import Final

from dashboard.face_grid import png
from dashboard.store_cache import Catalog, predictions_key
from shared.client import Client
from shared.errors import Conflict, GenderlineError
from shared.messages import PACK_LIMIT

_PACKS_AT_ONCE: Final = 4
"""Few, so that others' predictions are not held up for long."""

_ANSWER_S: Final = 120.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoringState:
    """How far the scoring of a dataset is.

    Attributes:
        sha256: the dataset.
        version: the model.
        running: whether it goes on.
        done: faces predicted.
        total: faces in the dataset.
        error: why it ended early.
    """

    sha256: str = ""
    version: int = 0
    running: bool = False
    done: int = 0
    total: int = 0
    error: str | None = None


class Scorer:
    """Scores one dataset at a time, and keeps the result in the store.

    Args:
        client: sends the faces.
        catalog: knows them.
    """

    def __init__(self, client: Client, catalog: Catalog) -> None:
        self._client = client
        self._catalog = catalog
        self._lock = threading.Lock()
        self._state = ScoringState()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> ScoringState:
        """How far the present one, or the last, is."""
        return self._state

    def start(self, sha256: str, version: int) -> None:
        """Starts and returns at once.

        Raises:
            NotFound: there is no such dataset or model.
            Conflict: another one is on its way.
        """
        faces = len(self._catalog.dataset(sha256))
        self._catalog.card(version)
        with self._lock:
            if self._state.running:
                raise Conflict(f"dataset {self._state.sha256[:12]} is being predicted; wait until that is done")
            self._state = ScoringState(sha256, version, running=True, total=faces)
            self._thread = threading.Thread(target=self._score, name="scoring", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Gives up what is on its way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _score(self) -> None:
        data = self._catalog.dataset(self._state.sha256)
        lines = ["index,probability_female"]
        step = _PACKS_AT_ONCE * PACK_LIMIT
        try:
            for start in range(0, len(data), step):
                if self._stop.is_set():
                    raise GenderlineError("given up: the dashboard stopped", code="cancelled")
                images = [png(face) for face in data.faces[start : start + step]]
                entries, _ = self._client.predict(images, model_version=self._state.version, timeout_s=_ANSWER_S)
                for index, entry in enumerate(entries, start):
                    if "error" in entry:
                        raise GenderlineError(entry["error"]["message"], code=entry["error"]["code"])
                    lines.append(f"{index},{entry['probability_female']}")
                self._state = replace(self._state, done=start + len(images))
            key = predictions_key(self._state.sha256, self._state.version)
            self._client.store.put(key, ("\n".join(lines) + "\n").encode())
            self._state = replace(self._state, running=False)
        except GenderlineError as error:
            _LOG.warning("dataset %s is not predicted: %s", self._state.sha256[:12], error)
            self._state = replace(self._state, running=False, error=str(error))

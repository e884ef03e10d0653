"""A dataset's faces by a model that was not trained on them: predicted through the queue, in the background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dashboard.face_grid import encode_png
from dashboard.store_cache import StoreCache, predictions_key
from dashboard.tasks.background import BackgroundTask, TaskState
from shared.client import Client
from shared.errors import GenderlineError
from shared.messages import PACK_LIMIT

_PACKS_AT_ONCE: Final = 4
"""Few, so that others' predictions are not held up for long."""

_ANSWER_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class ScoringState(TaskState):
    """How far the scoring of a dataset is: `done` of `total` faces.

    Attributes:
        sha256: the dataset.
        version: the model.
    """

    sha256: str = ""
    version: int = 0


class ScoringTask(BackgroundTask[ScoringState]):
    """Scores one dataset at a time, and keeps the result in the store.

    Args:
        client: sends the faces.
        store_cache: knows them.
    """

    def __init__(self, client: Client, store_cache: StoreCache) -> None:
        super().__init__("scoring", ScoringState())
        self._client = client
        self._store_cache = store_cache

    def score(self, sha256: str, version: int) -> None:
        """Starts scoring and returns at once.

        Raises:
            NotFound: there is no such dataset or model.
            Conflict: another dataset is being scored.
        """
        faces = len(self._store_cache.dataset(sha256))
        self._store_cache.card(version)
        busy = f"dataset {self.state.sha256[:12]} is being predicted; wait until that is done"
        self.start(ScoringState(sha256=sha256, version=version, total=faces), self._score, busy)

    def _score(self) -> None:
        sha256, version = self.state.sha256, self.state.version
        data = self._store_cache.dataset(sha256)
        lines = ["index,probability_female"]
        step = _PACKS_AT_ONCE * PACK_LIMIT
        for start in range(0, len(data), step):
            self.raise_if_closed()
            images = [encode_png(face) for face in data.faces[start : start + step]]
            entries, _ = self._client.predict(images, model_version=version, timeout_s=_ANSWER_S)
            for index, entry in enumerate(entries, start):
                if "error" in entry:
                    raise GenderlineError(entry["error"]["message"], code=entry["error"]["code"])
                lines.append(f"{index},{entry['probability_female']}")
            self.update(done=start + len(images))
        self._client.store.put(predictions_key(sha256, version), ("\n".join(lines) + "\n").encode())

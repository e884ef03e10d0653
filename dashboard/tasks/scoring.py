"""A dataset's faces by a model that was not trained on them: a job, whose results are kept beside the dataset.

As a job it leaves interactive predictions their turn, and stays out of their latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dashboard.store_cache import StoreCache
from dashboard.tasks.background import BackgroundTask, TaskState
from shared.client import Client
from shared.errors import GenderlineError
from shared.records.jobs import Jobs, JobState
from shared.records.predictions import write_predictions

_LOOK_S: Final = 2.0
"""How often the job is looked at besides its events, so that a dashboard that stops waits no longer."""


@dataclass(frozen=True, slots=True)
class ScoringState(TaskState):
    """How far the scoring of a dataset is: `done` of `total` images.

    Attributes:
        sha256: the dataset.
        version: the model.
        job_id: the job that predicts them, once it is submitted.
    """

    sha256: str = ""
    version: int = 0
    job_id: str | None = None


class ScoringTask(BackgroundTask[ScoringState]):
    """Scores one dataset at a time, and keeps the result in the store.

    Args:
        client: submits the job.
        store_cache: knows the faces.
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
        job_id = self._client.predict_dataset(sha256, version)
        self.update(job_id=job_id)
        self._wait_for(job_id)
        text = self._client.store.get(Jobs.results_key(job_id)).decode()
        write_predictions(self._client.store, sha256, version, self._store_cache.dataset(sha256).names, text)

    def _wait_for(self, job_id: str) -> None:
        """Returns once the job has finished.

        Raises:
            GenderlineError: it ended otherwise, or the dashboard stops.
        """
        while True:
            self.raise_if_closed()
            try:
                for job, progress in self._client.follow_job(job_id, timeout_s=_LOOK_S):
                    self.raise_if_closed()
                    self.update(done=progress.done, total=progress.total or self.state.total)
                    if job.error is not None:
                        raise GenderlineError(job.error.message, code=job.error.code)
                    if job.state is JobState.FINISHED:
                        return
            except GenderlineError as error:
                if error.code != "timeout":
                    raise

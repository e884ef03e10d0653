"""The main job from end to end, for somebody who has just installed this: train, predict, show.

Everything goes the way that a user's own work goes: by the client, the queues and the store.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shared.cli.follow import follow_job, follow_run, place_of
from shared.cli.output import Output, Steps, percent
from shared.cli.predict_paths import Row, read_rows
from shared.cli.service_urls import choose_ports, drain, service_children, service_urls, stopped_by_signals
from shared.client import Client
from shared.connect import open_client
from shared.faces.synthetic import draw_sample
from shared.records.dataset import FACES_CSV, read_faces_csv
from shared.records.jobs import Jobs
from shared.records.runs import Run
from shared.runtime.settings import Settings
from shared.runtime.supervisor import Supervisor
from shared.telemetry.liveness import HeartbeatListener

_FOLDER: Final = Path("data/demo")
_SERVICES: Final = ("trainer", "inference", "dashboard")
_START_S: Final = 180.0
"""The first start of a service reads gigabytes of libraries from the disk."""

_TRAINING_SEED: Final = 1
_BATCH_SEED: Final = 2
_BATCH_IMAGES: Final = 300
_ROWS_SHOWN: Final = 8


class _Unsuccessful(Exception):
    """The demo cannot go on; the text says why."""


class Demo:
    """Starts the services, trains a model, predicts a batch and shows the results.

    Args:
        output: where all is told.
        settings: as everywhere; ports that are taken are replaced by free ones.
        dataset: the user's own archive, to train on and to predict; None draws two synthetic ones.
        images: synthetic faces to train on.
        epochs: passes over them at most; None leaves it to the recipe.
    """

    def __init__(
        self, output: Output, settings: Settings, dataset: Path | None, *, images: int, epochs: int | None
    ) -> None:
        self._output = output
        self._settings = settings
        self._dataset = dataset
        self._images = images
        self._epochs = epochs
        self._refused: list[str] = []

    def run(self, *, stay: bool) -> int:
        """Does it all. With `stay` the services are up until Ctrl-C afterwards. Returns the exit code."""
        training, batch = self._archives()
        ports = choose_ports(self._settings, _SERVICES, pick_free=True)
        log = _FOLDER / "services.log"
        supervisor = Supervisor(
            service_children(ports, log.absolute()), self._on_event, on_refusal=self._refused.append
        )
        try:
            with open_client(self._settings) as client:
                with HeartbeatListener(client.broker) as heartbeats:
                    supervisor.start()
                    self._await_services(heartbeats)
                self._say_where(ports, "dashboard")
                record = self._train(client, training)
                self._predict(client, batch, record)
            self._say_end(ports, log, stay=stay)
            if stay:
                self._stay()
        except _Unsuccessful as error:
            self._output.error(f"{error}; what the services said is in {log}")
            return 1
        finally:
            drain(supervisor)
        return 0

    def _archives(self) -> tuple[Path, Path]:
        """Returns the archive to train on and the one to predict; draws what is not there yet."""
        _FOLDER.mkdir(parents=True, exist_ok=True)
        if self._dataset is not None:
            return self._dataset, self._dataset
        self._title(f"generating {self._images:,} synthetic faces to train on and {_BATCH_IMAGES:,} others to predict")
        with self._output.steps() as steps:
            training = _drawn(self._images, _TRAINING_SEED, steps)
            return training, _drawn(_BATCH_IMAGES, _BATCH_SEED, steps)

    def _await_services(self, heartbeats: HeartbeatListener) -> None:
        self._title("starting trainer, inference and dashboard")
        deadline = time.monotonic() + _START_S
        while missing := heartbeats.wait_for(_SERVICES, 1.0):
            if self._refused:
                raise _Unsuccessful(f"the {self._refused[0]} refused to start with these settings")
            if time.monotonic() < deadline:
                continue
            raise _Unsuccessful(f"{' and '.join(sorted(missing))} did not come up within {_START_S:g} s")

    def _train(self, client: Client, archive: Path) -> Run:
        self._title(f"training on {archive}")
        run_id = client.submit_dataset(archive, params={"epochs": self._epochs} if self._epochs else None)
        with self._output.steps() as steps:
            run = follow_run(client, run_id, steps)
        if run.model is None:
            raise _Unsuccessful(f"{run_id} {run.state}: {run.error.message if run.error else 'no reason given'}")
        evaluation = client.runs.evaluation(run_id)
        assert evaluation is not None  # noqa: S101 - a registered run has one
        version = run.model.version
        self._output.line(
            f"{run_id} is registered as version {version}: accuracy {percent(evaluation.accuracy)} "
            f"({percent(evaluation.accuracy_low)} to {percent(evaluation.accuracy_high)}) on {evaluation.count:,} "
            f"test faces; {place_of(client, version)}",
            "green",
        )
        if client.registry.aliases().champion is None:
            raise _Unsuccessful("no model is in use, so nothing can be predicted; train on more faces")
        return run

    def _predict(self, client: Client, archive: Path, run: Run) -> None:
        self._title(f"predicting {archive} as a batch job")
        assert run.model is not None  # noqa: S101 - the run is registered
        job_id = client.submit_job(archive, model_version=run.model.version)  # the champion may still be the one before
        with self._output.steps() as steps:
            job = follow_job(client, job_id, steps)
        if job.counts is None or job.model is None:
            raise _Unsuccessful(f"{job_id} {job.state}: {job.error.message if job.error else 'no reason given'}")
        rows = list(read_rows(client.store.get(Jobs.results_key(job_id)).decode()))
        shown = rows[:_ROWS_SHOWN]
        self._output.table(
            ["IMAGE", "LABEL", "PREDICTED", "CONFIDENCE", ""],
            [
                (
                    row["name"],
                    row["true_gender"],
                    row["gender"],
                    percent(row["confidence"]),
                    row["error"] or ("wrong" if row["correct"] is False else ""),
                )
                for row in shown
            ],
            right=[3],
        )
        if len(rows) > len(shown):
            self._output.line(f"… and {len(rows) - len(shown):,} more in data/store/{Jobs.results_key(job_id)}")
        counts, version = job.counts, job.model.version
        self._output.line(
            f"{job_id} by version {version}: {counts.images:,} images, {counts.errors:,} errors, "
            f"{sum(row['gender'] == 'female' for row in rows):,} female, "
            f"{sum(row['gender'] == 'male' for row in rows):,} male, accuracy {percent(job.accuracy) or 'unknown'}",
            "green",
        )
        if self._dataset is not None:
            self._judge_unseen(client, rows, run)

    def _judge_unseen(self, client: Client, rows: list[Row], run: Run) -> None:
        """Says how the job did on those faces of the same archive that the model was not trained on."""
        text = client.store.get(f"datasets/{run.dataset}/{FACES_CSV}").decode()
        unseen = {face.name for face in read_faces_csv(io.StringIO(text, newline="")) if face.split == "test"}
        judged = [row["correct"] for row in rows if row["name"] in unseen and row["correct"] is not None]
        if judged:
            self._output.line(
                f"most of these faces were trained on; on the {len(judged):,} that were held out, the job's accuracy "
                f"is {percent(sum(judged) / len(judged))}"
            )

    def _say_where(self, ports: Mapping[str, int], *wanted: str) -> None:
        for what, where in service_urls(self._settings, ports):
            if not wanted or what in wanted:
                self._output.line(f"{what:<18} {where}")

    def _say_end(self, ports: Mapping[str, int], log: Path, *, stay: bool) -> None:
        self._title("done")
        # Addresses are of use only while somebody answers there.
        self._say_where(ports, *([] if stay else ["broker", "store"]))
        self._output.line(f"{'log':<18} {log.absolute()}")
        ending = "stay up; Ctrl-C stops them" if stay else "end now; `genderline up` starts them again"
        self._output.line(f"all services {ending}", "bold")

    def _stay(self) -> None:
        stop = threading.Event()
        with stopped_by_signals(stop):
            stop.wait()

    def _title(self, text: str) -> None:
        self._output.line()
        self._output.line(text, "bold")

    def _on_event(self, text: str) -> None:
        if "started" not in text:
            self._output.remark(text, "yellow")


def _drawn(images: int, seed: int, steps: Steps) -> Path:
    """Returns a synthetic archive; the same numbers always give the same one, so it is drawn once."""
    path = _FOLDER / f"synthetic-{images}-{seed}.zip"
    if not path.exists():
        draw_sample(
            path, images, seed, on_progress=lambda done, total: steps.step(f"generating {images:,}", done, total)
        )
        steps.finish()
    return path

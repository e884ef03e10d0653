"""A backup of a running installation, restored elsewhere, by the commands of docs/operations.md."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from pathlib import Path

import pytest

from shared.records.jobs import JobState
from shared.records.runs import RunState
from tests.integration.inference.test_jobs import faces, zip_of
from tests.support.builders.models import ModelBuilder, brightness_model, image_of
from tests.support.builders.stores import StoreBuilder
from tests.support.services import Installation, Service, eventually

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def run_documented(block: int, data: Path, backup: Path) -> None:
    """Runs the commands of the page's section on backups: the first block makes one, the second restores it."""
    section = PAGE.read_text().partition("**Backup.**")[2]
    commands = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[block]
    commands = re.sub(r"\bdata/", f"{data}/", re.sub(r"\bbackup(?=[/ ])", str(backup), commands))
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], check=True, timeout=60)


def installation(folder: Path) -> Installation:
    folder.mkdir(exist_ok=True)
    workers = {"GENDERLINE_WORKERS": "1"}
    return Installation(folder, f"sqlite:///{folder / 'broker.db'}", workers, prefix="genderline")


def unanswered(dashboard: Service, run_id: str, job_id: str, sha256: str) -> dict[str, int]:
    """Returns the pages and calls that do not answer with 200."""
    paths = ["/", "/runs", "/models", "/models/1", "/jobs", "/datasets", "/dead", "/readyz", "/metrics"]
    paths += [f"/runs/{run_id}", f"/jobs/{job_id}", f"/datasets/{sha256}", f"/datasets/{sha256}/faces/1"]
    paths += [f"/api/v1/jobs/{job_id}/results.csv", "/api/v1/models/1", f"/api/v1/runs/{run_id}"]
    return {path: status for path in paths if (status := dashboard.get(path)[0]) != 200}


def test_a_copy_of_a_running_installation_answers_and_does_what_was_accepted(tmp_path: Path) -> None:
    here, there, backup = tmp_path / "here", tmp_path / "there", tmp_path / "backup"
    (archive := tmp_path / "faces.zip").write_bytes(zip_of(faces(40)))
    with contextlib.closing(installation(here)) as running, running.client() as client:
        builder = StoreBuilder(client.store)
        sha256 = builder.dataset(40)
        builder.run("run-old", dataset=sha256, state=RunState.FAILED)
        ModelBuilder(client.store).register(brightness_model(), dataset=sha256)  # type: ignore[arg-type]
        running.start("inference")
        job_id = client.submit_job(archive)
        assert list(client.follow_job(job_id, timeout_s=30))[-1][0].state == JobState.FINISHED
        before = [client.submit_job(archive) for _ in range(5)]

        stop = threading.Event()

        def go_on() -> None:  # the copy is taken of something that changes
            with running.client() as other:
                while not stop.is_set():
                    other.submit_job(archive)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            run_documented(0, here, backup)
        finally:
            stop.set()
            thread.join()
    here.rename(tmp_path / "gone")  # a killed worker may still finish a write in there

    run_documented(1, there, backup)
    with contextlib.closing(installation(there)) as copy, copy.client() as client:
        copy.start("inference")
        dashboard = copy.start("dashboard")
        assert unanswered(dashboard, "run-old", job_id, sha256) == {}
        entries, model = client.predict([image_of(230)], timeout_s=20)
        assert (entries[0]["gender"], model) == ("female", {"name": "gender", "version": 1})
        eventually(lambda: all(client.jobs.get(job).state == JobState.FINISHED for job in before), 60, "their ends")
        assert client.jobs.all().damaged == client.runs.all().damaged == []

"""The `predict` command's work: images, folders and archives in, one row an image out."""

from __future__ import annotations

import csv
import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from shared.archives.archive import SUFFIXES as ARCHIVE_SUFFIXES
from shared.archives.archive import is_litter
from shared.cli.follow import check_may_follow, follow_job
from shared.cli.output import Steps
from shared.client import Client
from shared.faces.labels import GENDERS, label_or_none
from shared.records.cells import from_cell, to_cell
from shared.records.jobs import RESULT_COLUMNS, Job, Jobs, JobState

DIRECT_LIMIT: Final = 512
"""More images than this make a job: it survives this command, and leaves interactive predictions their place."""
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".avif", ".heic", ".heif"})

Row = dict[str, Any]
"""One image's result, by `RESULT_COLUMNS`; None where a column has no value."""


@dataclass(slots=True)
class Predictions:
    """What came of all images.

    Attributes:
        rows: one an image, in the order of the arguments, folders by name, archives by their own order.
        models: the models that answered.
        jobs: final records of the jobs that were needed.
    """

    rows: list[Row] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Images without a prediction."""
        return sum(row["error"] is not None for row in self.rows)

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images that were predicted correctly; None where there are none."""
        judged = [row["correct"] for row in self.rows if row["correct"] is not None]
        return sum(judged) / len(judged) if judged else None

    @property
    def failed(self) -> Job | None:
        """The first job that did not finish."""
        return next((job for job in self.jobs if job.state is not JobState.FINISHED), None)


def found_inputs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Returns (images, archives) among files and in folders. A file that is no archive counts as an image."""
    images: list[Path] = []
    archives: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            images += [file for file in inside if file.is_file() and not is_litter(file.as_posix())]
        elif zipfile.is_zipfile(path) or path.name.lower().endswith(ARCHIVE_SUFFIXES):
            archives.append(path)
        else:
            images.append(path)
    return images, archives


def predict(
    client: Client,
    images: Sequence[Path],
    archives: Sequence[Path],
    steps: Steps,
    *,
    model_version: int | None = None,
    timeout_s: float | None = None,
) -> Predictions:
    """Predicts images directly where they are few, and by a job where they are many or come in an archive.

    Args:
        client: whom to ask.
        images: image files.
        archives: zip files, each a job of its own.
        steps: where progress is shown.
        model_version: pins a version; then nothing becomes a job, so there must be no archives.
        timeout_s: for each piece of work; None waits a minute for images and for ever for jobs.

    Raises:
        GenderlineError: no answer in time, or broker or store are away.
    """
    result = Predictions()
    if images and len(images) > DIRECT_LIMIT and model_version is None:
        with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
            archive = Path(folder) / "images.zip"
            names = _zip(images, archive, steps)
            _by_job(client, archive, "images", steps, timeout_s, names, result)
    else:
        for start in range(0, len(images), DIRECT_LIMIT):
            part = images[start : start + DIRECT_LIMIT]
            _directly(client, part, start, len(images), steps, model_version, timeout_s, result)
    for archive in archives:
        _by_job(client, archive, archive.stem, steps, timeout_s, {}, result)
    return result


def write_rows(file: TextIO, rows: Sequence[Row]) -> None:
    """Writes rows as CSV, in the form of a job's `results.csv`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(RESULT_COLUMNS)
    for row in rows:
        cells = [to_cell(cell) if isinstance(cell := row[column], str) else cell for column in RESULT_COLUMNS]
        writer.writerow([str(cell).lower() if isinstance(cell, bool) else cell for cell in cells])


def read_rows(text: str) -> Iterator[Row]:
    """Yields the rows of a job's `results.csv`, with numbers and truth values as such."""
    for row in csv.DictReader(io.StringIO(text)):
        yield {
            "name": from_cell(row["name"]),
            "gender": row["gender"] or None,
            "probability_female": float(row["probability_female"]) if row["probability_female"] else None,
            "confidence": float(row["confidence"]) if row["confidence"] else None,
            "true_gender": row["true_gender"] or None,
            "correct": row["correct"] == "true" if row["correct"] else None,
            "error": row["error"] or None,
        }


def _directly(
    client: Client,
    images: Sequence[Path],
    before: int,
    total: int,
    steps: Steps,
    model_version: int | None,
    timeout_s: float | None,
    result: Predictions,
) -> None:
    steps.step("predicting", before, total)
    entries, model = client.predict(
        [path.read_bytes() for path in images],
        model_version=model_version,
        timeout_s=timeout_s or 60.0,
        on_done=lambda done: steps.step("predicting", before + done, total),
    )
    result.rows += [_row(_told(path), entry) for path, entry in zip(images, entries, strict=True)]
    if model and model not in result.models:
        result.models.append(model)


def _by_job(
    client: Client,
    archive: Path,
    name: str,
    steps: Steps,
    timeout_s: float | None,
    names: Mapping[str, str],
    result: Predictions,
) -> None:
    """Sends an archive as a job and adds its rows; `names` says which file an entry of ours was."""
    size = archive.stat().st_size
    copied = 0

    def on_copied(more: int) -> None:
        nonlocal copied
        copied += more
        steps.step("copying", copied / 1e6, size / 1e6, unit="MB")

    check_may_follow(client)
    job_id = client.submit_job(archive, name=name, on_copied=on_copied)
    steps.line(f"{job_id}: {archive if not names else f'{len(names):,} images'}")
    job = follow_job(client, job_id, steps, timeout_s)
    result.jobs.append(job)
    if job.state is not JobState.FINISHED:
        return
    if job.model and (model := job.model.as_dict()) not in result.models:
        result.models.append(model)
    for row in read_rows(client.store.get(Jobs.results_key(job_id)).decode()):
        result.rows.append({**row, "name": names.get(row["name"], row["name"])})


def _zip(images: Sequence[Path], archive: Path, steps: Steps) -> dict[str, str]:
    """Packs image files, which compress no further; returns entry name → path as the user gave it."""
    names: dict[str, str] = {}
    # Zips know no time before 1980, and what time it was does not matter here.
    with zipfile.ZipFile(archive, "w", strict_timestamps=False) as target:
        for index, path in enumerate(images):
            told = _told(path)
            # An archive's names are relative and go down only.
            name = "/".join(part for part in Path(told).parts if part not in {path.anchor, "..", "."})
            if name in names:
                name = f"{index:06d}/{name}"
            names[name] = told
            target.write(path, name)
            steps.step("packing", index + 1, len(images))
    return names


def _told(path: Path) -> str:
    """Returns a path as text that may be written anywhere: a file's name need not be UTF-8."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="replace")


def _row(name: str, entry: Mapping[str, Any]) -> Row:
    label = label_or_none(name)
    true = GENDERS[label.gender] if label else None
    gender = entry.get("gender")
    return {
        "name": name,
        "gender": gender,
        "probability_female": entry.get("probability_female"),
        "confidence": entry.get("confidence"),
        "true_gender": true,
        "correct": gender == true if gender and true else None,
        "error": "{code}: {message}".format(**entry["error"]) if "error" in entry else None,
    }

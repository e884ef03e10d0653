"""The files of a decoded dataset: their names and columns, and how to read and write them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, Literal, TextIO

from pydantic import BaseModel, ConfigDict

FACES_NPY: Final = "faces.npy"
FACES_CSV: Final = "faces.csv"
REJECTS_CSV: Final = "rejects.csv"
SUMMARY_JSON: Final = "summary.json"

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

AGE_BANDS: Final = ("0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
"""Names of the age bands that tables and the split use, youngest first."""


def age_band(age: int) -> int:
    """Returns the index into `AGE_BANDS` of an age in years."""
    return min(age // 10, len(AGE_BANDS) - 1)


class DatasetSummary(BaseModel):
    """What a decoded dataset holds: `summary.json`, written last, so that its presence means the rest is whole.

    The tables are nested: name of the row → `male`/`female` → faces; rows without faces are there with zeros.

    Attributes:
        archive_sha256: of the archive it was decoded from.
        faces: usable ones, rows of `faces.npy` and `faces.csv`.
        images_seen: entries of the archive, without folders and litter: faces and rejects.
        rejects: reason → how many; only reasons that occurred.
        genders: `male`/`female` → faces.
        ages: by `AGE_BANDS`.
        ethnicities: by `shared.faces.labels.ETHNICITIES`.
        splits: by `SPLITS`.
        near_duplicate_groups: groups of faces that look the same, each kept within one part of the split.
        near_duplicate_faces: faces in those groups.
        luma_mean: of all pixels, 0-255: what drift in the images to predict is measured against.
        luma_std: likewise.
        seconds: spent on decoding and splitting.
        images_per_second: `images_seen` by `seconds`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    archive_sha256: str
    faces: int
    images_seen: int
    rejects: dict[str, int]
    genders: dict[str, int]
    ages: dict[str, dict[str, int]]
    ethnicities: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]
    near_duplicate_groups: int
    near_duplicate_faces: int
    luma_mean: float
    luma_std: float
    seconds: float
    images_per_second: float


@dataclass(slots=True)  # not frozen: tens of thousands are made at once, which takes several times as long then
class FaceRow:
    """A row of `faces.csv`.

    Attributes:
        index: row of the face in `faces.npy`.
        name: of the archive's entry, unharmed.
        age: in years.
        gender: index into `shared.faces.labels.GENDERS`.
        ethnicity: index into `shared.faces.labels.ETHNICITIES`.
        split: the part it belongs to.
        width: of the original image, in pixels.
        height: likewise.
    """

    index: int
    name: str
    age: int
    gender: int
    ethnicity: int
    split: Split
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class RejectRow:
    """A row of `rejects.csv`: an entry that was left out, in archive order.

    Attributes:
        name: of the archive's entry, unharmed.
        reason: a key of `shared.faces.rejects.REJECT_REASONS`.
        detail: what was found and expected.
    """

    name: str
    reason: str
    detail: str


def write_faces_csv(file: TextIO, rows: Iterable[FaceRow]) -> None:
    """Writes `faces.csv` to a file opened with `encoding="utf-8", newline=""`."""
    _write(file, FaceRow, rows)


def read_faces_csv(file: TextIO) -> list[FaceRow]:
    """Reads `faces.csv` from a file opened with `encoding="utf-8", newline=""`."""
    return [
        FaceRow(
            index=int(row["index"]),
            name=row["name"],
            age=int(row["age"]),
            gender=int(row["gender"]),
            ethnicity=int(row["ethnicity"]),
            split=SPLITS[SPLITS.index(row["split"])],
            width=int(row["width"]),
            height=int(row["height"]),
        )
        for row in _read(file, FaceRow)
    ]


def write_rejects_csv(file: TextIO, rows: Iterable[RejectRow]) -> None:
    """Writes `rejects.csv` to a file opened with `encoding="utf-8", newline=""`."""
    _write(file, RejectRow, rows)


def read_rejects_csv(file: TextIO) -> list[RejectRow]:
    """Reads `rejects.csv` from a file opened with `encoding="utf-8", newline=""`."""
    return [RejectRow(row["name"], row["reason"], row["detail"]) for row in _read(file, RejectRow)]


def _write(file: TextIO, kind: type[Any], rows: Iterable[Any]) -> None:
    columns = [field.name for field in fields(kind)]
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(map(attrgetter(*columns), rows))


def _read(file: TextIO, kind: type[Any]) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(file)
    expected = [field.name for field in fields(kind)]
    if reader.fieldnames is None or list(reader.fieldnames) != expected:
        raise ValueError(f"found the columns {reader.fieldnames}, expected {expected}")
    yield from reader

"""The files of a decoded dataset: their names and columns, and how to read and write them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import NotFound
from shared.faces.decode import SIZE
from shared.faces.labelling import LabelReport, LabelSpec
from shared.faces.labels import UNKNOWN
from shared.records.cells import from_cell, to_cell
from shared.records.record import DamagedRecord, describe_fault
from shared.store.base import Store, sha256_of

FACES_NPY: Final = "faces.npy"
FACES_CSV: Final = "faces.csv"
REJECTS_CSV: Final = "rejects.csv"
NEAR_DUPLICATES_CSV: Final = "near_duplicates.csv"
"""The faces that look like another one, with the number of their group; older datasets lack it."""
SUMMARY_JSON: Final = "summary.json"
REFUSAL_JSON: Final = "refusal.json"
LABELS_JSON: Final = "labels.json"
"""The `labels` block of the message, where it had one."""
ARCHIVE_LABELS: Final = "archive"
"""Names the labels of the archive where edits may be named."""

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

AGE_BANDS: Final = ("0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
"""Names of the age bands that tables and the split use, youngest first."""


def archive_key(dataset: str) -> str:
    """Returns the store key of a dataset's archive."""
    return f"datasets/{dataset}/archive.zip"


def damaged_archive(dataset: str, found: str) -> DamagedRecord:
    """Returns the error of a dataset whose archive in the store is not what it was; submitting it again replaces it."""
    return DamagedRecord(archive_key(dataset), found, "Submit the archive once more, then retry")


def dataset_id(archive_sha256: str, labels: LabelSpec | None) -> str:
    """Returns what a dataset is called in the store: its archive's SHA-256; another where the message says the labels.

    The same archive read in two ways is two datasets.
    """
    if labels is None:
        return archive_sha256
    spec = json.dumps(labels.as_dict(), sort_keys=True)
    return hashlib.sha256(f"{archive_sha256} {spec}".encode()).hexdigest()


def age_band(age: int) -> int:
    """Returns the index into `AGE_BANDS` of an age in years; `UNKNOWN` for an unknown one."""
    return min(age // 10, len(AGE_BANDS) - 1) if age >= 0 else UNKNOWN


class DatasetFile(BaseModel):
    """One of a dataset's files, as it was written.

    Attributes:
        size_bytes: all of it.
        sha256: hexadecimal; of `faces.npy`, the hash of the hashes of its faces.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, path: Path) -> DatasetFile:
        """Returns what a local file is.

        Args:
            name: which of a dataset's files it is.
            path: of the file.

        Raises:
            ValueError: `faces.npy` is no array.
        """
        if name != FACES_NPY:
            return cls(size_bytes=path.stat().st_size, sha256=sha256_of(path))
        faces = np.load(path, mmap_mode="r", allow_pickle=False)
        return cls.of_faces(path.stat().st_size, (hashlib.sha256(face.data).digest() for face in faces))

    @classmethod
    def of_faces(cls, size_bytes: int, digests: Iterable[bytes]) -> DatasetFile:
        """Returns what `faces.npy` is; no byte of it need be read, for decoding hashes every face anyway.

        Args:
            size_bytes: of the file.
            digests: the SHA-256 of each face's pixels, in order.
        """
        return cls(size_bytes=size_bytes, sha256=hashlib.sha256(b"".join(digests)).hexdigest())


class DatasetSummary(BaseModel):
    """What a decoded dataset holds: `summary.json`, written last, so that its presence means the rest is whole.

    The tables are nested: name of the row → `male`/`female` → faces; rows without faces are there with zeros.

    Attributes:
        archive_sha256: of the archive it was decoded from.
        faces: usable ones, rows of `faces.npy` and `faces.csv`.
        images_seen: entries of the archive, without folders and litter: faces and rejects.
        rejects: reason → how many; only reasons that occurred.
        genders: `male`/`female` → faces.
        ages: by `AGE_BANDS`; of the faces whose age is known.
        ethnicities: by `shared.faces.labels.ETHNICITIES`; of the faces whose ethnicity is known.
        splits: by `SPLITS`.
        near_duplicate_groups: groups of faces that look the same, mirrored or not, each within one part of the split.
        near_duplicate_faces: faces in those groups.
        luma_mean: of all pixels, 0-255: what drift in the images to predict is measured against.
        luma_std: likewise.
        labels: where the labels come from; None in datasets of earlier releases.
        seconds: spent on decoding and splitting.
        images_per_second: `images_seen` by `seconds`.
        files: the other files by their names; none in datasets of earlier releases.
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
    labels: LabelReport | None = None
    seconds: float
    images_per_second: float
    files: dict[str, DatasetFile] = Field(default_factory=dict)


class DatasetRefusal(BaseModel):
    """Why an archive did not become a dataset: `refusal.json`, beside its `rejects.csv`.

    Attributes:
        code: one of `shared.errors.CODES`.
        message: for people.
        images_seen: entries of the archive, without folders, litter and tables.
        usable: faces that could have been trained on.
        rejects: reason → how many.
        labels: where the labels come from.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    message: str
    images_seen: int
    usable: int
    rejects: dict[str, int]
    labels: LabelReport | None = None


@dataclass(slots=True)  # not frozen: tens of thousands are made at once, which takes several times as long then
class FaceRow:
    """A row of `faces.csv`.

    Attributes:
        index: row of the face in `faces.npy`.
        name: of the archive's entry; in the file, as `to_cell` writes it.
        age: in years, or `UNKNOWN`: in the file, an empty cell.
        gender: index into `shared.faces.labels.GENDERS`.
        ethnicity: index into `shared.faces.labels.ETHNICITIES`, or `UNKNOWN`.
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
        name: of the archive's entry; in the file, as `to_cell` writes it.
        reason: a key of `shared.faces.rejects.REJECT_REASONS`.
        detail: what was found and expected.
    """

    name: str
    reason: str
    detail: str


def find_summary(store: Store, dataset: str) -> DatasetSummary | None:
    """Returns what a dataset holds; None before it is decoded.

    Raises:
        DamagedRecord: the file cannot be read.
    """
    key = f"datasets/{dataset}/{SUMMARY_JSON}"
    try:
        data = store.get(key)
    except NotFound:
        return None
    try:
        return DatasetSummary.model_validate_json(data)
    except ValidationError as error:
        raise DamagedRecord(key, describe_fault(error)) from None


def require_whole(store: Store, dataset: str, summary: DatasetSummary, *, lengths_only: bool = False) -> None:
    """Makes sure that a decoded dataset's files are those that were written.

    Args:
        store: where they lie.
        dataset: what it is called.
        summary: its summary.
        lengths_only: leave out to read them, which takes a second for each gigabyte or two.

    Raises:
        DamagedRecord: one is missing, or has another length or other bytes.
    """
    for name, expected in summary.files.items():
        key = f"datasets/{dataset}/{name}"
        try:
            size = store.size(key)
            if size != expected.size_bytes:
                raise DamagedRecord(key, f"found {size} bytes, expected {expected.size_bytes}")
            if lengths_only:
                continue
            with store.local(key) as path:
                found = DatasetFile.of(name, path)
        except ValueError as error:
            raise DamagedRecord(key, str(error)) from None
        except NotFound:
            raise DamagedRecord(key, "it is missing") from None
        if found != expected:
            raise DamagedRecord(key, f"found the SHA-256 {found.sha256}, expected {expected.sha256}")


def open_faces(faces: Path, table: Path, dataset: str) -> tuple[NDArray[np.uint8], list[FaceRow]]:
    """Opens the faces of a decoded dataset.

    Args:
        faces: a local `faces.npy`.
        table: a local `faces.csv`.
        dataset: what it is called, for messages.

    Returns:
        uint8 (N, 128, 128), a read-only memory map, and a row a face.

    Raises:
        DamagedRecord: one of the files is not what it should be, or they do not fit each other.
    """
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = read_faces_csv(file)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DamagedRecord(f"datasets/{dataset}/{FACES_CSV}", str(error)) from None
    key = f"datasets/{dataset}/{FACES_NPY}"
    try:
        found = np.load(faces, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DamagedRecord(key, str(error)) from None
    if found.shape != (len(rows), SIZE, SIZE) or found.dtype != np.uint8:
        raise DamagedRecord(key, f"found {found.dtype} {found.shape}, expected uint8 {(len(rows), SIZE, SIZE)}")
    return found, rows


def write_faces_csv(file: TextIO, rows: Iterable[FaceRow]) -> None:
    """Writes `faces.csv` to a file opened with `encoding="utf-8", newline=""`."""
    columns = [field.name for field in fields(FaceRow)]
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in rows:
        age, ethnicity = ("" if label == UNKNOWN else label for label in (row.age, row.ethnicity))
        about = (row.gender, ethnicity, row.split, row.width, row.height)
        writer.writerow((row.index, to_cell(row.name), age, *about))


def read_faces_csv(file: TextIO) -> list[FaceRow]:
    """Reads `faces.csv` from a file opened with `encoding="utf-8", newline=""`."""
    return [
        FaceRow(
            index=int(row["index"]),
            name=from_cell(row["name"]),
            age=int(row["age"] or UNKNOWN),
            gender=int(row["gender"]),
            ethnicity=int(row["ethnicity"] or UNKNOWN),
            split=SPLITS[SPLITS.index(row["split"])],
            width=int(row["width"]),
            height=int(row["height"]),
        )
        for row in _read(file, FaceRow)
    ]


def write_rejects_csv(file: TextIO, rows: Iterable[RejectRow]) -> None:
    """Writes `rejects.csv` to a file opened with `encoding="utf-8", newline=""`."""
    writer = csv.writer(file)
    writer.writerow([field.name for field in fields(RejectRow)])
    writer.writerows((to_cell(row.name), row.reason, to_cell(row.detail)) for row in rows)


def read_rejects_csv(file: TextIO) -> list[RejectRow]:
    """Reads `rejects.csv` from a file opened with `encoding="utf-8", newline=""`."""
    return [
        RejectRow(from_cell(row["name"]), row["reason"], from_cell(row["detail"])) for row in _read(file, RejectRow)
    ]


def write_near_duplicates_csv(file: TextIO, groups: Mapping[int, int]) -> None:
    """Writes `near_duplicates.csv`.

    Args:
        file: opened with `encoding="utf-8", newline=""`.
        groups: the number of its group by the face's index, for the faces that look like another one.
    """
    writer = csv.writer(file)
    writer.writerow(("index", "group"))
    writer.writerows(sorted(groups.items()))


def read_near_duplicates_csv(file: TextIO) -> dict[int, int]:
    """Reads `near_duplicates.csv`: the number of its group by the face's index."""
    return {int(row["index"]): int(row["group"]) for row in _read_rows(file, ["index", "group"])}


def _read(file: TextIO, kind: type[Any]) -> Iterator[dict[str, str]]:
    return _read_rows(file, [field.name for field in fields(kind)])


def _read_rows(file: TextIO, expected: list[str]) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(file)
    if reader.fieldnames is None or list(reader.fieldnames) != expected:
        raise ValueError(f"found the columns {reader.fieldnames}, expected {expected}")
    yield from reader

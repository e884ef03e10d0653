"""From an archive to a decoded dataset: `faces.npy`, `faces.csv`, `rejects.csv` and, last of all, `summary.json`.

Entries are unpacked and decoded side by side, and written down in archive order as they come, so memory does not grow
with the archive. What is wrong with one entry makes it a reject; only an archive that cannot train at all is refused.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.archive import Archive, ArchiveLimits, Entry
from shared.dataset import (
    AGE_BANDS,
    FACES_CSV,
    FACES_NPY,
    REJECTS_CSV,
    SPLITS,
    SUMMARY_JSON,
    DatasetSummary,
    FaceRow,
    RejectRow,
    Split,
    age_band,
    write_faces_csv,
    write_rejects_csv,
)
from shared.errors import InvalidDataset, InvalidImage
from shared.image import SIZE, Face, ImageLimits, decode_face
from shared.labels import ETHNICITIES, GENDERS, Label, parse_label
from shared.rejects import Reject, reject_for
from trainer.split import look_hashes, near_duplicates, split

MIN_FACES: Final = 20
"""Fewer make no training, no validation and no test worth the name."""

_CHUNK: Final = 32  # entries a task: long enough to hide the pool's cost, short enough for steady progress


def ingest(
    archive: Path,
    folder: Path,
    archive_limits: ArchiveLimits,
    image_limits: ImageLimits,
    *,
    threads: int = 1,
    archive_sha256: str | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> DatasetSummary:
    """Decodes an archive into `folder`.

    Done before, it returns the summary that is there. Interrupted, it may be called again: nothing half-written has its
    final name, save what the next call replaces.

    Args:
        archive: a zip of images whose names carry labels.
        folder: made if need be; afterwards holds the four files of `shared.dataset`.
        archive_limits: bounds on the archive and its entries.
        image_limits: bounds on one image.
        threads: that unpack and decode side by side.
        archive_sha256: hexadecimal, where the caller knows it; computed otherwise.
        on_progress: called with the entries done and their total, from this thread, after every few dozen entries. What
            it raises ends the work, which is the way to cancel.

    Raises:
        InvalidDataset: code `invalid_archive` or `archive_too_large` from opening it; `too_few_faces` where fewer than
            20 are usable, or too few of one gender to be in every part of the split; `single_gender`.
    """
    summary_path = folder / SUMMARY_JSON
    if summary_path.exists():
        return DatasetSummary.model_validate_json(summary_path.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with Archive(archive, archive_limits) as opened, _FaceWriter(folder / FACES_NPY) as writer:
        images_seen = len(opened.entries)
        sieve = _Sieve()
        for done, (entry, outcome) in enumerate(_decode_all(opened, image_limits, threads), start=1):
            if isinstance(outcome, Reject):
                sieve.reject(entry.index, entry.name, outcome)
            elif sieve.take(outcome.traits):
                writer.append(outcome.pixels)
            if done % _CHUNK == 0 or done == images_seen:
                on_progress(done, images_seen)
        kept_rows, faces = sieve.finish()
        _refuse_untrainable(faces, sieve)
        groups = near_duplicates(np.stack([face.look for face in faces]))
        parts = split([face.label for face in faces], [face.digest for face in faces], groups)
        _refuse_unsplittable(faces, parts)
        writer.finish(kept_rows)

    rows = [
        FaceRow(i, face.name, face.label.age, face.label.gender, face.label.ethnicity, part, face.width, face.height)
        for i, (face, part) in enumerate(zip(faces, parts, strict=True))
    ]
    with _replacing(folder / FACES_CSV) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        write_faces_csv(file, rows)
    with _replacing(folder / REJECTS_CSV) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        write_rejects_csv(file, sieve.reject_rows())

    seconds = time.monotonic() - started
    group_sizes = np.bincount(groups)
    # Every face has as many pixels, so the mean of their means is the mean of all, and likewise of their squares.
    luma_mean = math.fsum(face.luma_mean for face in faces) / len(faces)
    luma_square = math.fsum(face.luma_std**2 + face.luma_mean**2 for face in faces) / len(faces)
    summary = DatasetSummary(
        archive_sha256=archive_sha256 or _sha256(archive),
        faces=len(faces),
        images_seen=images_seen,
        rejects=sieve.counts(),
        genders=_by_gender(rows),
        ages={band: _by_gender(row for row in rows if age_band(row.age) == i) for i, band in enumerate(AGE_BANDS)},
        ethnicities={name: _by_gender(row for row in rows if row.ethnicity == i) for i, name in enumerate(ETHNICITIES)},
        splits={part: _by_gender(row for row in rows if row.split == part) for part in SPLITS},
        near_duplicate_groups=int((group_sizes > 1).sum()),
        near_duplicate_faces=int(group_sizes[group_sizes > 1].sum()),
        luma_mean=luma_mean,
        luma_std=math.sqrt(max(0.0, luma_square - luma_mean**2)),
        seconds=seconds,
        images_per_second=images_seen / max(seconds, 1e-9),
    )
    with _replacing(summary_path) as aside:
        aside.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return summary


@dataclass(frozen=True, slots=True)
class _Traits:
    """What is remembered of a face once its pixels are written."""

    index: int  # of the archive's entry
    name: str
    label: Label
    width: int
    height: int
    digest: bytes  # of the pixels; equal files give equal pixels, so it finds both kinds of exact duplicate
    look: NDArray[np.uint64]
    luma_mean: float
    luma_std: float


@dataclass(frozen=True, slots=True)
class _Decoded:
    traits: _Traits
    pixels: NDArray[np.uint8]


def _decode_all(archive: Archive, limits: ImageLimits, threads: int) -> Iterator[tuple[Entry, _Decoded | Reject]]:
    """Yields every entry with its outcome, in archive order; a bounded number of them is under way at any time."""

    def decode_chunk(entries: Sequence[Entry]) -> list[tuple[Entry, _Decoded | Reject]]:
        return list(zip(entries, _with_traits([_decode(archive, entry, limits) for entry in entries]), strict=True))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="ingest")
    try:
        under_way: deque[Future[list[tuple[Entry, _Decoded | Reject]]]] = deque()
        for start in range(0, len(archive.entries), _CHUNK):
            under_way.append(pool.submit(decode_chunk, archive.entries[start : start + _CHUNK]))
            if len(under_way) > 2 * threads:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(archive: Archive, entry: Entry, limits: ImageLimits) -> tuple[Entry, Label, Face] | Reject:
    if entry.reject is not None:
        return entry.reject
    try:
        return entry, parse_label(entry.name), decode_face(archive.read(entry), limits)
    except InvalidImage as error:
        return reject_for(error)


def _with_traits(outcomes: Sequence[tuple[Entry, Label, Face] | Reject]) -> Iterator[_Decoded | Reject]:
    """Yields the outcomes in order, the faces with what is to be remembered of them.

    That is taken of all faces at once where it can be: each call into OpenCV hands the interpreter to another thread
    and waits to get it back, which for one face takes longer than the work.
    """
    faces = [outcome[2].pixels for outcome in outcomes if not isinstance(outcome, Reject)]
    if not faces:
        yield from (outcome for outcome in outcomes if isinstance(outcome, Reject))
        return
    stacked = np.stack(faces)
    looks = look_hashes(stacked)
    flat = stacked.reshape(len(faces), -1)
    means = cv2.reduce(flat, 1, cv2.REDUCE_SUM, dtype=cv2.CV_64F)[:, 0] / flat.shape[1]
    squares = cv2.reduce(flat, 1, cv2.REDUCE_SUM2, dtype=cv2.CV_64F)[:, 0] / flat.shape[1]
    deviations = np.sqrt(np.maximum(squares - means**2, 0.0))
    measured = zip(looks, means.tolist(), deviations.tolist(), strict=True)
    for outcome in outcomes:
        if isinstance(outcome, Reject):
            yield outcome
            continue
        entry, label, face = outcome
        look, mean, deviation = next(measured)
        digest = hashlib.sha256(face.pixels.data).digest()
        traits = _Traits(entry.index, entry.name, label, face.width, face.height, digest, look, mean, deviation)
        yield _Decoded(traits, face.pixels)


class _Sieve:
    """Keeps the first of equal faces, none where equal faces contradict each other, and a note of all it rejects."""

    def __init__(self) -> None:
        self._faces: list[_Traits] = []  # one a row of `faces.npy` as first written
        self._copies: dict[bytes, list[_Traits]] = {}
        self._rejects: dict[int, RejectRow] = {}  # by the entry's index

    def reject(self, index: int, name: str, reject: Reject) -> None:
        """Notes why an entry is left out, in place of an earlier reason."""
        self._rejects[index] = RejectRow(name, reject.reason, reject.detail)

    def take(self, face: _Traits) -> bool:
        """Returns whether the face is new."""
        copies = self._copies.setdefault(face.digest, [])
        copies.append(face)
        if len(copies) > 1:
            detail = f"found the same face as in {copies[0].name!r}, expected it once"
            self.reject(face.index, face.name, Reject("duplicate", detail))
            return False
        self._faces.append(face)
        return True

    def finish(self) -> tuple[list[int], list[_Traits]]:
        """Drops the contradictions, which are known only now.

        Returns:
            The rows to keep of those first written, ascending, and their faces.
        """
        for copies in self._copies.values():
            witnesses = {face.label.gender: face.name for face in reversed(copies)}
            if len(witnesses) > 1:
                told = " and ".join(f"{GENDERS[gender]} in {name!r}" for gender, name in sorted(witnesses.items()))
                for face in copies:
                    detail = f"found the same face as {told}, expected one gender"
                    self.reject(face.index, face.name, Reject("contradiction", detail))
        rows = [row for row, face in enumerate(self._faces) if face.index not in self._rejects]
        return rows, [self._faces[row] for row in rows]

    def reject_rows(self) -> list[RejectRow]:
        """Returns the rejects in archive order."""
        return [row for _, row in sorted(self._rejects.items())]

    def counts(self) -> dict[str, int]:
        """Returns reason → how many, the most frequent first."""
        return dict(Counter(row.reason for row in self._rejects.values()).most_common())


def _refuse_untrainable(faces: Sequence[_Traits], sieve: _Sieve) -> None:
    if len(faces) < MIN_FACES:
        counts = ", ".join(f"{count} {reason}" for reason, count in sieve.counts().items())
        raise InvalidDataset(
            f"found {len(faces)} usable faces, expected at least {MIN_FACES}; rejects: {counts or 'none'}",
            code="too_few_faces",
        )
    genders = {face.label.gender for face in faces}
    if len(genders) == 1:
        raise InvalidDataset(
            f"found {len(faces)} faces, all of them {GENDERS[genders.pop()]}; expected both genders",
            code="single_gender",
        )


def _refuse_unsplittable(faces: Sequence[_Traits], parts: Sequence[Split]) -> None:
    present = {(face.label.gender, part) for face, part in zip(faces, parts, strict=True)}
    for gender, name in enumerate(GENDERS):
        if any((gender, part) not in present for part in SPLITS):
            count = sum(face.label.gender == gender for face in faces)
            raise InvalidDataset(
                f"found {count} {name} faces or near-duplicates of so few that they cannot be in all of "
                f"{', '.join(SPLITS)}; expected at least {len(SPLITS)} that differ",
                code="too_few_faces",
            )


class _FaceWriter:
    """Writes `faces.npy` row by row under another name, and gives it its own when it is finished.

    Args:
        path: of the finished file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = _aside(path)
        self._file = self._aside.open("w+b")
        self._rows = 0
        self._header_bytes = self._write_header(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)  # finished, it has its own name by now

    def append(self, pixels: NDArray[np.uint8]) -> None:
        """Adds a row. Shape: (128, 128)."""
        self._file.write(pixels.data)
        self._rows += 1

    def finish(self, rows: Sequence[int]) -> None:
        """Keeps only `rows`, ascending, and publishes the file."""
        self._file.flush()
        if len(rows) < self._rows:
            shape = (self._rows, SIZE, SIZE)
            faces = np.memmap(self._file, np.uint8, "r+", self._header_bytes, shape)
            for start in range(0, len(rows), _CHUNK):
                chosen = rows[start : start + _CHUNK]
                faces[start : start + len(chosen)] = faces[chosen]  # moves rows forward only, so none is lost
            faces.flush()
        self._file.truncate(self._header_bytes + len(rows) * SIZE * SIZE)
        self._file.seek(0)
        self._write_header(len(rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._aside.replace(self._path)

    def _write_header(self, rows: int) -> int:
        # NumPy pads the header so that its length does not change as the first axis grows.
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, SIZE, SIZE)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives another path to write to, which takes this one's place once it is whole."""
    aside = _aside(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _by_gender(rows: Iterable[FaceRow]) -> dict[str, int]:
    counts = Counter(row.gender for row in rows)
    return {name: counts[gender] for gender, name in enumerate(GENDERS)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

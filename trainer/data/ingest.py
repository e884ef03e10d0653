"""From an archive to a decoded dataset: `faces.npy`, `faces.csv`, `rejects.csv` and, last of all, `summary.json`.

Entries are unpacked and decoded side by side, each into its own place on disk; of a face, only a few hundred bytes are
remembered. What is wrong with one entry makes it a reject; only an archive that cannot train at all is refused.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.archives.archive import Archive, ArchiveLimits, plain_archive
from shared.errors import InvalidDataset
from shared.faces.decode import ImageLimits
from shared.faces.labelling import LabelReport, LabelSpec
from shared.faces.labels import ETHNICITIES, GENDERS, Label
from shared.faces.rejects import Reject
from shared.records.dataset import (
    AGE_BANDS,
    FACES_CSV,
    FACES_NPY,
    NEAR_DUPLICATES_CSV,
    REFUSAL_JSON,
    REJECTS_CSV,
    SPLITS,
    SUMMARY_JSON,
    DatasetFile,
    DatasetRefusal,
    DatasetSummary,
    FaceRow,
    Split,
    age_band,
    write_faces_csv,
    write_near_duplicates_csv,
    write_rejects_csv,
)
from shared.store.base import sha256_of
from trainer.data.decode import Chunk
from trainer.data.decode_pool import DecodePool
from trainer.data.dedupe import Deduplicator, FaceEntry
from trainer.data.face_file import FacesWriter, replacing
from trainer.data.labelling.recognize import Labelling, recognize_labels
from trainer.data.near_duplicates import near_duplicates
from trainer.data.seen import choose_seen
from trainer.data.split import split

Key = TypeVar("Key", int, str)

MIN_FACES: Final = 20
"""Fewer make no training, no validation and no test worth the name."""

_CHUNK: Final = 64
"""Entries decoded together: enough to hide what handing them over costs, few enough for steady progress."""


def ingest(
    archive: Path,
    folder: Path,
    archive_limits: ArchiveLimits,
    image_limits: ImageLimits,
    *,
    threads: int = 1,
    archive_sha256: str | None = None,
    labels: LabelSpec | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> DatasetSummary:
    """Decodes an archive into `folder`.

    Done before, it returns the summary that is there. Interrupted, it may be called again: nothing half-written has its
    final name, save what the next call replaces.

    Args:
        archive: of images whose labels can be recognised.
        folder: made if need be; afterwards holds the five files of `shared.records.dataset`.
        archive_limits: bounds on the archive and its entries.
        image_limits: bounds on one image.
        threads: how many processes unpack and decode side by side, where the archive is worth more than one.
        archive_sha256: hexadecimal, where the caller knows it; computed otherwise.
        labels: what the message says of the labels.
        on_progress: called with the entries done and their total, from this thread, after every few dozen entries, and
            after the last while faces are compared. What it raises ends the work, which is the way to cancel.

    Raises:
        InvalidDataset: code `invalid_archive` or `archive_too_large` from opening it; `too_few_faces` where fewer than
            20 are usable, or too few of one gender to be in every part of the split; `single_gender`. Then `folder`
            holds `rejects.csv` and `refusal.json`.
    """
    summary_path = folder / SUMMARY_JSON
    if summary_path.exists():
        return DatasetSummary.model_validate_json(summary_path.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        _uncollected(),
        plain_archive(archive, archive_limits) as plain,
        FacesWriter(folder / FACES_NPY) as face_file,
        # Started first: while they start, the archive is looked through.
        DecodePool(plain, face_file.temp_path, face_file.first_byte, image_limits, processes=threads) as pool,
        Archive(plain, archive_limits) as opened,
    ):
        labelling = recognize_labels(opened, labels)
        images_seen = len(labelling.entries) - labelling.outcomes.count(None)
        deduplicator = Deduplicator()
        done = 0
        for chunk, outcomes in pool.decode(_chunks(labelling)):
            known = labelling.outcomes[chunk.row : chunk.row + len(outcomes)]
            for index, (label, decoded) in enumerate(zip(known, outcomes, strict=True), chunk.row):
                name = labelling.entries[index].name
                if isinstance(label, Reject):
                    deduplicator.reject(index, name, label)
                elif isinstance(decoded, Reject):
                    deduplicator.reject(index, name, decoded)
                elif label is not None and decoded is not None:
                    deduplicator.add(FaceEntry(index, name, label, decoded))
            face_file.flush_async(chunk.row + len(chunk.entries))
            done += len(known) - known.count(None)
            on_progress(done, images_seen)
        faces = deduplicator.unique_faces()
        if refusal := _untrainable(faces, deduplicator):
            raise _refused(refusal, folder, faces, deduplicator, images_seen, labelling.report)
        phashes = np.frombuffer(b"".join(face.traits.phash for face in faces), np.uint64).reshape(-1, 2, 2)
        groups = near_duplicates(phashes, lambda: on_progress(images_seen, images_seen))
        face_labels, digests = [face.label for face in faces], [face.traits.digest for face in faces]
        parts = split(face_labels, digests, groups, choose_seen(groups, phashes))
        if _unsplittable(faces, groups, parts):  # too few are left that the starter has not seen: it is not used
            parts = split(face_labels, digests, groups)
        if refusal := _unsplittable(faces, groups, parts):
            raise _refused(refusal, folder, faces, deduplicator, images_seen, labelling.report)
        face_file.finish([face.entry for face in faces])
        rows = _rows(faces, parts)
        with replacing(folder / FACES_CSV) as temp_path, temp_path.open("w", encoding="utf-8", newline="") as file:
            write_faces_csv(file, rows)
        with replacing(folder / REJECTS_CSV) as temp_path, temp_path.open("w", encoding="utf-8", newline="") as file:
            write_rejects_csv(file, deduplicator.reject_rows())
        group_sizes = np.bincount(groups)
        alike = {index: int(group) for index, group in enumerate(groups) if group_sizes[group] > 1}
        duplicates = folder / NEAR_DUPLICATES_CSV
        with replacing(duplicates) as temp_path, temp_path.open("w", encoding="utf-8", newline="") as file:
            write_near_duplicates_csv(file, alike)

    seconds = time.monotonic() - started
    # Every face has as many pixels, so the mean of their means is the mean of all, and likewise of their squares.
    luma_mean = math.fsum(face.traits.luma_mean for face in faces) / len(faces)
    luma_square = math.fsum(face.traits.luma_std**2 + face.traits.luma_mean**2 for face in faces) / len(faces)
    splits = _by_gender({part: part for part in SPLITS}, (row.split for row in rows), rows)
    summary = DatasetSummary(
        archive_sha256=archive_sha256 or sha256_of(archive),
        faces=len(faces),
        images_seen=images_seen,
        rejects=deduplicator.counts(),
        genders={name: sum(table[name] for table in splits.values()) for name in GENDERS},
        ages=_by_gender(dict(enumerate(AGE_BANDS)), (age_band(row.age) for row in rows), rows),
        ethnicities=_by_gender(dict(enumerate(ETHNICITIES)), (row.ethnicity for row in rows), rows),
        splits=splits,
        near_duplicate_groups=int((group_sizes > 1).sum()),
        near_duplicate_faces=int(group_sizes[group_sizes > 1].sum()),
        luma_mean=luma_mean,
        labels=labelling.report,
        luma_std=math.sqrt(max(0.0, luma_square - luma_mean**2)),
        seconds=seconds,
        images_per_second=images_seen / max(seconds, 1e-9),
        files={
            FACES_NPY: DatasetFile.of_faces(
                (folder / FACES_NPY).stat().st_size, (face.traits.digest for face in faces)
            ),
            **{name: DatasetFile.of(name, folder / name) for name in (FACES_CSV, REJECTS_CSV, NEAR_DUPLICATES_CSV)},
        },
    )
    with replacing(summary_path) as temp_path:
        temp_path.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return summary


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python from looking for garbage: what is remembered of tens of thousands of faces is none.

    It would be looked through again and again as it grows, and all of PyTorch's objects with it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _chunks(labelling: Labelling) -> Iterator[Chunk]:
    for start in range(0, len(labelling.entries), _CHUNK):
        rows = slice(start, start + _CHUNK)
        pairs = zip(labelling.entries[rows], labelling.outcomes[rows], strict=True)
        yield Chunk(start, [entry if isinstance(label, Label) else None for entry, label in pairs])


def _rows(faces: Sequence[FaceEntry], parts: Sequence[Split]) -> list[FaceRow]:
    traits = [face.traits for face in faces]
    ages, genders, ethnicities = zip(*(face.label for face in faces), strict=True)
    columns = (
        [face.name for face in faces],
        ages,
        genders,
        ethnicities,
        parts,
        [seen.width for seen in traits],
        [seen.height for seen in traits],
    )
    return list(map(FaceRow, range(len(faces)), *columns))


def _refused(
    refusal: InvalidDataset,
    folder: Path,
    faces: Sequence[FaceEntry],
    deduplicator: Deduplicator,
    images_seen: int,
    labels: LabelReport,
) -> InvalidDataset:
    """Writes down what was rejected, so that it can be seen, and returns the refusal."""
    with replacing(folder / REJECTS_CSV) as temp_path, temp_path.open("w", encoding="utf-8", newline="") as file:
        write_rejects_csv(file, deduplicator.reject_rows())
    record = DatasetRefusal(
        code=refusal.code,
        message=str(refusal),
        images_seen=images_seen,
        usable=len(faces),
        rejects=deduplicator.counts(),
        labels=labels,
    )
    with replacing(folder / REFUSAL_JSON) as temp_path:
        temp_path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return refusal


def _untrainable(faces: Sequence[FaceEntry], deduplicator: Deduplicator) -> InvalidDataset | None:
    if len(faces) < MIN_FACES:
        counts = ", ".join(f"{count} {reason}" for reason, count in deduplicator.counts().items())
        return InvalidDataset(
            f"found {len(faces)} usable faces, expected at least {MIN_FACES}; rejects: {counts or 'none'}",
            code="too_few_faces",
        )
    genders = {face.label.gender for face in faces}
    if len(genders) == 1:
        return InvalidDataset(
            f"found {len(faces)} faces, all of them {GENDERS[genders.pop()]}; expected both genders",
            code="single_gender",
        )
    return None


def _unsplittable(
    faces: Sequence[FaceEntry], groups: NDArray[np.int64], parts: Sequence[Split]
) -> InvalidDataset | None:
    present = {(face.label.gender, part) for face, part in zip(faces, parts, strict=True)}
    for gender, name in enumerate(GENDERS):
        if any((gender, part) not in present for part in SPLITS):
            own = groups[[face.label.gender == gender for face in faces]]
            return InvalidDataset(
                f"found {len(own)} {name} faces, which are near-duplicates of {len(np.unique(own))}: they cannot be in "
                f"all of {', '.join(SPLITS)}; expected at least {len(SPLITS)} that differ",
                code="too_few_faces",
            )
    return None


def _by_gender(names: dict[Key, str], keys: Iterable[Key], rows: Sequence[FaceRow]) -> dict[str, dict[str, int]]:
    """Counts the rows by a key, which is given for each of them, and by gender."""
    counts = Counter(zip(keys, (row.gender for row in rows), strict=True))
    return {
        name: {gender_name: counts[key, gender] for gender, gender_name in enumerate(GENDERS)}
        for key, name in names.items()
    }

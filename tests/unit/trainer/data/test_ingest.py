from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from shared.archives.archive import ArchiveLimits
from shared.errors import Cancelled, InvalidDataset
from shared.faces.decode import ImageLimits, decode_face
from shared.faces.labels import parse_label
from shared.records.dataset import (
    SPLITS,
    DatasetSummary,
    FaceRow,
    RejectRow,
    read_faces_csv,
    read_near_duplicates_csv,
    read_rejects_csv,
)
from shared.runtime.settings import Settings
from tests.support.builders import archives
from tests.support.builders.archives import Files, face_jpeg, face_pixels, labelled_faces, zipped
from trainer.data.ingest import ingest

SETTINGS = Settings()
ARCHIVE_LIMITS = ArchiveLimits.from_settings(SETTINGS)
IMAGE_LIMITS = ImageLimits.from_settings(SETTINGS)


class Ingested:
    """A decoded archive, read back from its files."""

    def __init__(self, tmp_path: Path, data: bytes, threads: int = 2) -> None:
        self.archive = tmp_path / "faces.zip"
        self.archive.write_bytes(data)
        self.folder = tmp_path / "dataset"
        self.progress: list[tuple[int, int]] = []
        self.summary = self.again(threads=threads)
        self.faces = np.load(self.folder / "faces.npy", mmap_mode="r")
        with (self.folder / "faces.csv").open(encoding="utf-8", newline="") as file:
            self.rows: list[FaceRow] = read_faces_csv(file)
        with (self.folder / "rejects.csv").open(encoding="utf-8", newline="") as file:
            self.rejects: list[RejectRow] = read_rejects_csv(file)

    def again(self, threads: int = 2) -> DatasetSummary:
        return ingest(
            self.archive,
            self.folder,
            ARCHIVE_LIMITS,
            IMAGE_LIMITS,
            threads=threads,
            on_progress=lambda done, total: self.progress.append((done, total)),
        )

    def reject_of(self, name: str) -> RejectRow:
        return next(row for row in self.rejects if row.name == name)


def refusal(tmp_path: Path, files: Files) -> tuple[str, str]:
    (tmp_path / "faces.zip").write_bytes(zipped(files))
    with pytest.raises(InvalidDataset) as caught:
        ingest(tmp_path / "faces.zip", tmp_path / "dataset", ARCHIVE_LIMITS, IMAGE_LIMITS, threads=2)
    assert sorted(os.listdir(tmp_path / "dataset")) == ["refusal.json", "rejects.csv"]  # noqa: PTH208
    return caught.value.code, str(caught.value)


def test_every_usable_face_is_a_row_in_archive_order(tmp_path: Path) -> None:
    files = labelled_faces(70)
    done = Ingested(tmp_path, zipped(files))
    assert done.faces.shape == (70, 128, 128)
    assert done.faces.dtype == np.uint8
    assert [row.name for row in done.rows] == [name for name, _ in files]
    for row, (name, data) in zip(done.rows, files, strict=True):
        label = parse_label(name)
        assert (row.age, row.gender, row.ethnicity) == (label.age, label.gender, label.ethnicity)
        assert (row.width, row.height) == (200, 200)
        assert (done.faces[row.index] == decode_face(data, IMAGE_LIMITS).pixels).all()
    assert done.progress == [(64, 70), (70, 70)]
    assert done.rejects == []


def test_the_summary_counts_what_the_tables_hold(tmp_path: Path) -> None:
    done = Ingested(tmp_path, zipped([*labelled_faces(60), ("readme.txt", b"hello"), ("1_0_0.jpg", b"hello")]))
    summary = done.summary
    assert (summary.faces, summary.images_seen) == (60, 62)
    assert summary.rejects == {"no_label": 1, "invalid_image": 1}
    assert summary.genders == {"male": 30, "female": 30}
    for table in (summary.ages, summary.ethnicities, summary.splits):
        assert sum(sum(by_gender.values()) for by_gender in table.values()) == 60
    assert summary.ages["20-29"] == {"male": 10, "female": 10}
    assert summary.ages["0-9"] == {"male": 0, "female": 0}
    assert summary.ethnicities["White"] == {"male": 6, "female": 6}
    for part in SPLITS:
        assert sum(summary.splits[part].values()) == sum(row.split == part for row in done.rows)
        assert min(summary.splits[part].values()) > 0
    assert summary.luma_mean == pytest.approx(float(done.faces.mean()), abs=1e-3)
    assert summary.luma_std == pytest.approx(float(done.faces.std()), abs=1e-3)
    assert summary.archive_sha256 == hashlib.sha256(done.archive.read_bytes()).hexdigest()
    assert summary.images_per_second == pytest.approx(62 / summary.seconds)
    assert json.loads((done.folder / "summary.json").read_text()) == summary.model_dump(mode="json")


def test_any_number_of_threads_writes_the_same_files(tmp_path: Path) -> None:
    data = zipped([*labelled_faces(70), ("40_1_0.jpg", b"broken"), ("40_1_0_again.jpg", face_jpeg(3, 1))])
    written = []
    for threads in (1, 5):
        folder = tmp_path / str(threads)
        folder.mkdir()
        done = Ingested(folder, data, threads)
        written.append([(done.folder / name).read_bytes() for name in ("faces.npy", "faces.csv", "rejects.csv")])
    assert written[0] == written[1]


def test_done_before_it_answers_at_once_without_the_archive(tmp_path: Path) -> None:
    done = Ingested(tmp_path, zipped(labelled_faces(20)))
    done.archive.unlink()
    done.progress.clear()
    assert done.again() == done.summary
    assert done.progress == []


def test_interrupted_it_leaves_nothing_that_looks_finished_and_can_be_called_again(tmp_path: Path) -> None:
    archive, folder = tmp_path / "faces.zip", tmp_path / "dataset"
    archive.write_bytes(zipped(labelled_faces(70)))

    def cancel(done: int, total: int) -> None:
        raise Cancelled(f"stopped at {done} of {total}")

    with pytest.raises(Cancelled, match="stopped at 64 of 70"):
        ingest(archive, folder, ARCHIVE_LIMITS, IMAGE_LIMITS, threads=2, on_progress=cancel)
    assert list(folder.iterdir()) == []
    (folder / ".faces.npy.part").write_bytes(b"left behind by a killed process")
    assert ingest(archive, folder, ARCHIVE_LIMITS, IMAGE_LIMITS, archive_sha256="known").archive_sha256 == "known"
    assert sorted(path.name for path in folder.iterdir()) == [
        "faces.csv",
        "faces.npy",
        "near_duplicates.csv",
        "rejects.csv",
        "summary.json",
    ]


@pytest.mark.parametrize("was_enabled", [True, False])
@pytest.mark.parametrize("ends_well", [True, False])
def test_nothing_is_collected_meanwhile_and_afterwards_as_before(
    tmp_path: Path, was_enabled: bool, ends_well: bool
) -> None:
    (tmp_path / "faces.zip").write_bytes(zipped(labelled_faces(40)))
    meanwhile: list[bool] = []

    def on_progress(_done: int, _total: int) -> None:
        meanwhile.append(gc.isenabled())
        if not ends_well:
            raise Cancelled("enough")

    if not was_enabled:
        gc.disable()
    try:
        with contextlib.nullcontext() if ends_well else pytest.raises(Cancelled):
            ingest(tmp_path / "faces.zip", tmp_path / "d", ARCHIVE_LIMITS, IMAGE_LIMITS, on_progress=on_progress)
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()
    assert meanwhile == [False] * len(meanwhile) != []


def test_each_bad_entry_costs_itself_only_and_says_why(tmp_path: Path) -> None:
    bad = {
        "portrait.jpg": (face_jpeg(900), "no_label", "expected age_gender_ethnicity"),
        "61_1_20170109142408075.jpg.chip.jpg": (face_jpeg(901), "no_label", "expected age_gender_ethnicity"),
        "24_3_0.jpg": (face_jpeg(902), "invalid_label", "found gender 3, expected 0 (male) or 1 (female)"),
        "300_0_0.jpg": (face_jpeg(903), "invalid_label", "found age 300, expected 0-120"),
        "30_0_0_notes.jpg": (b"Not an image.\n", "invalid_image", "found a text file"),
        "30_0_0_cut.jpg": (face_jpeg(904)[:2000], "invalid_image", "found a JPEG image cut short"),
        "30_0_0_vast.png": (archives.png_header_only(13_000, 13_000), "image_too_large", "13000x13000"),
        "../30_0_0_up.jpg": (face_jpeg(905), "unsafe_name", "found '..' in the path"),
        "30_0_0_nul\0.jpg": (face_jpeg(906), "unsafe_name", "control character '\\x00'"),
        "": (face_jpeg(907), "unsafe_name", "found an empty name"),
    }
    files = labelled_faces(20)
    mixed = [*files[:10], *((name, data) for name, (data, _, _) in bad.items()), *files[10:]]
    done = Ingested(tmp_path, zipped(mixed))
    assert [row.name for row in done.rows] == [name for name, _ in files]
    assert [row.name for row in done.rejects] == list(bad)
    for name, (_, reason, detail) in bad.items():
        row = done.reject_of(name)
        assert row.reason == reason
        assert detail in row.detail


def test_an_entry_that_cannot_be_unpacked_costs_itself_only(tmp_path: Path) -> None:
    data = zipped(labelled_faces(21))
    at = data.index(face_jpeg(5, 1)) + 500
    done = Ingested(tmp_path, data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    assert done.summary.rejects == {"corrupt": 1}
    assert "found checksum" in done.rejects[0].detail


def test_rejects_take_no_disk(tmp_path: Path) -> None:
    archive, folder = tmp_path / "faces.zip", tmp_path / "dataset"
    files = labelled_faces(30)
    rejects = [(f"{i}", b"") for i in range(2000)]
    archive.write_bytes(zipped([*files[:10], *rejects[:1000], *files[10:], *rejects[1000:]]))
    taken: list[int] = []

    def on_progress(_done: int, _total: int) -> None:
        taken.append((folder / ".faces.npy.part").stat().st_blocks * 512)

    assert ingest(archive, folder, ARCHIVE_LIMITS, IMAGE_LIMITS, on_progress=on_progress).faces == 30
    assert max(taken) < 60 * 128 * 128
    faces = np.load(folder / "faces.npy")
    assert faces.shape == (30, 128, 128)
    for face, (_, data) in zip(faces, files, strict=True):
        assert (face == decode_face(data, IMAGE_LIMITS).pixels).all()


def test_faces_between_rejects_keep_their_pixels_and_what_is_told_of_them(tmp_path: Path) -> None:
    files = labelled_faces(40)
    mixed = [file for i, face in enumerate(files) for file in [*[("no label", b"")] * (i % 4), face]]
    (alone_in, mixed_in) = (tmp_path / "alone", tmp_path / "mixed")
    alone_in.mkdir()
    mixed_in.mkdir()
    alone, among = Ingested(alone_in, zipped(files)), Ingested(mixed_in, zipped(mixed))
    assert among.rows == alone.rows
    assert (among.faces == alone.faces).all()
    assert among.summary.near_duplicate_groups == alone.summary.near_duplicate_groups


def test_strange_names_come_out_of_the_tables_as_they_went_in(tmp_path: Path) -> None:
    strange = ["<img src=x onerror=alert(1)>", "x" * 300, "\u202egpj", 'quo"te, and comma', "=1+1", "ü\u0085\u2028€"]
    files = [(f"{30 + i}_{i % 2}_0_{name}.jpg", face_jpeg(100 + i, i % 2)) for i, name in enumerate(strange)]
    done = Ingested(tmp_path, zipped([*files, *labelled_faces(20), *((name, b"x") for name in strange)]))
    assert [row.name for row in done.rows][: len(files)] == [name for name, _ in files]
    assert [row.name for row in done.rejects] == strange


def test_names_of_any_length_leave_tables_that_can_be_read(tmp_path: Path) -> None:
    long = [";=" * 32_000, "\u0085" * 32_000]
    files = [(f"30_0_0_{name}.jpg", face_jpeg(100 + i, 0)) for i, name in enumerate(long)]
    done = Ingested(tmp_path, zipped([*files, *labelled_faces(20), *((name, b"x") for name in long)]))
    assert done.summary.faces == 20
    assert done.summary.rejects == {"unsafe_name": 4}


def test_of_equal_faces_the_first_stays_and_the_others_name_it(tmp_path: Path) -> None:
    lossless = archives.png_of(face_pixels(50))
    first, same_pixels = ("28_0_0_first.png", lossless), ("29_0_0_other_file.bmp", archives.bmp_of(face_pixels(50)))
    again = ("31_0_0_again.png", lossless)
    done = Ingested(tmp_path, zipped([*labelled_faces(20), first, same_pixels, again]))
    assert done.summary.rejects == {"duplicate": 2}
    assert done.rows[-1].name == first[0]
    for name, _ in (same_pixels, again):
        assert done.reject_of(name).detail == f"found the same face as in {first[0]!r}, expected it once"


def test_equal_faces_of_two_genders_are_all_dropped_and_the_rest_moves_up(tmp_path: Path) -> None:
    files = labelled_faces(80)
    a, b, c = ((name, face_jpeg(500)) for name in ("28_0_0_a.jpg", "28_0_0_b.jpg", "28_1_0_c.jpg"))
    done = Ingested(tmp_path, zipped([a, *files[:40], b, c, *files[40:]]))
    assert done.summary.rejects == {"contradiction": 3}
    for name, _ in (a, b, c):
        told = "found the same face as male in '28_0_0_a.jpg' and female in '28_1_0_c.jpg', expected one gender"
        assert done.reject_of(name) == RejectRow(name, "contradiction", told)
    assert done.faces.shape == (80, 128, 128)
    for row, (name, data) in zip(done.rows, files, strict=True):
        assert row.name == name
        assert (done.faces[row.index] == decode_face(data, IMAGE_LIMITS).pixels).all()


def test_long_names_are_cut_where_a_reject_tells_of_another_face(tmp_path: Path) -> None:
    long = "x" * 4_000
    told = [("28_0_0_a" + long, 500), ("28_1_0_b" + long, 500), ("28_0_0_c" + long, 501), ("28_0_0_d" + long, 501)]
    files = [(f"{name}.jpg", face_jpeg(face)) for name, face in told]
    done = Ingested(tmp_path, zipped([*files, *labelled_faces(20)]))
    assert [row.name for row in done.rejects] == [files[0][0], files[1][0], files[3][0]]
    assert done.reject_of(files[0][0]).detail.startswith("found the same face as male in '28_0_0_axxx")
    assert done.reject_of(files[3][0]).detail.endswith("xxx…', expected it once")
    assert max(len(row.detail) for row in done.rejects) < 1000


def test_copies_of_one_photo_at_two_sizes_share_a_part(tmp_path: Path) -> None:
    files = labelled_faces(60)
    smaller = [(f"{name}_small.jpg", archives.resized_jpeg(data, 160)) for name, data in files]
    done = Ingested(tmp_path, zipped([*files, *smaller]))
    assert done.summary.near_duplicate_groups >= 55
    assert done.summary.near_duplicate_faces == 2 * done.summary.near_duplicate_groups
    with (done.folder / "near_duplicates.csv").open(encoding="utf-8", newline="") as file:
        groups = read_near_duplicates_csv(file)
    names = {row.index: row.name.removesuffix("_small.jpg") for row in done.rows}
    assert len(groups) == done.summary.near_duplicate_faces
    assert len({(group, names[index]) for index, group in groups.items()}) == done.summary.near_duplicate_groups
    part = {row.name: row.split for row in done.rows}
    assert sum(part[name] == part[f"{name}_small.jpg"] for name, _ in files) >= done.summary.near_duplicate_groups


def test_mirror_images_stay_and_share_the_part_of_their_face(tmp_path: Path) -> None:
    """Networks answer both alike: a face that trains would be asked for in the examination."""
    files: list[tuple[str, bytes]] = []
    for index in range(60):
        pixels = face_pixels(index)
        for kind, image in (("face", pixels), ("mirror", pixels[:, ::-1])):
            data = cv2.imencode(".png", np.ascontiguousarray(image))[1].tobytes()
            files.append((f"{20 + index}_{index % 2}_0_{index}_{kind}.png", data))
    done = Ingested(tmp_path, zipped(files))
    part = {row.name: row.split for row in done.rows}
    assert len(part) == 120
    assert all(part[name] == part[name.replace("face", "mirror")] for name in part)
    assert set(part.values()) == set(SPLITS)
    assert done.summary.near_duplicate_groups == 60


def test_fewer_than_twenty_faces_are_refused_with_the_rejects_counted(tmp_path: Path) -> None:
    files = [*labelled_faces(19), ("a.jpg", b""), ("b.jpg", b""), ("30_0_0.jpg", b"text")]
    assert refusal(tmp_path, files) == (
        "too_few_faces",
        "found 19 usable faces, expected at least 20; rejects: 2 no_label, 1 invalid_image",
    )
    assert refusal(tmp_path, labelled_faces(3))[1].endswith("rejects: none")


def test_one_gender_is_refused(tmp_path: Path) -> None:
    files = [(f"30_1_0_{i}.jpg", face_jpeg(i, 1)) for i in range(20)]
    assert refusal(tmp_path, files) == ("single_gender", "found 20 faces, all of them female; expected both genders")


def test_too_few_of_one_gender_to_be_in_every_part_are_refused(tmp_path: Path) -> None:
    files = [(f"30_{int(i < 2)}_0_{i}.jpg", face_jpeg(i, int(i < 2))) for i in range(25)]
    code, message = refusal(tmp_path, files)
    assert code == "too_few_faces"
    assert message.startswith("found 2 female faces")


def test_what_is_no_archive_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "faces.zip").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    with pytest.raises(InvalidDataset, match="found a 7z archive") as caught:
        ingest(tmp_path / "faces.zip", tmp_path / "dataset", ARCHIVE_LIMITS, IMAGE_LIMITS)
    assert caught.value.code == "invalid_archive"
    assert list((tmp_path / "dataset").iterdir()) == []


@pytest.mark.parametrize("people", [30, 8])
def test_people_saved_three_times_each_become_a_dataset(tmp_path: Path, people: int) -> None:
    files = []
    for seed in range(people):
        for quality in (95, 80, 60):
            data = cv2.imencode(".jpg", face_pixels(seed, seed % 2), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            files.append((f"30_{seed % 2}_0_{seed}_{quality}.jpg", data))
    done = Ingested(tmp_path, zipped(files))
    assert done.summary.faces == 3 * people
    for part in SPLITS:
        assert min(done.summary.splits[part].values()) > 0


def test_too_few_who_differ_are_refused_with_how_many_there_are(tmp_path: Path) -> None:
    files = labelled_faces(20)[::2]
    for seed in (1, 3):
        for quality in range(60, 100, 4):
            data = cv2.imencode(".jpg", face_pixels(seed, 1), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            files.append((f"30_1_0_{seed}_{quality}.jpg", data))
    code, message = refusal(tmp_path, files)
    assert code == "too_few_faces"
    assert "found 20 female faces, which are near-duplicates of 2" in message


def test_images_of_one_archive_share_their_pixels(tmp_path: Path) -> None:
    claims = [(f"30_{i % 2}_0_claim{i}.png", archives.png_header_only(1000, 1000)) for i in range(40)]
    (tmp_path / "faces.zip").write_bytes(zipped([*labelled_faces(24), *claims]))
    folder = tmp_path / "dataset"
    ingest(tmp_path / "faces.zip", folder, ARCHIVE_LIMITS, ImageLimits(2**25, 1_000_000), threads=1)
    with (folder / "rejects.csv").open(encoding="utf-8", newline="") as file:
        too_large = [row.name for row in read_rejects_csv(file) if row.reason == "image_too_large"]
    assert 0 < len(too_large) < len(claims)
    assert too_large == [name for name, _ in claims[-len(too_large) :]]

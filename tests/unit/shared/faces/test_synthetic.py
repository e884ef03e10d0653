from __future__ import annotations

import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shared.faces.labels import ETHNICITIES, Label, parse_label
from shared.faces.synthetic import draw_face, draw_sample


def test_a_sample_holds_labelled_colour_jpegs_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sample.zip"
    seen: list[tuple[int, int]] = []
    draw_sample(path, 80, 0, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 80) for i in range(1, 81)]
    with zipfile.ZipFile(path) as archive:
        labels = [parse_label(name) for name in archive.namelist()]
        for name in archive.namelist():
            with archive.open(name) as file, Image.open(file) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (200, 200))
    assert len(labels) == 80
    assert {label.gender for label in labels} == {0, 1}
    assert {label.ethnicity for label in labels} == set(range(len(ETHNICITIES)))
    assert len({label.age for label in labels}) > 20


def test_the_same_seed_gives_the_same_bytes_and_a_longer_sample_begins_alike(tmp_path: Path) -> None:
    for name, images, seed in (("a", 5, 1), ("b", 5, 1), ("longer", 8, 1), ("other", 5, 2)):
        draw_sample(tmp_path / name, images, seed)
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert contents["a"] == contents["b"] != contents["other"]
    with zipfile.ZipFile(tmp_path / "a") as short, zipfile.ZipFile(tmp_path / "longer") as longer:
        assert longer.namelist()[:5] == short.namelist()
        assert [longer.read(name) for name in short.namelist()] == [short.read(name) for name in short.namelist()]


def test_faults_are_added_after_the_faces(tmp_path: Path) -> None:
    draw_sample(tmp_path / "sample.zip", 6, 0, faults=True)
    with zipfile.ZipFile(tmp_path / "sample.zip") as archive:
        names = archive.namelist()
        assert names[6:] == ["30_0_1_notes.jpg", "portrait.jpg", "41_1_0_cut_short.jpg", f"copies/{names[0]}"]
        assert archive.read(names[-1]) == archive.read(names[0])


def test_a_failure_leaves_no_file_behind(tmp_path: Path) -> None:
    def stop(done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path / "sample.zip", 3, 0, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_two_labels_in_a_hundred_are_wrong(tmp_path: Path) -> None:
    # The drawing does not know of the noise: drawn again from the generator's state, the face tells its true gender.
    draw_sample(tmp_path / "sample.zip", 200, 3)
    wrong = 0
    with zipfile.ZipFile(tmp_path / "sample.zip") as archive:
        for index, name in enumerate(archive.namelist()):
            rng = np.random.default_rng((3, index))
            rng.gamma(4.0, 8.5)
            wrong += parse_label(name).gender != int(rng.random() < 0.5)
    assert 1 <= wrong <= 12


def test_gender_shows_in_the_drawing_but_not_in_every_one() -> None:
    # Beards are drawn on adult male faces only: their lower halves are darker on average, and overlap all the same.
    def chin(gender: int, seed: int) -> float:
        luma = cv2.cvtColor(draw_face(Label(40, gender, 0), np.random.default_rng((9, seed))), cv2.COLOR_BGR2GRAY)
        return float(luma[130:165, 80:120].mean())

    male, female = (np.array([chin(gender, seed) for seed in range(60)]) for gender in (0, 1))
    assert male.mean() < female.mean()
    assert male.max() > female.min()


def test_drawing_is_fast_enough_to_wait_for(tmp_path: Path) -> None:
    started = time.process_time()
    draw_sample(tmp_path / "sample.zip", 60, 0)
    assert time.process_time() - started < 60 / 30  # 200 a second and core when nothing else runs

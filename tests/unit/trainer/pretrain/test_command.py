"""The whole command on drawn faces: a teacher and its student, one epoch each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shared.archives.archive import ArchiveLimits
from shared.faces.decode import ImageLimits, decode_face
from shared.faces.synthetic import draw_sample
from shared.records.dataset import FaceRow
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from tests.support.builders.archives import face_pixels, png_of, zipped
from trainer.data.dataset import Dataset
from trainer.data.near_duplicates import near_any
from trainer.pretrain.__main__ import RATE_FROM_EARLIER, main
from trainer.pretrain.teacher import decode_colour, to_grey
from trainer.release.import_starter import REPORT, StarterReport
from trainer.training.model import SIDE, build_network
from trainer.training.starter import STARTER_NETWORK, load_starter

pytestmark = pytest.mark.slow


def test_it_writes_what_training_begins_from_and_what_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENDERLINE_THREADS", "1")
    draw_sample(tmp_path / "faces.zip", 40, seed=1)
    draw_sample(tmp_path / "others.zip", 30, seed=2)
    arguments = [tmp_path / "faces.zip", "--held-out", tmp_path / "others.zip", "--out", tmp_path / "out"]
    arguments += ["--source", "drawn", "--work", tmp_path / "work", "--teacher-epochs", "1", "--epochs", "1"]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "accuracy_on_others_mirrored: " in done.output
    starter = load_starter(tmp_path / "out")
    build_network(STARTER_NETWORK, dropout=0.0).load_state_dict(starter.weights)
    assert starter.card["teacher"]["epochs"] == starter.card["recipe"]["epochs"] == 1
    assert len(np.load(tmp_path / "out" / "starter_seen.npy")) == starter.card["faces"]
    report = StarterReport.model_validate(json.loads((tmp_path / "out" / REPORT).read_text()))
    assert report.evaluation.accuracy == pytest.approx(starter.card["figures"]["accuracy_on_others"], abs=1e-4)
    assert report.evaluation.robustness

    again = [tmp_path / "others.zip", "--out", tmp_path / "again", "--source", "drawn", "--work", tmp_path / "work2"]
    again += ["--begin", tmp_path / "out", "--teacher-epochs", "0", "--epochs", "1"]
    done = CliRunner().invoke(main, [str(argument) for argument in again], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    card = load_starter(tmp_path / "again").card
    state = torch.load(tmp_path / "work2" / "student.pt", weights_only=True)
    assert state["origin"] == {
        "archive": sha256_of(tmp_path / "others.zip"),
        "began_from": starter.card["created"],
        "taught": 0.0,
    }
    seen, seen_before = (np.load(tmp_path / folder / "starter_seen.npy") for folder in ("again", "out"))
    assert len(seen) == card["faces"] + starter.card["faces"]
    assert near_any(seen_before, seen).all()
    assert card["began_from"] == f"the starter of {starter.card['created']}"
    assert card["recipe"]["rate"] == RATE_FROM_EARLIER


def test_the_teacher_sees_the_faces_that_are_served_in_colour(tmp_path: Path) -> None:
    tall = np.concatenate([face_pixels(3)[-60:], face_pixels(3), face_pixels(3)[:60]])
    files = [
        ("24_0_1.png", b"no image"),
        *(("24_0_1.png", png_of(face_pixels(number))) for number in (1, 2)),
        ("24_0_1_tall.png", png_of(tall)),
    ]
    (tmp_path / "faces.zip").write_bytes(zipped(files))
    limits = ImageLimits.from_settings(Settings())
    faces = np.stack([decode_face(data, limits).pixels for _, data in files[1:]])
    rows = [FaceRow(i, name, 24, 0, 1, "train", 200, 200) for i, (name, _) in enumerate(files[1:])]
    archive_limits = ArchiveLimits.from_settings(Settings())
    colour = decode_colour(tmp_path / "faces.zip", Dataset("a" * 64, faces, rows), archive_limits, limits)
    assert colour.shape == (3, 3, SIDE, SIDE)
    assert all((face[0] != face[2]).any() for face in colour)
    grey = to_grey(torch.from_numpy(colour).float())[:, 0].numpy()
    assert np.abs(grey - faces).mean(axis=(1, 2)).max() < 1

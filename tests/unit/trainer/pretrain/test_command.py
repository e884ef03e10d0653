"""The whole command on drawn faces: a teacher and its student, one epoch each."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shared.archives.archive import Archive, ArchiveLimits
from shared.faces.synthetic import draw_sample
from shared.records.dataset import FaceRow
from shared.runtime.settings import Settings
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

    again = [tmp_path / "faces.zip", "--out", tmp_path / "again", "--source", "drawn", "--work", tmp_path / "work2"]
    again += ["--begin", tmp_path / "out", "--teacher-epochs", "0", "--epochs", "1"]
    done = CliRunner().invoke(main, [str(argument) for argument in again], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    card = load_starter(tmp_path / "again").card
    assert card["began_from"] == f"the starter of {starter.card['created']}"
    assert card["recipe"]["rate"] == RATE_FROM_EARLIER


def test_the_teacher_sees_the_faces_of_the_rows_in_colour(tmp_path: Path) -> None:
    draw_sample(tmp_path / "faces.zip", 3, seed=1)
    limits = ArchiveLimits.from_settings(Settings())
    with Archive(tmp_path / "faces.zip", limits) as archive:
        names = [entry.name for entry in archive.entries]
    rows = [FaceRow(index, name, 30, 0, 0, "train", 200, 200) for index, name in enumerate(reversed(names))]
    faces = decode_colour(tmp_path / "faces.zip", rows, limits)
    assert faces.shape == (len(names), 3, SIDE, SIDE)
    backwards = decode_colour(tmp_path / "faces.zip", rows[::-1], limits)
    assert (faces[::-1] == backwards).all()
    assert (faces[0, 0] != faces[0, 2]).any()
    grey = [cv2.cvtColor(np.ascontiguousarray(face.transpose(1, 2, 0)), cv2.COLOR_BGR2GRAY) for face in faces]
    assert np.abs(to_grey(torch.from_numpy(faces).float())[:, 0].numpy() - np.stack(grey)).max() < 1

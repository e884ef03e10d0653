"""What every benchmark works on: generated faces and two models, made by the trainer's own code and kept for next time.

The faces are drawn, 200x200 JPEGs of some 5 kB as in UTKFace; what a network learns from them says nothing, but they
cost what real ones cost to decode. They and the models lie in `build/bench/<key>`, where the key follows from what they
are made by, so that a changed network is trained anew.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cv2.typing import MatLike
from prometheus_client import CollectorRegistry

from shared.faces.labels import Label
from shared.faces.synthetic import draw_face
from shared.params import TrainingParams
from shared.records.model_card import ModelCard
from shared.records.registry import Registry
from shared.records.runs import Runs, RunState
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from shared.store.files import FileStore
from shared.telemetry.metrics import TrainerMetrics

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "bench"
FACES = 1200
UTKFACE = 23_700
MODELS: dict[str, dict[str, Any]] = {
    # One epoch: its speed does not depend on its weights, and nothing is claimed of its accuracy.
    "reference": {"network": "reference", "epochs": 1, "quantize": False},
    # The network that a few thousand faces and more are given.
    "default": {"network": "compact", "epochs": 12},
}
"""The models by name: what is different from `TrainingParams`' defaults."""


@dataclass(frozen=True)
class Material:
    """The faces and models.

    Attributes:
        folder: where they lie; read only.
    """

    folder: Path

    @property
    def archive(self) -> Path:
        """A zip of `FACES` labelled faces."""
        return self.folder / "faces.zip"

    @cached_property
    def images(self) -> list[bytes]:
        """The archive's entries."""
        with zipfile.ZipFile(self.archive) as archive:
            return [archive.read(member) for member in archive.infolist()]

    def store(self, model: str) -> Path:
        """Returns the folder of a store whose champion is the model of that name."""
        return self.folder / model

    def card(self, model: str) -> ModelCard:
        """Returns the model's card."""
        return Registry(FileStore(self.store(model))).card(1)

    def install(self, model: str, folder: Path) -> None:
        """Puts a copy of the model into the store at `folder`."""
        shutil.copytree(self.store(model) / "models", folder / "models")

    def like_utkface(self) -> Path:
        """Returns a zip of as many faces as UTKFace has, no two of which look the same; made on the first call."""
        path = self.folder / "utkface-like.zip"
        if not path.exists():
            write_archive(path, UTKFACE, distinct=300)
        return path


def material() -> Material:
    """Returns the material, made now if it is not there."""
    key = hashlib.sha256(f"{FACES} {MODELS} {TrainingParams()!r}".encode())
    for name in ("training/model.py", "release/export.py"):
        key.update((ROOT / "trainer" / name).read_bytes())
    folder = KEPT / key.hexdigest()[:12]
    if not folder.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as made:
            made_folder = Path(made) / "made"
            made_folder.mkdir()
            write_archive(made_folder / "faces.zip", FACES, distinct=FACES)
            for name in MODELS:
                train_model(name, made_folder / "faces.zip", FileStore(made_folder / name))
            made_folder.rename(folder)
    return Material(folder)


def train_model(name: str, archive: Path, store: FileStore) -> None:
    """Runs the trainer's pipeline on the archive and promotes what comes out."""
    import torch

    from trainer.pipeline import Pipeline
    from trainer.run_monitor import Monitor

    settings = Settings()
    torch.set_num_threads(settings.cores)
    params = TrainingParams.parse(MODELS[name])
    sha256 = sha256_of(archive)
    copy = store.root / "copy.zip"
    store.root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(archive, copy)
    store.put_file(f"datasets/{sha256}/archive.zip", copy)
    Runs(store).create("run-bench", message_id="bench", name="drawn faces", params=params, state=RunState.TRAINING)
    pipeline = Pipeline(store, settings, TrainerMetrics(CollectorRegistry()), torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        pipeline.run("run-bench", "drawn faces", sha256, params, Monitor())
    Registry(store).promote(1, "the only one")


def write_archive(path: Path, images: int, distinct: int) -> None:
    """Writes labelled faces, of which only some are drawn, since that takes long; the others are those, turned."""
    aside = path.with_suffix(".part")
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(distinct):
        label = Label(int(np.clip(rng.gamma(4.0, 8.5), 1, 95)), int(rng.random() < 0.5), int(rng.integers(5)))
        drawn.append((label, draw_face(label, rng)))
    with zipfile.ZipFile(aside, "w") as archive:
        for index in range(images):
            label, face = drawn[index % distinct]
            pixels: MatLike = face
            if index >= distinct:
                turn: MatLike = cv2.getRotationMatrix2D((100, 100), rng.uniform(-25, 25), rng.uniform(0.85, 1.4))
                turn = turn + np.array([[0, 0, rng.uniform(-25, 25)], [0, 0, rng.uniform(-25, 25)]])
                pixels = cv2.warpAffine(pixels, turn, (200, 200), borderMode=cv2.BORDER_REFLECT)
            # Smoothed and saved as photos of that size are: some 5 kB.
            pixels = cv2.GaussianBlur(pixels, (3, 3), 0)
            done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(68, 83))])
            assert done
            name = f"{label.age}_{label.gender}_{label.ethnicity}_{20170101000000000 + index}.jpg"
            archive.writestr(zipfile.ZipInfo(name), data.tobytes())
    aside.replace(path)

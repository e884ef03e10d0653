"""A short version of the benchmark that every change must pass."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.faces.decode import ImageLimits, decode_face
from shared.faces.synthetic import draw_sample
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from tests.bench.bare import BareLoops
from tests.bench.load import Saturation
from tests.bench.stage import Served
from tests.support.builders.models import ModelBuilder
from tests.support.services import Installation
from trainer.release.export import export_onnx, quantize_int8
from trainer.training.model import build_network

LEAST_SPEED = 0.7
"""Of the bare loop's: the client and the broker take their part of the same cores."""
LEAST_WORK = 0.8
"""The bare loop's processor time an image, to that of the workers and their children."""
ROUNDS = 20
ROUND_S = 1.2
PACK = 64
OUTSTANDING = 24


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "faces.zip"
    draw_sample(path, PACK, seed=5)
    return path


def images_of(archive: Path) -> list[bytes]:
    with zipfile.ZipFile(archive) as opened:
        return [opened.read(member) for member in opened.infolist()]


def register_untrained(store: FileStore, images: list[bytes], folder: Path) -> None:
    """Registers the network that a few thousand faces train, in float32 and int8: weights do not change its speed."""
    limits = ImageLimits.from_settings(Settings())
    network = build_network("compact", dropout=0.4, mirror=True)
    plain, quantized = folder / "model.onnx", folder / "model_int8.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        export_onnx(network, 1.0, plain, {})
    quantize_int8(plain, quantized, np.stack([decode_face(data, limits).pixels for data in images]))
    ModelBuilder(store).register(plain.read_bytes(), int8=quantized.read_bytes())


@pytest.mark.alone
def test_packs_cost_little_more_than_the_bare_loop(installation: Installation, archive: Path) -> None:
    images = images_of(archive)
    torch.set_num_threads(1)
    store = FileStore(installation.folder / "store")
    register_untrained(store, images, installation.folder)
    service = installation.start("inference", GENDERLINE_WORKERS="2")
    speed: list[float] = []
    work: list[float] = []
    with (
        BareLoops(store.root, archive) as bare,
        installation.client() as client,
        client.broker.reply_queue() as inbox,
    ):
        served = Served(installation, service, client, inbox)
        load = Saturation(client.broker, inbox, images, pack=PACK, outstanding=OUTSTANDING)
        load.run(0.3)
        # By turns, and the best of several: what else runs on the machine at the moment is no regression.
        while len(speed) < ROUNDS and not (max(speed, default=0) >= LEAST_SPEED and max(work, default=0) >= LEAST_WORK):
            alone, ours = bare.run(ROUND_S), load.run(ROUND_S, served.cpu_s)
            speed.append(ours.rate / alone.rate)
            work.append(alone.cpu_us / ours.cpu_us)
    assert max(speed) >= LEAST_SPEED, f"packs reach {[round(ratio, 2) for ratio in speed]} of the bare loop's speed"
    # Where the machine is busy, others give way to whoever waits a lot; processor time tells nevertheless.
    assert max(work) >= LEAST_WORK, f"the bare loop takes {[round(ratio, 2) for ratio in work]} of the workers'"

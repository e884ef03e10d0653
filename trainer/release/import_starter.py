"""`python -m trainer.release.import_starter`: registers the starter as a model, before anybody has trained one."""

from __future__ import annotations

import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.clock import now_iso
from shared.connect import open_store_for
from shared.faces.labels import Label
from shared.faces.synthetic import draw_face
from shared.records.evaluation import Evaluation
from shared.records.model_card import STARTER_RUN, CardDataset, CardFile, InputStatistics, ModelCard
from shared.records.record import StoredModel
from shared.records.registry import WEIGHTS_FILE, Registry
from shared.runtime.settings import load_settings
from shared.store.base import Store, sha256_of
from trainer.release.card import LIBRARIES, headline, render_card
from trainer.release.export import describe_model, export_onnx, verify_parity
from trainer.training.model import SIDE, build_network, measure_cost
from trainer.training.starter import FOLDER, STARTER_NETWORK, load_starter, save_weights

REPORT: Final = "starter_report.json"
_PARITY_FACES: Final = 32


class StarterReport(StoredModel):
    """What `make pretrain` measured of the starter as a model.

    Attributes:
        measured_on: SHA-256 of the archive that it was evaluated on.
        counts: faces that trained it, chose its temperature, and evaluated it.
        temperature: its calibration.
        val_accuracy: on the faces that chose the temperature.
        val_loss: their calibrated log loss.
        evaluation: on faces that it has not seen.
        inputs: what its training faces look like.
    """

    measured_on: str
    counts: dict[str, int]
    temperature: float
    val_accuracy: float
    val_loss: float
    evaluation: Evaluation
    inputs: InputStatistics


def register_starter(store: Store, folder: Path = FOLDER) -> ModelCard:
    """Registers the starter as a version, unless it is one already, and returns its card.

    It has no variants: those are tried on real faces, which the starter does not bring along.

    Args:
        store: holds the registry.
        folder: of the starter's files.
    """
    starter = load_starter(folder)
    report = StarterReport.model_validate_json((folder / REPORT).read_bytes())
    run_id = f"{STARTER_RUN}{sha256_of(folder / 'starter.npz')[:12]}"
    registry = Registry(store)
    if (registered := registry.version_of_run(run_id)) is not None:
        return registry.card(registered)
    network = build_network(STARTER_NETWORK, dropout=0.0)
    network.load_state_dict(starter.weights)
    number = registry.claim(run_id)
    with tempfile.TemporaryDirectory(prefix="genderline-") as work:
        model = Path(work) / Registry.model_file()
        evaluation = report.evaluation
        metadata = describe_model(number, run_id, starter.card["archive_sha256"], evaluation)
        export_onnx(network, report.temperature, model, metadata)
        save_weights(starter.weights, Path(work) / WEIGHTS_FILE)
        parity = verify_parity(model, network, report.temperature, _draw_faces(_PARITY_FACES))
        cost = measure_cost(network)
        card = ModelCard(
            version=number,
            run_id=run_id,
            created=now_iso(),
            dataset=CardDataset(
                sha256=starter.card["archive_sha256"], name=starter.card["source"], counts=report.counts
            ),
            params=starter.card["recipe"] | {"network": STARTER_NETWORK},
            start=None,
            metrics=headline(report.val_accuracy, report.val_loss, evaluation),
            evaluation=evaluation,
            temperature=report.temperature,
            parity=parity,
            file=CardFile(sha256=sha256_of(model), size_bytes=model.stat().st_size),
            variants={},
            parameters=cost.parameters,
            multiply_adds=cost.multiply_adds,
            inputs=report.inputs,
            best_epoch=starter.card["recipe"]["epochs"],
            epochs=starter.card["recipe"]["epochs"],
            seconds=starter.card["seconds"],
            device="cpu",
            libraries={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        )
        registry.register(card, render_card(card), {path.name: path for path in Path(work).iterdir()})
    return card


def _draw_faces(count: int) -> NDArray[np.uint8]:
    """Draws faces to compare torch with ONNX Runtime on: uint8 (count, 128, 128)."""
    rng = np.random.default_rng(0)
    drawn = [draw_face(Label(30, index % 2, 0), rng) for index in range(count)]
    return np.stack([cv2.resize(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), (SIDE, SIDE)) for face in drawn])


def main() -> None:
    """Registers the starter in the store of the settings, and prints its version."""
    card = register_starter(open_store_for(load_settings()))
    print(json.dumps({"version": card.version}))  # noqa: T201 - for the command line, which started this


if __name__ == "__main__":
    main()

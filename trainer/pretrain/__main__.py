"""`python -m trainer.pretrain ARCHIVE`: makes the starter's weights from an archive of labelled faces.

First a teacher learns, in colour and with more layers than could be served. Then the network that is served learns
from the labels and from what the teacher says. Both save their state after every epoch; started again, the command
carries on.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from shared.archives.archive import ArchiveLimits
from shared.clock import now_iso
from shared.faces.decode import ImageLimits, configure_opencv
from shared.records.dataset import FACES_CSV, FACES_NPY, read_faces_csv
from shared.runtime.settings import Settings, load_settings
from shared.store.base import sha256_of
from trainer.data.dataset import Dataset
from trainer.data.ingest import ingest
from trainer.data.near_duplicates import dhash_all
from trainer.data.seen import SEEN
from trainer.pretrain.fit import Plan, SoftLoss, fit, hard_targets, planned_epochs, predict
from trainer.pretrain.teacher import build_teacher, decode_colour
from trainer.release.card import measure_inputs
from trainer.release.evaluate import evaluate
from trainer.release.import_starter import REPORT, StarterReport
from trainer.release.robustness import measure_robustness
from trainer.training.calibrate import calibrated_loss, fit_temperature
from trainer.training.device import DeviceFaces, choose_device, seeded
from trainer.training.model import FaceNetwork, build_network
from trainer.training.starter import FOLDER, STARTER_NETWORK, Starter, load_starter, save_starter
from trainer.training.train import predict_logits

_CHANGED_FACES: Final = 300
TAUGHT: Final = 0.7
"""Weight of what the teacher says beside what the label says."""
TEACHER: Final = Plan(epochs=36, rate=0.003, weight_decay=0.05, dropout=0.3, averaging=0.999, mixup=0.2, erasing=0.25)
STUDENT: Final = replace(TEACHER, rate=0.004, weight_decay=0.02, dropout=0.1)
RATE_FROM_EARLIER: Final = 0.002
"""The largest step where the network begins from an earlier starter: smaller, as it knows faces already."""


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--source", required=True, help="What the data is, by whom, and its licence: stands in every card.")
@click.option("--held-out", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Measured on as well.")
@click.option("--out", default=FOLDER, type=click.Path(file_okay=False, path_type=Path), help="Where the files go.")
@click.option("--teacher-epochs", default=TEACHER.epochs, show_default=True, help="0: no teacher, the labels alone.")
@click.option("--epochs", default=STUDENT.epochs, show_default=True, help="Of the network that is served.")
@click.option(
    "--begin",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of an earlier starter to go on from; random weights without it.",
)
@click.option(
    "--work",
    default=Path("build/pretrain"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps both networks' state.",
)
def main(
    archive: Path,
    source: str,
    held_out: Path | None,
    out: Path,
    teacher_epochs: int,
    epochs: int,
    begin: Path | None,
    work: Path,
) -> None:
    """Trains the starter on ARCHIVE, on nine tenths of its faces, and measures it on the rest."""
    configure_opencv()
    settings = load_settings()
    torch.set_num_threads(settings.threads or settings.cores)
    device = choose_device(settings.device)
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
        dataset = _decode(archive, Path(folder) / "archive", settings)
        targets, validation = hard_targets(dataset.targets), dataset.part("validation")
        limits = ArchiveLimits.from_settings(settings), ImageLimits.from_settings(settings)
        colour = torch.from_numpy(decode_colour(archive, dataset, *limits))
        teacher_plan = replace(TEACHER, epochs=teacher_epochs)
        plan = replace(STUDENT, epochs=epochs, rate=STUDENT.rate if begin is None else RATE_FROM_EARLIER)
        earlier = None if begin is None else load_starter(begin)
        seen = [] if begin is None else [np.load(begin / SEEN.name, allow_pickle=False)]
        figures: dict[str, float] = {}
        teacher = None
        if teacher_epochs:
            teacher = _teach(dataset, colour, targets, teacher_plan, device, work)
            said = predict(teacher.probabilities, _shrunk(teacher.network, colour, device), validation, device)
            figures["teacher_validation_accuracy"] = _accuracy(said[:, 0] - 0.5, dataset, validation)
        network = _learn(dataset, colour, targets, plan, earlier, teacher, device, work)
        figures |= _accuracies(network, dataset, validation, device, "validation_accuracy")
        measured, faces = dataset, validation
        if held_out is not None:
            measured = _decode(held_out, Path(folder) / "held-out", settings)
            faces = np.arange(len(measured.rows))
            figures |= _accuracies(network, measured, faces, device, f"accuracy_on_{held_out.stem}")
        card = {
            "name": "starter",
            "network": STARTER_NETWORK,
            "created": now_iso(),
            "source": source,
            "archive_sha256": dataset.sha256,
            "faces": len(dataset.rows),
            "recipe": asdict(plan) | {"taught": TAUGHT if teacher_epochs else 0.0},
            "planned_epochs": planned_epochs(work / "student.pt"),
            "teacher": asdict(teacher_plan) if teacher_epochs else None,
            "began_from": None if earlier is None else f"the starter of {earlier.card['created']}",
            "teacher_planned_epochs": planned_epochs(work / "teacher.pt") if teacher_epochs else [],
            "seconds": round(time.monotonic() - started, 1),
            "torch": version("torch"),
            "figures": {name: round(value, 4) for name, value in figures.items()},
        }
        report = _measure(network, dataset, measured, faces, device)
        seen.append(dhash_all(dataset.faces, np.arange(len(dataset.rows)))[:, 0])
        weights = {name: value.cpu() for name, value in network.state_dict().items()}
        save_starter(Starter(weights, card), out)
        np.save(out / SEEN.name, np.unique(np.concatenate(seen), axis=0), allow_pickle=False)
        (out / REPORT).write_text(json.dumps(report.as_dict()) + "\n", encoding="utf-8")
    click.echo("\n".join(f"{name}: {value:.4f}" for name, value in figures.items()))


def _teach(
    dataset: Dataset, colour: torch.Tensor, targets: NDArray[np.float32], plan: Plan, device: torch.device, work: Path
) -> SoftLoss:
    """Trains the teacher, and returns it."""
    with seeded(device, plan.seed, 1):
        model = SoftLoss(build_teacher(plan.dropout), plan.auxiliary).to(device)
    faces = _shrunk(model.network, colour, device)
    validation = dataset.part("validation")

    def on_epoch(epoch: int, model: SoftLoss, loss: float) -> None:
        said = predict(model.probabilities, faces, validation, device)[:, 0]
        _show("teacher", epoch, plan, loss, _accuracy(said - 0.5, dataset, validation))

    learned, checkpoint, origin = _learned(dataset), work / "teacher.pt", {"archive": dataset.sha256}
    return fit(model, faces, targets, learned, plan, device, checkpoint, on_epoch, origin=origin)


def _learn(
    dataset: Dataset,
    colour: torch.Tensor,
    targets: NDArray[np.float32],
    plan: Plan,
    earlier: Starter | None,
    teacher: SoftLoss | None,
    device: torch.device,
    work: Path,
) -> FaceNetwork:
    """Trains the network that is served, and returns it."""
    with seeded(device, plan.seed, 2):
        network = build_network(STARTER_NETWORK, dropout=plan.dropout)
        model = SoftLoss(network, plan.auxiliary, grey=True).to(device)
    if earlier is not None:
        network.load_state_dict(earlier.weights)
    source = DeviceFaces(dataset.faces, device)
    validation = dataset.part("validation")

    def on_epoch(epoch: int, model: SoftLoss, loss: float) -> None:
        said = predict(model.network, lambda at: source.take(at).float().div_(255), validation, device)
        _show("student", epoch, plan, loss, _accuracy(said, dataset, validation))

    faces, checkpoint = _shrunk(network, colour, device), work / "student.pt"
    origin = {
        "archive": dataset.sha256,
        "began_from": None if earlier is None else earlier.card["created"],
        "taught": 0.0 if teacher is None else TAUGHT,
    }
    return fit(
        *(model, faces, targets, _learned(dataset), plan, device, checkpoint, on_epoch),
        origin=origin,
        teacher=teacher,
        taught=TAUGHT,
    ).network


def _shrunk(
    network: FaceNetwork, colour: torch.Tensor, device: torch.device
) -> Callable[[NDArray[np.intp]], torch.Tensor]:
    """Returns a function that gives colour faces by their indices, float32 in [0, 1], at the side a network reads."""
    return lambda indices: network.shrink(colour[torch.from_numpy(indices)].to(device).float().div_(255))


def _learned(dataset: Dataset) -> NDArray[np.intp]:
    return np.sort(np.concatenate([dataset.part("train"), dataset.part("test")]))


def _accuracies(
    network: FaceNetwork, dataset: Dataset, indices: NDArray[np.intp], device: torch.device, name: str
) -> dict[str, float]:
    """Returns the accuracy of the network as it is, and of the mean over each face and its mirror image."""
    figures = {}
    for mirror, suffix in ((False, ""), (True, "_mirrored")):
        network.mirror = mirror
        logits = predict_logits(network, DeviceFaces(dataset.faces, device), indices)
        figures[name + suffix] = _accuracy(logits, dataset, indices)
    network.mirror = False
    return figures


def _measure(
    network: FaceNetwork, dataset: Dataset, measured: Dataset, faces: NDArray[np.intp], device: torch.device
) -> StarterReport:
    """Calibrates the network on the validation faces, and evaluates it on the faces of another dataset."""
    validation = dataset.part("validation")
    labels = dataset.labels[validation]
    logits = predict_logits(network, DeviceFaces(dataset.faces, device), validation)
    temperature = fit_temperature(logits, labels)

    def probabilities(pixels: NDArray[np.uint8], indices: NDArray[np.intp]) -> NDArray[np.float32]:
        exact = predict_logits(network, DeviceFaces(pixels, device), indices).astype(np.float64)
        return (1 / (1 + np.exp(-exact / temperature))).astype(np.float32)

    evaluation = evaluate(
        probabilities(measured.faces, faces),
        measured.labels[faces],
        np.array([measured.rows[index].age for index in faces]),
        np.array([measured.rows[index].ethnicity for index in faces]),
    )
    some = faces[:: max(1, len(faces) // _CHANGED_FACES)]
    robustness = measure_robustness(
        np.array(measured.faces[some]),
        measured.labels[some],
        lambda changed: probabilities(changed, np.arange(len(changed))) >= 0.5,
    )
    return StarterReport(
        measured_on=measured.sha256,
        counts={"train": len(_learned(dataset)), "validation": len(validation), "test": len(faces)},
        temperature=temperature,
        val_accuracy=_accuracy(logits, dataset, validation),
        val_loss=calibrated_loss(logits, labels),
        evaluation=evaluation.changed(robustness=robustness),
        inputs=measure_inputs(dataset.faces, _learned(dataset)),
    )


def _accuracy(scores: NDArray[np.float32], dataset: Dataset, indices: NDArray[np.intp]) -> float:
    """Returns the accuracy of scores of these faces that are positive where the face is named female."""
    return float(np.mean((scores >= 0) == (dataset.labels[indices] > 0)))


def _decode(archive: Path, folder: Path, settings: Settings) -> Dataset:
    ingest(
        archive,
        folder,
        ArchiveLimits.from_settings(settings),
        ImageLimits.from_settings(settings),
        threads=settings.threads or settings.cores,
    )
    with (folder / FACES_CSV).open(encoding="utf-8", newline="") as table:
        rows = read_faces_csv(table)
    return Dataset(sha256_of(archive), np.load(folder / FACES_NPY, mmap_mode="r"), rows)


def _show(name: str, epoch: int, plan: Plan, loss: float, accuracy: float) -> None:
    now = time.strftime("%H:%M:%S")
    click.echo(f"{now} {name}, epoch {epoch} of {plan.epochs}: loss {loss:.4f}, validation accuracy {accuracy:.4f}")


if __name__ == "__main__":
    sys.exit(main())

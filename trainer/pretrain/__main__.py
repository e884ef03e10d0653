"""`python -m trainer.pretrain ARCHIVE`: makes the starter's weights from an archive of labelled faces.

First a teacher learns, in colour, on larger faces and with more layers than could be served. Then the network that is
served learns from the labels and from what the teacher says of each face and its mirror image. Both save their state
after every epoch; started again, the command carries on.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
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
from trainer.pretrain.fit import Plan, SoftLoss, fit, hard_targets, is_finished, planned_epochs, predict
from trainer.pretrain.teacher import build_teacher, decode_colour
from trainer.release.card import measure_inputs
from trainer.release.evaluate import evaluate
from trainer.release.import_starter import REPORT, StarterReport
from trainer.release.robustness import measure_robustness
from trainer.training.calibrate import calibrated_loss, fit_temperature
from trainer.training.device import DeviceFaces, choose_device, seeded
from trainer.training.model import FaceNetwork, build_network
from trainer.training.starter import FOLDER, STARTER_NETWORK, Starter, Weights, load_starter, save_starter
from trainer.training.train import predict_logits

_CHANGED_FACES: Final = 300
TAUGHT: Final = 0.7
"""Weight of what the teacher says beside what the label says."""
SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the way from an earlier starter to what was learned: the one that validates best is kept."""
TEACHER: Final = Plan(
    epochs=18, rate=0.003, weight_decay=0.05, dropout=0.3, averaging=0.999, mixup=0.2, erasing=0.25, batch_size=64
)
STUDENT: Final = Plan(epochs=40, rate=0.004, weight_decay=0.02, dropout=0.1, averaging=0.999, mixup=0.0, erasing=0.0)
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
    help="The folder of an earlier starter to go on from, which teaches as well; random weights without it.",
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
        teacher = replace(TEACHER, epochs=teacher_epochs)
        student = replace(STUDENT, epochs=epochs, rate=STUDENT.rate if begin is None else RATE_FROM_EARLIER)
        earlier = None if begin is None else load_starter(begin)
        taught, of_teachers = targets, {}
        figures_file = work / "teachers.json"
        if teacher_epochs and is_finished(work / "student.pt", student) and figures_file.exists():
            of_teachers = json.loads(figures_file.read_text(encoding="utf-8"))  # nothing is left to be taught
        elif teacher_epochs:
            said = _teach(dataset, targets, archive, teacher, device, work, settings)
            everyone = {"teacher": said[:, 0].copy()}
            if earlier is not None:
                everyone["earlier_starter"] = _ask(earlier, dataset, device)
                said[:, 0] = (everyone["teacher"] + everyone["earlier_starter"]) / 2
                everyone["both"] = said[:, 0]
            of_teachers = {
                f"{name}_validation_accuracy": _accuracy(answers[validation] - 0.5, dataset, validation)
                for name, answers in everyone.items()
            }
            figures_file.write_text(json.dumps(of_teachers), encoding="utf-8")
            click.echo(f"teachers: {of_teachers}")
            taught = TAUGHT * said + (1 - TAUGHT) * targets
        network = _learn(dataset, taught, student, earlier, device, work).network
        share = 1.0 if earlier is None else _blend(network, earlier, dataset, validation, device)
        figures = of_teachers | _accuracies(network, dataset, validation, device, "validation_accuracy")
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
            "recipe": asdict(student) | {"taught": TAUGHT if teacher_epochs else 0.0},
            "planned_epochs": planned_epochs(work / "student.pt"),
            "teacher": asdict(teacher) if teacher_epochs else None,
            "began_from": None if earlier is None else f"the starter of {earlier.card['created']}",
            "share_of_what_was_learned": share,
            "teacher_planned_epochs": planned_epochs(work / "teacher.pt") if teacher_epochs else [],
            "seconds": round(time.monotonic() - started, 1),
            "torch": version("torch"),
            "figures": {name: round(value, 4) for name, value in figures.items()},
        }
        weights = {name: value.cpu() for name, value in network.state_dict().items()}
        save_starter(Starter(weights, card), out)
        everybody = dhash_all(dataset.faces, np.arange(len(dataset.rows)))
        np.save(out / SEEN.name, everybody, allow_pickle=False)
        report = _measure(network, dataset, measured, faces, device)
        (out / REPORT).write_text(json.dumps(report.as_dict()) + "\n", encoding="utf-8")
    click.echo("\n".join(f"{name}: {value:.4f}" for name, value in figures.items()))


def _teach(
    dataset: Dataset,
    targets: NDArray[np.float32],
    archive: Path,
    plan: Plan,
    device: torch.device,
    work: Path,
    settings: Settings,
) -> NDArray[np.float32]:
    """Trains the teacher, and returns what it says of all faces, as `hard_targets` has it."""
    colour = torch.from_numpy(decode_colour(archive, dataset.rows, ArchiveLimits.from_settings(settings)))

    def faces(indices: NDArray[np.intp]) -> torch.Tensor:
        return colour[torch.from_numpy(indices)].to(device).float().div_(255)

    validation = dataset.part("validation")

    def on_epoch(epoch: int, model: SoftLoss, loss: float) -> None:
        said = predict(model.probabilities, faces, validation, device)[:, 0]
        _show("teacher", epoch, plan, loss, _accuracy(said - 0.5, dataset, validation))

    with seeded(device, plan.seed, 1):
        model = SoftLoss(build_teacher(plan.dropout), plan.auxiliary).to(device)
    model = fit(model, faces, targets, _learned(dataset), plan, device, work / "teacher.pt", on_epoch)
    return predict(model.probabilities, faces, np.arange(len(dataset.rows)), device)


def _learn(
    dataset: Dataset,
    targets: NDArray[np.float32],
    plan: Plan,
    earlier: Starter | None,
    device: torch.device,
    work: Path,
) -> SoftLoss:
    """Trains the network that is served, and returns it."""
    with seeded(device, plan.seed, 2):
        model = SoftLoss(build_network(STARTER_NETWORK, dropout=plan.dropout), plan.auxiliary).to(device)
    if earlier is not None:
        model.network.load_state_dict(earlier.weights)
    source = DeviceFaces(dataset.faces, device)
    validation = dataset.part("validation")

    def on_epoch(epoch: int, model: SoftLoss, loss: float) -> None:
        said = predict(model.network, lambda at: source.take(at).float().div_(255), validation, device)
        _show("student", epoch, plan, loss, _accuracy(said, dataset, validation))

    def faces(indices: NDArray[np.intp]) -> torch.Tensor:
        return model.network.shrink(source.take(indices).float().div_(255))

    return fit(model, faces, targets, _learned(dataset), plan, device, work / "student.pt", on_epoch)


def _blend(
    network: FaceNetwork, earlier: Starter, dataset: Dataset, validation: NDArray[np.intp], device: torch.device
) -> float:
    """Moves the network back towards the earlier starter where that validates better. Returns what is left of the way.

    Weights between two that lie near each other are often better than both (Wortsman et al., "Robust fine-tuning of
    zero-shot models", 2022).
    """
    learned = {name: value.cpu().clone() for name, value in network.state_dict().items()}
    losses = {}
    for share in SHARES:
        network.load_state_dict(_between(earlier.weights, learned, share))
        logits = predict_logits(network, DeviceFaces(dataset.faces, device), validation)
        losses[share] = calibrated_loss(logits, dataset.labels[validation])
        accuracy = _accuracy(logits, dataset, validation)
        click.echo(
            f"{share:.0%} of the way from the earlier starter: loss {losses[share]:.4f}, accuracy {accuracy:.4f}"
        )
    best = min(losses, key=lambda share: losses[share])
    network.load_state_dict(_between(earlier.weights, learned, best))
    return best


def _between(start: Weights, end: Weights, share: float) -> Weights:
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def _ask(starter: Starter, dataset: Dataset, device: torch.device) -> NDArray[np.float32]:
    """Returns the probabilities of female that an earlier starter gives all faces, with their mirror images."""
    network = build_network(STARTER_NETWORK, dropout=0.0, mirror=True).to(device)
    network.load_state_dict(starter.weights)
    logits = predict_logits(network, DeviceFaces(dataset.faces, device), np.arange(len(dataset.rows)))
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


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

"""`python -m trainer.pretrain ARCHIVE`: makes the starter's weights from an archive of labelled faces."""

from __future__ import annotations

import sys
import tempfile
import time
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
from shared.params import TrainingParams
from shared.records.dataset import FACES_CSV, FACES_NPY, read_faces_csv
from shared.records.runs import EpochRow
from shared.runtime.settings import load_settings
from shared.store.base import sha256_of
from trainer.data.dataset import Dataset
from trainer.data.ingest import ingest
from trainer.data.near_duplicates import dhash
from trainer.data.seen import SEEN
from trainer.training.device import DeviceFaces, choose_device
from trainer.training.model import build_network
from trainer.training.process_group import ProcessGroup
from trainer.training.recipe import Recipe, decide
from trainer.training.starter import FOLDER, STARTER_NETWORK, Starter, save_starter
from trainer.training.train import Hooks, Progress, TrainingJob, predict_logits, train

_HASHED_AT_ONCE: Final = 64
PARAMS: Final = TrainingParams(
    init="scratch", network=STARTER_NETWORK, epochs=16, batch_size=64, dropout=0.3, averaging=0.999, patience=1000
)
"""Many faces from many people: less dropout and a longer average than for one user's dataset."""


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--source", required=True, help="What the data is, by whom, and its licence: stands in every card.")
@click.option("--held-out", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Measured on as well.")
@click.option("--out", default=FOLDER, type=click.Path(file_okay=False, path_type=Path), help="Where the files go.")
def main(archive: Path, source: str, held_out: Path | None, out: Path) -> None:
    """Trains the starter on ARCHIVE, on nine tenths of its faces, and measures it on the rest."""
    configure_opencv()
    settings = load_settings()
    torch.set_num_threads(settings.threads or settings.cores)
    device = choose_device(settings.device)
    with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
        dataset = _decode(archive, Path(folder) / "archive")
        learned = np.sort(np.concatenate([dataset.part("train"), dataset.part("test")]))
        recipe = decide(
            PARAMS, faces=len(learned), device=device, throughput=lambda _: 0.0, starter_helps=lambda: False
        )
        started = time.monotonic()
        validation = dataset.part("validation")
        trained = train(
            TrainingJob(dataset.faces, dataset.targets, learned, validation, recipe, dataset.sha256),
            device=device,
            group=ProcessGroup(),
            hooks=Hooks(on_step=_show_step, on_epoch=_show_epoch),
        )
        figures = {"validation_accuracy": _accuracy(trained.weights, recipe, dataset, validation, device)}
        if held_out is not None:
            other = _decode(held_out, Path(folder) / "held-out")
            everything = np.arange(len(other.rows))
            figures[f"accuracy_on_{held_out.stem}"] = _accuracy(trained.weights, recipe, other, everything, device)
        card = {
            "name": "starter",
            "network": recipe.network,
            "created": now_iso(),
            "source": source,
            "archive_sha256": dataset.sha256,
            "faces": len(dataset.rows),
            "recipe": recipe.as_dict(),
            "best_epoch": trained.best_epoch,
            "seconds": round(time.monotonic() - started, 1),
            "torch": version("torch"),
            "figures": {name: round(value, 4) for name, value in figures.items()},
        }
        save_starter(Starter(trained.weights, card), out)
        np.save(out / SEEN.name, _hashes(dataset.faces), allow_pickle=False)
    click.echo("\n".join(f"{name}: {value:.4f}" for name, value in figures.items()))


def _decode(archive: Path, folder: Path) -> Dataset:
    settings = load_settings()
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


def _accuracy(
    weights: dict[str, torch.Tensor],
    recipe: Recipe,
    dataset: Dataset,
    indices: NDArray[np.intp],
    device: torch.device,
) -> float:
    network = build_network(recipe.network, dropout=0.0, mirror=recipe.mirror).to(device)
    network.load_state_dict(weights)
    logits = predict_logits(network, DeviceFaces(dataset.faces, device), indices)
    return float(np.mean((logits >= 0) == (dataset.labels[indices] > 0)))


def _hashes(faces: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.concatenate(
        [dhash(np.array(faces[start : start + _HASHED_AT_ONCE])) for start in range(0, len(faces), _HASHED_AT_ONCE)]
    )


def _show_step(progress: Progress) -> None:
    click.echo(
        f"\repoch {progress.epoch} of {progress.epochs}, {progress.images_per_second:,.0f} faces/s, "
        f"{progress.eta_s:,.0f} s left ",
        nl=False,
        err=True,
    )


def _show_epoch(row: EpochRow) -> None:
    click.echo(f"\nepoch {row.epoch}: validation accuracy {row.val_accuracy:.4f}", err=True)


if __name__ == "__main__":
    sys.exit(main())

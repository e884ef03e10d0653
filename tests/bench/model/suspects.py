"""How many wrong labels are among the first suspects: `python -m tests.bench.model.suspects faces.zip`.

Of each number of faces, 5 % get the wrong label at random. A run of the service learns from them and ranks all faces.
Its bound is the same run on the right labels, asked to judge the wrong ones: what ranking by such a classifier can find
at best, since no wrong label has misled it.
"""

from __future__ import annotations

import math
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from shared.params import TrainingParams
from shared.runtime.settings import load_settings
from tests.bench.model.recipe import decoded
from trainer.data.dataset import Dataset
from trainer.release.features import embed_faces
from trainer.release.out_of_fold import predict_out_of_fold
from trainer.training.calibrate import fit_temperature
from trainer.training.device import DeviceFaces, choose_device
from trainer.training.model import build_network
from trainer.training.process_group import ProcessGroup
from trainer.training.recipe import decide
from trainer.training.starter import starter_helps
from trainer.training.train import Hooks, TrainingJob, predict_logits, train

FLIPPED: Final = 0.05
FIRST: Final = 0.07
"""The share of the faces that somebody looks at."""
DRAWS: Final = 200
"""Of wrong labels, for the bound, which is their mean."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a run makes of a dataset.

    Attributes:
        accuracy: of the network on the test faces, by the right labels.
        out_of_fold: likewise, on all faces, of the probabilities that rank suspects.
        probabilities: those, of female, float32 (N,).
    """

    accuracy: float
    out_of_fold: float
    probabilities: NDArray[np.float32]


def choose(archive: Path, target: Path, count: int, random: np.random.Generator) -> None:
    """Writes an archive of some of the faces of another one, 5 % of them with the wrong gender in their names."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as chosen:
        names = sorted(random.choice(sorted(source.namelist()), count, replace=False).tolist())
        labels = np.array([int(name.split("_")[1]) for name in names], np.uint8)
        for name, right, given in zip(names, labels, flip(labels, random), strict=True):
            age, _, rest = name.split("_", 2)
            chosen.writestr(f"{age}_{given}_{rest[0]}_{right}{rest[1:]}", source.read(name))


def flip(labels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the labels, 5 % of them wrong."""
    flipped = labels.copy()
    wrong = random.choice(len(labels), round(FLIPPED * len(labels)), replace=False)
    flipped[wrong] = 1 - flipped[wrong]
    return flipped


def judge(dataset: Dataset, truth: NDArray[np.uint8], device: torch.device) -> Judged:
    """Learns from a dataset as a run with default parameters does."""
    recipe = decide(
        TrainingParams(),
        faces=len(dataset.part("train")),
        device=device,
        throughput=lambda _: math.inf,
        starter_helps=lambda: starter_helps(dataset, device),
    )
    trained = train(
        TrainingJob.from_dataset(dataset, recipe),
        device=device,
        group=ProcessGroup(),
        hooks=Hooks(checkpoint_s=math.inf),
    )
    network = build_network(recipe.network, dropout=recipe.dropout, mirror=recipe.mirror)
    network.load_state_dict(trained.weights)
    network.eval()
    logits = predict_logits(network.to(device), DeviceFaces(dataset.faces, device), np.arange(len(dataset.rows)))
    validation, test = dataset.part("validation"), dataset.part("test")
    temperature = fit_temperature(logits[validation], dataset.labels[validation])
    probabilities = (1 / (1 + np.exp(-logits.astype(np.float64) / temperature))).astype(np.float32)
    out_of_fold = predict_out_of_fold(dataset, probabilities, embed_faces(dataset.faces, device))
    return Judged(
        accuracy=float(np.mean((probabilities[test] >= 0.5) == (truth[test] == 1))),
        out_of_fold=float(np.mean((out_of_fold >= 0.5) == (truth == 1))),
        probabilities=out_of_fold,
    )


def share_found(labels: NDArray[np.uint8], truth: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> float:
    """Returns the share of the wrong labels among the first suspects."""
    confidence = np.where(labels == 1, probabilities, 1 - probabilities)
    first = np.argsort(confidence, kind="stable")[: round(FIRST * len(labels))]
    return float((labels != truth)[first].sum() / (labels != truth).sum())


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--faces", multiple=True, type=click.IntRange(min=100), default=(1000, 3000), show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Choices of faces and wrong labels, for each number.")
def main(archive: Path, faces: tuple[int, ...], seeds: int) -> None:
    """Prints a row for each number of faces."""
    settings = load_settings()
    torch.set_num_threads(settings.threads or settings.cores)
    device = choose_device("auto")
    sys.stdout.write(
        f"| faces | wrong labels among the first {FIRST:.0%} | at best | network right | ranking right | at best |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "faces.zip"
        for count in faces:
            for seed in range(seeds):
                random = np.random.default_rng((count, seed))
                choose(archive, target, count, random)
                with decoded(target) as dataset:
                    truth = np.array([int(row.name.split("_")[3]) for row in dataset.rows], np.uint8)
                    found = judge(dataset, truth, device)
                    given = dataset.labels
                    rows = [replace(row, gender=int(right)) for row, right in zip(dataset.rows, truth, strict=True)]
                    bound = judge(replace(dataset, rows=rows), truth, device)
                best = [share_found(flip(truth, random), truth, bound.probabilities) for _ in range(DRAWS)]
                shares = (found.accuracy, found.out_of_fold, bound.out_of_fold)
                sys.stdout.write(
                    f"| {len(truth):,} | {share_found(given, truth, found.probabilities):.0%} "
                    f"| {np.mean(best):.0%} | {' | '.join(f'{share:.1%}' for share in shares)} |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What each ingredient of the recipe is worth: `make bench-recipe DATASET=faces.zip` trains with and without it.

Every row is trained from the same split by the same code as a run of the service, seed by seed, and measured on the
same held-out fifth. Rows that are done are kept in a file, so that a long evening may be interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from shared.archives.archive import ArchiveLimits
from shared.faces.decode import ImageLimits
from shared.faces.labels import Label
from shared.params import TrainingParams
from shared.records.dataset import FACES_CSV, FACES_NPY, SPLITS, read_faces_csv
from shared.records.runs import EpochRow
from shared.runtime.settings import load_settings
from tests.bench.model.recipe_variants import varied
from trainer.data.dataset import Dataset
from trainer.data.ingest import ingest
from trainer.data.split import split
from trainer.release.evaluate import evaluate
from trainer.training.calibrate import fit_temperature
from trainer.training.device import DeviceFaces, choose_device
from trainer.training.loss import Teacher
from trainer.training.model import FaceNetwork, build_network, measure_cost
from trainer.training.process_group import ProcessGroup
from trainer.training.recipe import Recipe, decide
from trainer.training.starter import load_starter
from trainer.training.throughput import measure_throughput
from trainer.training.train import Hooks, TrainingJob, predict_logits, train

PLAIN: Final[dict[str, Any]] = {
    "network": "reference",
    "schedule": "constant",
    "learning_rate": 0.0005,
    "weight_decay": 0.0,
    "auxiliary": 0.0,
    "averaging": 0.0,
    "patience": 5,
}
"""The `reference` without our recipe. A constant step has no end to wait for: it stops soon after its best epoch."""
CURVE: Final = ("the starter, as it is", "… from the starter", "the default")
"""The rows of the learning curve."""
PLAIN_ROW: Final = "`reference`, plain"
"""What all others are compared to."""
AS_IT_IS: Final = "the starter, as it is"
"""Trains nothing; the validation faces give the temperature."""
FEWER_LAYERS: Final = ((16, 32, 64, 112, 160), (0, 0, 1, 1))
"""Widths and blocks of 30 M multiply-adds."""

ROWS: Final[dict[str, dict[str, Any]]] = {
    "the default": {},
    AS_IT_IS: {"init": "starter"},
    "… from the starter": {"init": "starter"},
    "… stopping early": {"patience": 12},
    "… in batches of 8": {"batch_size": 8},
    "… its epoch by the plain loss": {"temperature": 1.0},
    "… with fewer layers": {"layers": FEWER_LAYERS},
    "… in float32": {"precision": "float32"},
    "… with weight decay": {"weight_decay": 0.05},
    "… with network `small`": {"network": "small"},
    "… with network `large`": {"network": "large"},
    "… without age and ethnicity": {"auxiliary": 0.0},
    "… without augmentation": {"augment": False},
    "… half the step": {"learning_rate": 0.002},
    "… a quarter of the step": {"learning_rate": 0.001},
    "… a constant step": {"schedule": "constant", "learning_rate": 0.001},
    "… without averaged weights": {"averaging": 0.0},
    "… without the mirror image": {"mirror": False},
    "… half the epochs": {"epochs": 0.5},
    "… twice the epochs": {"epochs": 2.0},
    "… with erased squares": {"changes": "erasing"},
    "… with mixed faces": {"mixup": True},
    "… with erased squares and mixed faces": {"changes": "erasing", "mixup": True},
    "… with TrivialAugment": {"changes": "trivial"},
    "… with branches": {"branches": True},
    "… with a teacher": {"teacher": "… with network `large`"},
    "… with a teacher, without the mirror image": {"teacher": "… with network `large`", "mirror": False},
    "… from the starter, with erased squares": {"init": "starter", "changes": "erasing"},
    "… from the starter, with mixed faces": {"init": "starter", "mixup": True},
    PLAIN_ROW: PLAIN | {"augment": False},
    "`reference`, augmented": PLAIN,
    "`reference`, by the default recipe": {"network": "reference", "learning_rate": 0.001, "mirror": True},
}
"""What each row changes: parameters, where epochs are relative to what `auto` takes, and what no parameter does: the
`temperature` of the loss that says which epoch is best, the `layers` of `compact`, its convolutions as `branches`, the
random `changes` of faces, `mixup`, and a `teacher`: the row that it is, with the first seed."""
_NO_PARAMETERS: Final = {"temperature", "layers", "branches", "changes", "mixup", "teacher"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row with one seed.

    Attributes:
        recipe: what was done.
        accuracy: on the held-out part.
        balanced_accuracy: the mean of both genders' recall on it.
        unmirrored: likewise, of the same weights on the faces alone.
        ece: likewise, calibrated.
        multiply_adds: of one face.
        seconds: training, validation included; see `seconds_on`.
        curve: (seconds since the start, validation accuracy) after each epoch.
        ece_by_chance: as of `Evaluation`.
    """

    row: str
    seed: int
    dataset: str
    recipe: dict[str, Any]
    accuracy: float
    balanced_accuracy: float
    unmirrored: float
    ece: float
    multiply_adds: int
    seconds: float
    curve: list[tuple[float, float]]
    ece_by_chance: float | None = None


def recipe_of(row: str, seed: int, faces: int, device: torch.device) -> Recipe:
    """Returns what a row does with so many training faces."""
    changes = {name: value for name, value in ROWS[row].items() if name not in _NO_PARAMETERS}
    default = decide(
        TrainingParams(init="scratch"),
        faces=faces,
        device=device,
        throughput=lambda _: math.inf,
        starter_helps=lambda: False,
    )
    if "epochs" in changes:
        changes["epochs"] = max(1, round(default.epochs * changes["epochs"]))
    return decide(
        TrainingParams.model_validate({"seed": seed, "init": "scratch"} | changes),
        faces=faces,
        device=device,
        throughput=lambda recipe: measure_throughput(recipe, device),
        starter_helps=lambda: False,
    )


def seconds_on(device: torch.device) -> float:
    """Returns a clock: on a CPU of the processor time of one of this process's threads, so that others do not count."""
    return time.monotonic() if device.type == "cuda" else time.process_time() / torch.get_num_threads()


def train_row(
    row: str,
    seed: int,
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    progress: Progress,
    teacher: Teacher | None = None,
) -> tuple[FaceNetwork, list[tuple[float, float]]]:
    """Trains one row with one seed. Returns the network, and its curve as in `Outcome`."""
    curve: list[tuple[float, float]] = []
    started = seconds_on(device)

    def on_epoch(epoch: EpochRow) -> None:
        progress.update(task, completed=epoch.epoch)
        curve.append((seconds_on(device) - started, epoch.val_accuracy))

    task = progress.add_task(f"{row}, seed {seed}", total=recipe.epochs)
    with varied(ROWS[row]):
        network = build_network(recipe.network, dropout=recipe.dropout, mirror=recipe.mirror)
        if row == AS_IT_IS:
            network.load_state_dict(load_starter().weights)
        else:
            hooks = Hooks(
                on_step=lambda at: progress.update(task, completed=at.epoch - 1 + at.step / at.steps),
                on_epoch=on_epoch,
                checkpoint_s=math.inf,
            )
            job = TrainingJob.from_dataset(dataset, recipe, teacher=teacher)
            network.load_state_dict(train(job, device=device, group=ProcessGroup(), hooks=hooks).weights)
    progress.remove_task(task)
    return network.to(device).eval(), curve


def measure(
    row: str,
    seed: int,
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    progress: Progress,
    teacher: Teacher | None = None,
) -> Outcome:
    """Trains one row with one seed, and measures it."""
    network, curve = train_row(row, seed, recipe, dataset, device, progress, teacher)
    _, validation, held_out = (dataset.part(part) for part in SPLITS)
    source = DeviceFaces(dataset.faces, device)
    for_calibration, logits = (predict_logits(network, source, part) for part in (validation, held_out))
    temperature = fit_temperature(for_calibration, dataset.labels[validation])
    figures = evaluate(
        1 / (1 + np.exp(-logits / np.float32(temperature))),
        dataset.labels[held_out],
        np.array([dataset.rows[index].age for index in held_out]),
        np.array([dataset.rows[index].ethnicity for index in held_out]),
    )
    network.mirror = False
    unmirrored = predict_logits(network, source, held_out)
    with varied(ROWS[row] | {"branches": False}):  # as it would be served
        served = build_network(recipe.network, dropout=recipe.dropout, mirror=recipe.mirror)
    return Outcome(
        row=row,
        seed=seed,
        dataset=dataset.sha256,
        recipe=recipe.as_dict(),
        accuracy=figures.accuracy,
        balanced_accuracy=figures.balanced_accuracy,
        unmirrored=float(np.mean((unmirrored >= 0) == (dataset.labels[held_out] > 0))),
        ece=figures.ece,
        multiply_adds=measure_cost(served).multiply_adds,
        seconds=curve[-1][0] if curve else 0.0,
        curve=curve,
        ece_by_chance=figures.ece_by_chance,
    )


def table(outcomes: list[Outcome]) -> str:
    """Returns what came of it as Markdown."""
    lines = [
        "| recipe | accuracy | each seed | balanced | not mirrored | ECE (by chance) | multiply-adds | seconds "
        "| best reference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    plain = [outcome for outcome in outcomes if outcome.row == PLAIN_ROW]
    target = max((max(accuracy for _, accuracy in outcome.curve) for outcome in plain), default=None)
    for row in ROWS:
        done = sorted((outcome for outcome in outcomes if outcome.row == row), key=lambda outcome: outcome.seed)
        if not done:
            continue
        reached = [_reached(outcome, target) for outcome in done]
        times = [seconds for seconds in reached if seconds is not None]
        first = f"{statistics.mean(times):.0f} s" if times and len(times) == len(done) else "never"
        lines.append(
            f"| {row} | {statistics.mean(outcome.accuracy for outcome in done):.1%} "
            f"| {', '.join(f'{outcome.accuracy:.1%}' for outcome in done)} "
            f"| {statistics.mean(outcome.balanced_accuracy for outcome in done):.1%} "
            f"| {statistics.mean(outcome.unmirrored for outcome in done):.1%} "
            f"| {statistics.mean(outcome.ece for outcome in done):.3f} "
            f"({statistics.mean(outcome.ece_by_chance or math.nan for outcome in done):.3f}) "
            f"| {done[0].multiply_adds / 1e6:.0f} M "
            f"| {statistics.mean(outcome.seconds for outcome in done):.0f} | {first if target else ''} |"
        )
    return "\n".join(lines)


def _reached(outcome: Outcome, target: float | None) -> float | None:
    """Returns after how many seconds the validation accuracy was as good as `target`."""
    return next((at for at, accuracy in outcome.curve if target is not None and accuracy >= target), None)


def take_few(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Returns `count` of the faces that are not held out, split as if there were no others, and all that are.

    The held-out part stays the same for every count and seed. A tenth of the chosen faces validates, as ever; the fifth
    that would be held out of them trains as well.
    """
    held_out = dataset.part("test")
    others = np.setdiff1d(np.arange(len(dataset.rows)), held_out)
    chosen = np.sort(np.random.default_rng((count, seed)).permutation(others)[:count])
    parts = split(
        [Label(row.age, row.gender, row.ethnicity) for row in (dataset.rows[index] for index in chosen)],
        [hashlib.sha256(dataset.faces[index].tobytes()).digest() for index in chosen],
        np.arange(count),
    )
    kept = np.concatenate([chosen, held_out])
    roles = ["train" if part == "test" else part for part in parts] + ["test"] * len(held_out)
    rows = [replace(dataset.rows[index], split=role) for index, role in zip(kept, roles, strict=True)]
    return Dataset(f"{dataset.sha256}-{count}", np.array(dataset.faces[kept]), rows)


def learning_curve(outcomes: list[Outcome], sha256: str) -> str:
    """Returns the accuracy by the number of faces as Markdown, and the points that twice the faces are worth.

    Args:
        outcomes: of the archive and of parts of it.
        sha256: of the archive.
    """
    sizes = sorted({_size(outcome) for outcome in outcomes if outcome.dataset != sha256})
    names = [name for name in CURVE if any(outcome.row == name for outcome in outcomes)]
    lines = [f"| faces | {' | '.join(names)} |", "| ---: |" + " --- |" * len(names)]
    for size in sizes:
        cells = []
        for name in names:
            found = [outcome.accuracy for outcome in outcomes if outcome.row == name and _size(outcome) == size]
            cells.append(f"{statistics.mean(found):.1%} ({len(found)} seeds)" if found else "")
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    for name in names:
        points = [(math.log2(_size(o)), o.accuracy) for o in outcomes if o.row == name and o.dataset != sha256]
        if len({x for x, _ in points}) > 1:
            slope = statistics.linear_regression(*zip(*points, strict=True)).slope
            lines.append(f"\n{name}: with twice the faces {100 * slope:+.1f} points")
    return "\n".join(lines)


def _size(outcome: Outcome) -> int:
    _, _, count = outcome.dataset.partition("-")
    return int(count or 0)


@contextmanager
def decoded(archive: Path) -> Iterator[Dataset]:
    """Decodes an archive as a run of the service does, and opens it."""
    settings = load_settings()
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
        ingest(
            archive,
            Path(folder),
            ArchiveLimits.from_settings(settings),
            ImageLimits.from_settings(settings),
            threads=settings.cores,
            archive_sha256=sha256,
            on_progress=lambda *_: None,
        )
        with (Path(folder) / FACES_CSV).open(encoding="utf-8", newline="") as table_file:
            rows = read_faces_csv(table_file)
        yield Dataset(sha256, np.load(Path(folder) / FACES_NPY, mmap_mode="r"), rows)


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--faces", multiple=True, type=click.IntRange(min=20), help="Learn from so many of them only; repeatable."
)
@click.option("--seeds", default=2, show_default=True, help="Seeds of each row.")
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Rows to train; all without it.")
@click.option(
    "--results",
    default=Path("build/recipe.jsonl"),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keeps what is done; rows in it are not trained again.",
)
def main(archive: Path, faces: tuple[int, ...], seeds: int, only: tuple[str, ...], results: Path) -> None:
    """Trains every row of the table on ARCHIVE, and prints what it is worth."""
    settings = load_settings()
    torch.set_num_threads(settings.threads or settings.cores)
    device = choose_device("auto")
    console = Console()
    results.parent.mkdir(parents=True, exist_ok=True)
    results.touch()
    where = f"{os.cpu_count()} cores" if device.type == "cpu" else torch.cuda.get_device_name(device)
    with (
        decoded(archive) as whole,
        Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console) as progress,
    ):
        known = [Outcome(**json.loads(line)) for line in results.read_text().splitlines()]
        known = [outcome for outcome in known if outcome.dataset.startswith(whole.sha256)]
        teachers: dict[tuple[str, str], Teacher] = {}
        for count in faces or (None,):
            outcomes: list[Outcome] = []
            for seed in range(seeds):
                dataset = whole if count is None else take_few(whole, count, seed)
                for row in only or ROWS:
                    recipe = recipe_of(row, seed, len(dataset.part("train")), device)
                    done = _find(known, row, seed, recipe, dataset)
                    if done is None:
                        teacher = None
                        if (taught_by := ROWS[row].get("teacher")) is not None:
                            key = (taught_by, dataset.sha256)
                            if key not in teachers:
                                teachers[key] = _train_teacher(taught_by, dataset, device, progress)
                            teacher = teachers[key]
                        done = measure(row, seed, recipe, dataset, device, progress, teacher)
                        known.append(done)
                        with results.open("a") as file:
                            file.write(json.dumps(asdict(done)) + "\n")
                        progress.console.print(f"{row}, seed {seed}: {done.accuracy:.1%}")
                    outcomes.append(done)
            counts = {part: len(dataset.part(part)) for part in SPLITS}
            console.print(f"{archive.name}: {counts}, {where}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
            print(table(outcomes))  # noqa: T201 - Markdown, whole lines
    if faces:
        print(learning_curve(known, whole.sha256))  # noqa: T201 - likewise


def _train_teacher(row: str, dataset: Dataset, device: torch.device, progress: Progress) -> Teacher:
    recipe = recipe_of(row, 0, len(dataset.part("train")), device)
    network, _ = train_row(row, 0, recipe, dataset, device, progress)
    return Teacher(recipe.network, {name: value.cpu() for name, value in network.state_dict().items()})


def _find(known: list[Outcome], row: str, seed: int, recipe: Recipe, dataset: Dataset) -> Outcome | None:
    """Returns what is known of a row with a seed, from the newest on."""
    wanted = (row, seed, recipe.as_dict(), dataset.sha256)
    return next((o for o in reversed(known) if (o.row, o.seed, o.recipe, o.dataset) == wanted), None)


if __name__ == "__main__":
    main()

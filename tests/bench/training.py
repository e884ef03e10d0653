"""Faces a second in training, against a bare loop: the same steps on tensors that lie on the device, and no more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from shared.faces.decode import SIZE
from shared.params import TrainingParams
from shared.runtime.settings import Settings
from tests.bench.bare import Lap
from tests.bench.rows import Pairs, Row, at_least
from tests.bench.stage import Stage

if TYPE_CHECKING:  # no other benchmark needs torch
    import torch

    from shared.records.runs import EpochRow
    from trainer.training.recipe import Recipe
from trainer.training.train import Progress

FACES = 2048
"""In a lap of the bare loop, and in an epoch of the default recipe."""
BARE_STEPS = 32
"""In a lap of the bare loop at least."""


def training(stage: Stage) -> list[Row]:
    """Epochs of the default recipe, which keep an order, seeds, progress and checkpoints, against the bare loop."""
    return [measured(TrainingParams(epochs=1), faces=FACES, laps=2 if stage.quick else 5)]


def measured(
    params: TrainingParams, *, faces: int, laps: int, while_training: AbstractContextManager[object] | None = None
) -> Row:
    """Returns how epochs compare with the bare loop.

    Args:
        params: of the run, of one epoch.
        faces: in an epoch.
        laps: how many of either.
        while_training: entered for the steps of each epoch.
    """
    import torch

    from trainer.training.device import choose_device
    from trainer.training.recipe import decide

    torch.set_num_threads(Settings().cores)
    device = choose_device("auto")
    recipe = decide(params, faces=faces, device=device, throughput=lambda _: math.inf, starter_helps=lambda: False)
    bare = _bare_loop(recipe, device, max(FACES, BARE_STEPS * recipe.batch_size))
    bare()
    pairs = Pairs([], [])
    for _ in range(laps):
        pairs.bare.append(bare())
        pairs.ours.append(_epoch(recipe, device, faces, while_training or nullcontext()))
    figure = pairs.figure.replace("images/s", "faces/s")
    what = f"training, network {recipe.network}, batches of {recipe.batch_size}, {device.type}"
    return at_least(what, figure, pairs.ratio, 0.9)


def _epoch(recipe: Recipe, device: torch.device, faces: int, meanwhile: AbstractContextManager[object]) -> Lap:
    """Trains for an epoch, as the trainer does; its validation and the time to build the network do not count."""
    from trainer.data.dataset import Targets
    from trainer.training.process_group import ProcessGroup
    from trainer.training.train import Hooks, TrainingJob, train

    rows: list[EpochRow] = []
    zeros = np.zeros(faces + 1, np.uint8)
    open_meanwhile = ExitStack()

    def on_step(progress: Progress) -> None:
        if progress.step == 1:
            open_meanwhile.enter_context(meanwhile)

    def on_epoch(row: EpochRow) -> None:
        open_meanwhile.close()
        rows.append(row)

    job = TrainingJob(
        np.zeros((faces + 1, SIZE, SIZE), np.uint8),
        Targets(zeros, zeros, zeros),
        training=np.arange(faces),
        validation=np.array([faces]),
        recipe=recipe,
        dataset_sha256="",
    )
    train(job, device=device, group=ProcessGroup(), hooks=Hooks(on_step=on_step, on_epoch=on_epoch))
    return Lap(faces, faces / rows[0].images_per_second, 0.0)


def _bare_loop(recipe: Recipe, device: torch.device, count: int) -> Callable[[], Lap]:
    """Returns what runs a lap of the bare loop; network and optimizer stay the same from lap to lap."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from trainer.training.loss import MultiTaskLoss
    from trainer.training.model import build_network
    from trainer.training.step import build_optimizer, forward

    network = build_network(recipe.network, dropout=recipe.dropout)
    model = MultiTaskLoss(network, recipe.auxiliary).to(device)
    optimizer = build_optimizer(model, recipe)
    average = AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    faces = torch.zeros((count, 1, SIZE, SIZE), dtype=torch.uint8, device=device)
    targets = torch.zeros((count, 3), dtype=torch.int64, device=device)
    generator = torch.Generator(device)

    def lap() -> Lap:
        started = time.perf_counter()
        for start in range(0, count, recipe.batch_size):
            batch = slice(start, start + recipe.batch_size)
            loss, _, _ = forward(model, network, recipe, faces[batch], targets[batch], generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average.update_parameters(network)
        loss.item()  # waits until the device is done
        return Lap(count, time.perf_counter() - started, 0.0)

    return lap

"""Training from soft targets: for each face the probabilities of its gender, age band and ethnicity.

A teacher predicts each face as the student sees it, changed at random. The student learns the teacher's function, and
not only its predictions for faces that the teacher has memorised (Beyer et al., "Knowledge distillation: a good teacher
is patient and consistent", 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.v2.functional import erase

from shared.faces.labels import ETHNICITIES
from shared.records.dataset import AGE_BANDS
from trainer.data.dataset import Targets
from trainer.pretrain.teacher import to_grey
from trainer.training.augment import augment
from trainer.training.device import computes_bfloat16, seeded
from trainer.training.model import FaceNetwork

CLASSES: Final = (1, len(AGE_BANDS), len(ETHNICITIES))
"""Columns of the targets: female, the age bands, the ethnicities."""
_PREDICTED_AT_ONCE: Final = 256
_WARM_UP_SHARE: Final = 0.05
_ERASED: Final = (0.1, 0.4)
"""The least and the most side of an erased square, as a share of the face's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one network is trained.

    Attributes:
        epochs: passes over the faces.
        rate: the largest step size; warm-up and cosine.
        weight_decay: of AdamW.
        dropout: share of the features dropped.
        averaging: decay of the moving average of the weights, which is kept.
        mixup: Beta(a, a) from which the weight of the second face of a mixed pair is drawn; 0 mixes none.
        erasing: share of the faces of which a square is erased.
        auxiliary: weight of age band and ethnicity beside the gender.
        batch_size: faces a step.
        seed: of everything random.
    """

    epochs: int
    rate: float
    weight_decay: float
    dropout: float
    averaging: float
    mixup: float
    erasing: float
    auxiliary: float = 0.3
    batch_size: int = 128
    seed: int = 0


class SoftLoss(nn.Module):
    """A network with the heads of age band and ethnicity, and their loss against probabilities.

    Args:
        network: to train.
        auxiliary: weight of age band and ethnicity beside the gender.
        grey: whether it sees colour faces in grayscale.
    """

    def __init__(self, network: FaceNetwork, auxiliary: float, *, grey: bool = False) -> None:
        super().__init__()
        self.grey = grey
        self.network = network
        self.auxiliary = auxiliary
        self.heads = nn.ModuleList(nn.Linear(network.width, count) for count in CLASSES[1:])

    def forward(self, faces: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss for faces float32 (n, channels, side, side) and targets float32 (n, sum of `CLASSES`)."""
        embedding = self.network.embed(to_grey(faces) if self.grey else faces)
        female, *classes = torch.split(targets, list(CLASSES), dim=1)
        loss = functional.binary_cross_entropy_with_logits(self.network.decide(embedding).float(), female[:, 0])
        for head, wanted in zip(self.heads, classes, strict=True):
            loss = loss + self.auxiliary * functional.cross_entropy(head(embedding).float(), wanted)
        return loss

    def probabilities(self, faces: torch.Tensor) -> torch.Tensor:
        """Returns probabilities as the targets are, the mean over each face and its mirror image."""
        views = []
        faces = to_grey(faces) if self.grey else faces
        for view in (faces, faces.flip(-1)):
            embedding = self.network.embed(view)
            gender = self.network.decide(embedding).float().sigmoid()[:, None]
            views.append(torch.cat([gender, *(head(embedding).float().softmax(1) for head in self.heads)], dim=1))
        return torch.stack(views).mean(0)


def hard_targets(targets: Targets) -> NDArray[np.float32]:
    """Returns what the labels say as probabilities: float32 (N, sum of `CLASSES`); zeros where one is unknown."""
    columns = [targets.female[:, None]]
    for values, count in ((targets.age_bands, CLASSES[1]), (targets.ethnicities, CLASSES[2])):
        columns.append(values[:, None] == np.arange(count))
    return np.concatenate(columns, axis=1).astype(np.float32)


def fit(
    model: SoftLoss,
    faces: Callable[[NDArray[np.intp]], torch.Tensor],
    targets: NDArray[np.float32],
    training: NDArray[np.intp],
    plan: Plan,
    device: torch.device,
    checkpoint: Path,
    on_epoch: Callable[[int, SoftLoss, float], None],
    *,
    origin: Mapping[str, str | float | None],
    teacher: SoftLoss | None = None,
    taught: float = 0.0,
) -> SoftLoss:
    """Trains a network to the end of its plan, and returns it with its averaged weights.

    Args:
        model: on the device, with the weights to begin from.
        faces: indices → float32 (n, channels, side, side) in [0, 1], on the device, at the side that the network reads.
        targets: of all faces, as `hard_targets` returns them.
        training: indices of the faces to learn from.
        plan: how.
        device: where to compute.
        checkpoint: written after every epoch; where it is of the same plan and origin, training carries on from it. A
            plan of more or fewer epochs takes over with its own steps.
        on_epoch: gets each finished epoch, the averaged model and the mean loss.
        origin: names the archive, and whatever else makes other weights of the same plan.
        teacher: says what it takes each changed face for, with its mirror image.
        taught: weight of what the teacher says beside what the labels say, in [0, 1].
    """
    groups = [
        {"params": [value for value in model.parameters() if value.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [value for value in model.parameters() if value.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, fused=True)
    average = AveragedModel(model, use_buffers=True)
    kept = cast("SoftLoss", average.module)
    wanted = torch.from_numpy(targets).to(device)
    done = _resume(checkpoint, plan, origin, model, optimizer, average)
    planned = planned_epochs(checkpoint)[:done]
    steps = math.ceil(len(training) / plan.batch_size)
    for epoch in range(done + 1, plan.epochs + 1):
        order = np.random.default_rng((plan.seed, epoch)).permutation(training)
        model.train()
        total = 0.0
        for step, batch in enumerate(np.array_split(order, steps)):
            at = (epoch - 1) * steps + step
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * _rate_at(at / (steps * plan.epochs))
            with seeded(device, plan.seed, epoch, step + 1) as generator:
                images, labels = augment(faces(batch), generator), wanted[torch.from_numpy(batch).to(device)]
                if plan.erasing:
                    _erase(images, plan.erasing, generator)
                if plan.mixup:
                    images, labels = _mix(images, labels, plan.mixup, np.random.default_rng((plan.seed, epoch, step)))
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bfloat16(device)):
                    if teacher is not None:
                        with torch.no_grad():
                            labels = labels.lerp(teacher.probabilities(images), taught)
                    loss = model(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.multi_avg_fn = get_ema_multi_avg_fn(min(plan.averaging, (1 + at) / (10 + at)))  # type: ignore[no-untyped-call]
            average.update_parameters(model)
            total += loss.item()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state_dict()}
        aside = checkpoint.with_suffix(".part")
        planned.append(plan.epochs)
        torch.save({"plan": asdict(plan), "origin": dict(origin), "epoch": epoch, "planned": planned, **state}, aside)
        aside.replace(checkpoint)
        kept.eval()
        on_epoch(epoch, kept, total / steps)
    return kept.eval()


def predict(
    function: Callable[[torch.Tensor], torch.Tensor],
    faces: Callable[[NDArray[np.intp]], torch.Tensor],
    indices: NDArray[np.intp],
    device: torch.device,
) -> NDArray[np.float32]:
    """Returns what a function of images says of the faces at `indices`, in this order, computed as in training."""
    batches = [indices[start : start + _PREDICTED_AT_ONCE] for start in range(0, len(indices), _PREDICTED_AT_ONCE)]
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bfloat16(device)):
        return np.concatenate([function(faces(batch)).float().cpu().numpy() for batch in batches])


def _rate_at(done: float) -> float:
    """Returns the share of the largest step size after a share of all steps."""
    if done < _WARM_UP_SHARE:
        return (done + 1e-3) / (_WARM_UP_SHARE + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP_SHARE) / (1 - _WARM_UP_SHARE)))


def _erase(images: torch.Tensor, share: float, generator: torch.Generator) -> None:
    """Erases a square of some images, in place: hands, masks and hair hide parts of faces, too."""
    side = images.shape[-1]
    chosen, size, top, left = torch.rand(4, len(images), generator=generator, device=images.device).tolist()
    for index in range(len(images)):
        if chosen[index] < share:
            length = round(side * (_ERASED[0] + (_ERASED[1] - _ERASED[0]) * size[index]))
            row, column = int(top[index] * (side - length)), int(left[index] * (side - length))
            grey = images[index].mean(dim=(1, 2), keepdim=True)
            erase(images[index], row, column, length, length, grey, inplace=True)


def _mix(
    images: torch.Tensor, labels: torch.Tensor, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes each face with another of its batch, and their targets with them (Zhang et al., "mixup", 2018)."""
    weight = float(generator.beta(alpha, alpha))
    return images.lerp(images.roll(1, 0), weight), labels.lerp(labels.roll(1, 0), weight)


def _resume(
    checkpoint: Path,
    plan: Plan,
    origin: Mapping[str, str | float | None],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel,
) -> int:
    """Loads a checkpoint of the same origin and plan, whose epochs may be more or fewer; returns how many are done."""
    if not checkpoint.exists():
        return 0
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    if state["plan"] | {"epochs": plan.epochs} != asdict(plan) or state["epoch"] > plan.epochs:
        return 0
    if state.get("origin", origin) != origin:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.load_state_dict(state["average"])
    done: int = state["epoch"]
    return done


def planned_epochs(checkpoint: Path) -> list[int]:
    """Returns for each finished epoch how many were planned at that time: all the same, unless the plan was changed."""
    if not checkpoint.exists():
        return []
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    planned: list[int] = state.get("planned") or [state["plan"]["epochs"]] * state["epoch"]
    return planned

"""One training step: a batch is augmented, its loss computed, and the weights and their moving average updated."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.training.augment import augment
from trainer.training.device import seeded
from trainer.training.loss import MultiTaskLoss, ask
from trainer.training.model import FaceNetwork
from trainer.training.recipe import Recipe

_WARM_UP_STEPS: Final = 2
"""Eager steps of a batch size before a step is captured: libraries set themselves up in the first."""
_MAX_CAPTURED_SIZES: Final = 4
"""An epoch has two batch sizes, which differ by one face."""
_DEVICE_OPTIONS: Final = ("lr", "foreach", "fused", "capturable")
"""Options of the optimizer that depend on the device, and so are not taken from a checkpoint."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _CapturedStep:
    """A step of one batch size as a CUDA graph, with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    faces: torch.Tensor
    targets: torch.Tensor
    loss: torch.Tensor
    correct: torch.Tensor


class TrainStep:
    """Takes one step of training a call.

    On a GPU, a step is some hundreds of short kernels, and the processor needs several times as long to start them as
    the GPU needs to run them. They are captured as a CUDA graph, one for each batch size, and started as one.

    Args:
        model: the network with its loss, on the device.
        recipe: the training parameters.
        device: where to compute.
        teacher: on the device, from `Teacher.build`; None where there is none.
        capture: whether to capture CUDA graphs; only on a GPU, and never with `ddp`.

    Attributes:
        optimizer: of the model.
        average: the moving average of the network's weights; None where the recipe keeps none.
        ddp: the model, wrapped where several processes train it; this is what is called.
    """

    def __init__(
        self,
        model: MultiTaskLoss,
        recipe: Recipe,
        device: torch.device,
        *,
        teacher: FaceNetwork | None = None,
        capture: bool = True,
    ) -> None:
        self._model = model
        self._teacher = teacher
        self._recipe = recipe
        self._device = device
        self._capturing = capture and device.type == "cuda"
        self.ddp: nn.Module = model
        self.optimizer = build_optimizer(model, recipe)
        self.average = AveragedModel(model.network, use_buffers=True) if recipe.averaging else None
        self._average_update = torch.zeros((), device=device)
        """The weight of the new weights in the average, where a CUDA graph can read it."""
        self._captured: dict[int, _CapturedStep] = {}
        self._eager_steps: Counter[int] = Counter()
        self._generator = torch.Generator(device)

    def __call__(
        self,
        faces: torch.Tensor,
        targets: torch.Tensor,
        *,
        rate: float,
        decay: float,
        seeds: Iterable[int],
        weight: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes a step.

        Args:
            faces: uint8 (n, 1, 128, 128), on the device.
            targets: of these faces, as `MultiTaskLoss` takes them.
            rate: the learning rate.
            decay: of the moving average of the weights.
            seeds: decide everything random.
            weight: factor of the loss, for a process that has a larger or smaller shard of the batch than the others.

        Returns:
            (the mean log loss of the gender; how many genders were correct), scalars, valid until the next step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], torch.Tensor) else rate
        with seeded(self._device, *seeds) as generator:
            if not (self._capturing and self.ddp is self._model):
                return self._eager_step(faces, targets, decay, weight, generator)
            self._average_update.fill_(1 - decay)
            captured = self._captured.get(len(faces))
            if captured is None:
                self._eager_steps[len(faces)] += 1
                if self._eager_steps[len(faces)] <= _WARM_UP_STEPS or len(self._captured) == _MAX_CAPTURED_SIZES:
                    with _side_stream():
                        return self._eager_step(faces, targets, decay, weight, generator)
                try:
                    captured = self._captured[len(faces)] = self._capture(faces, targets)
                except RuntimeError as error:
                    _LOG.warning("kernels are started one by one: %s", error)
                    self._capturing = False
                    return self._eager_step(faces, targets, decay, weight, generator)
            self._generator.manual_seed(generator.initial_seed())
            captured.faces.copy_(faces)
            captured.targets.copy_(targets)
            captured.graph.replay()
            if self.average is not None:
                self.average.n_averaged += 1  # it stays in main memory, out of the graph's reach
            return captured.loss, captured.correct

    @property
    def captured_sizes(self) -> frozenset[int]:
        """The batch sizes whose steps are captured."""
        return frozenset(self._captured)

    def restore(self, optimizer: dict[str, Any], average: dict[str, torch.Tensor]) -> None:
        """Loads the states of optimizer and average, perhaps from another device.

        Args:
            optimizer: from `optimizer.state_dict()`.
            average: from `average.state_dict()`; ignored where the recipe keeps no average.

        Raises:
            RuntimeError, ValueError, KeyError: they do not fit.
        """
        state = copy.deepcopy(optimizer)  # the optimizer would keep and change the tensors
        for saved, own in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            saved |= {name: own[name] for name in _DEVICE_OPTIONS}
        self.optimizer.load_state_dict(state)
        if self.average is not None:
            self.average.load_state_dict(average)

    def _eager_step(
        self, faces: torch.Tensor, targets: torch.Tensor, decay: float, weight: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, loss, correct = self._forward(self.ddp, faces, targets, generator)
        self.optimizer.zero_grad()
        (total * weight).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average is not None:
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self.average.update_parameters(self._model.network)
        return loss, correct

    def _forward(
        self, model: nn.Module, faces: torch.Tensor, targets: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return forward(model, self._model.network, self._recipe, faces, targets, generator, self._teacher)

    def _capture(self, faces: torch.Tensor, targets: torch.Tensor) -> _CapturedStep:
        """Captures a step without taking it; all that varies from step to step is read from tensors that stay."""
        faces, targets = torch.empty_like(faces), torch.zeros_like(targets)
        network = self._model.network
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            total, loss, correct = self._forward(self._model, faces, targets, self._generator)
            total.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.average is not None:
                kept, now = self.average.module, network
                values = zip(
                    chain(kept.parameters(), kept.buffers()), chain(now.parameters(), now.buffers()), strict=True
                )
                for average, value in values:
                    if average.is_floating_point():
                        average.detach().lerp_(value.detach(), self._average_update.to(average.dtype))
                    else:  # how many batches there were; rounded as the library does
                        average.copy_(average * (1 - self._average_update) + value * self._average_update)
        return _CapturedStep(graph, faces, targets, loss, correct)


@contextmanager
def _side_stream() -> Iterator[None]:
    """Runs the block on a stream of its own, as the steps before a capture must, and lets the current stream wait."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


def forward(
    model: nn.Module,
    network: FaceNetwork,
    recipe: Recipe,
    faces: torch.Tensor,
    targets: torch.Tensor,
    generator: torch.Generator,
    teacher: FaceNetwork | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the outputs of `MultiTaskLoss.forward` for a batch, augmented as the recipe says.

    Args:
        model: a `MultiTaskLoss`, perhaps wrapped by `ProcessGroup.wrap_ddp`.
        network: the network in it.
        recipe: the training parameters.
        faces: uint8 (n, 1, 128, 128).
        targets: of these faces, as `MultiTaskLoss` takes them.
        generator: decides everything random.
        teacher: as of `TrainStep`.
    """
    inputs = network.shrink(faces.float().div_(255))  # first, so that augmentation costs less
    if recipe.augment:
        inputs = augment(inputs, generator)
    with torch.autocast(faces.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        taught = None if teacher is None else ask(teacher, inputs)
        total, loss, correct = model(inputs, targets, taught)
    return total, loss, correct


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Returns AdamW over all parameters.

    It decays the weights of layers, but neither their biases nor the scales of normalisation, which decay would only
    bend. On a GPU its step is one kernel, which can be captured and reads the learning rate from the GPU.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    device = parameters[0].device
    if device.type != "cuda":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    rate = torch.tensor(recipe.learning_rate, device=device)
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=True)

"""What happens in one step: how a batch is shown to the network, what is learned from it, and what is kept of that."""

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
from trainer.training.loss import Objective
from trainer.training.model import FaceNetwork
from trainer.training.recipe import Recipe

_FIRST_STEPS: Final = 2
"""Steps of a batch size before one is recorded: libraries set themselves up in the first, which cannot be recorded."""
_SIZES_RECORDED: Final = 4
"""An epoch has two, which differ by a face."""
_OF_THE_DEVICE: Final = ("lr", "foreach", "fused", "capturable")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A step of one batch size as a CUDA graph: what goes in, and what comes out."""

    graph: torch.cuda.CUDAGraph
    faces: torch.Tensor
    targets: torch.Tensor
    loss: torch.Tensor
    correct: torch.Tensor


class Step:
    """Learns from one batch after the other.

    On a GPU, a step is some hundreds of short kernels, and starting them takes the processor several times as long as
    the GPU needs to run them. So, for each size of batch, they are recorded as a CUDA graph and then started as one.

    Args:
        objective: what is trained; on the device.
        recipe: what to do.
        device: where.
        record: whether to record; only on a GPU, and never with a `shared` objective.

    Attributes:
        optimizer: of the objective.
        average: the moving average of the network's weights; None where the recipe keeps none.
        shared: the objective as a team wraps it; it is what is run.
    """

    def __init__(self, objective: Objective, recipe: Recipe, device: torch.device, *, record: bool = True) -> None:
        self._objective = objective
        self._recipe = recipe
        self._device = device
        self._record = record and device.type == "cuda"
        self.shared: nn.Module = objective
        self.optimizer = optimizer_for(objective, recipe)
        self.average = AveragedModel(objective.network, use_buffers=True) if recipe.averaging else None
        self._taken_on = torch.zeros((), device=device)
        """How much of the new weights goes into the average."""
        self._recorded: dict[int, _Recorded] = {}
        self._done: Counter[int] = Counter()
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
            targets: of these faces, as `Objective` takes them.
            rate: the optimizer's step size.
            decay: of the moving average of the weights.
            seeds: decide everything random.
            weight: of this part of a batch that a team shares.

        Returns:
            (the mean log loss of the gender; how many genders were right), scalars, until the next step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], torch.Tensor) else rate
        with seeded(self._device, *seeds) as generator:
            if not (self._record and self.shared is self._objective):
                return self._taken(faces, targets, decay, weight, generator)
            self._taken_on.fill_(1 - decay)
            recorded = self._recorded.get(len(faces))
            if recorded is None:
                self._done[len(faces)] += 1
                if self._done[len(faces)] <= _FIRST_STEPS or len(self._recorded) == _SIZES_RECORDED:
                    with _beside():
                        return self._taken(faces, targets, decay, weight, generator)
                try:
                    recorded = self._recorded[len(faces)] = self._recording(faces, targets)
                except RuntimeError as error:
                    _LOG.warning("kernels are started one by one: %s", error)
                    self._record = False
                    return self._taken(faces, targets, decay, weight, generator)
            self._generator.manual_seed(generator.initial_seed())
            recorded.faces.copy_(faces)
            recorded.targets.copy_(targets)
            recorded.graph.replay()
            if self.average is not None:
                self.average.n_averaged += 1  # it stays in main memory, where a recording does not reach
            return recorded.loss, recorded.correct

    @property
    def recorded_sizes(self) -> frozenset[int]:
        """The sizes of batches whose steps are recorded."""
        return frozenset(self._recorded)

    def restore(self, optimizer: dict[str, Any], average: dict[str, torch.Tensor]) -> None:
        """Takes up the states that `optimizer.state_dict` and `average.state_dict` gave, perhaps on another device.

        Raises:
            RuntimeError, ValueError, KeyError: they do not fit.
        """
        state = copy.deepcopy(optimizer)  # the optimizer would keep and change the tensors
        for saved, own in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            saved |= {name: own[name] for name in _OF_THE_DEVICE}
        self.optimizer.load_state_dict(state)
        if self.average is not None:
            self.average.load_state_dict(average)

    def _taken(
        self, faces: torch.Tensor, targets: torch.Tensor, decay: float, weight: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, loss, correct = forward(self.shared, self._objective.network, self._recipe, faces, targets, generator)
        self.optimizer.zero_grad()
        (total * weight).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average is not None:
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self.average.update_parameters(self._objective.network)
        return loss, correct

    def _recording(self, faces: torch.Tensor, targets: torch.Tensor) -> _Recorded:
        """Records a step without taking it; what varies from step to step is read from tensors that stay."""
        faces, targets = torch.empty_like(faces), torch.zeros_like(targets)
        network = self._objective.network
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            total, loss, correct = forward(self._objective, network, self._recipe, faces, targets, self._generator)
            total.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.average is not None:
                kept, now = self.average.module, network
                values = zip(
                    chain(kept.parameters(), kept.buffers()), chain(now.parameters(), now.buffers()), strict=True
                )
                for average, value in values:
                    if average.is_floating_point():
                        average.detach().lerp_(value.detach(), self._taken_on.to(average.dtype))
                    else:  # how many batches there were; rounded as the library does
                        average.copy_(average * (1 - self._taken_on) + value * self._taken_on)
        return _Recorded(graph, faces, targets, loss, correct)


@contextmanager
def _beside() -> Iterator[None]:
    """Runs what is inside on a stream of its own, and lets the current one wait: what precedes a recording has to."""
    current, other = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    other.wait_stream(current)
    with torch.cuda.stream(other):
        yield
    current.wait_stream(other)


def forward(
    objective: nn.Module,
    network: FaceNetwork,
    recipe: Recipe,
    faces: torch.Tensor,
    targets: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what `Objective` says of a batch, shown as the recipe wants it.

    Args:
        objective: an `Objective`, perhaps wrapped for a team.
        network: the one in it.
        recipe: what to do.
        faces: uint8 (n, 1, 128, 128).
        targets: of these faces, as `Objective` takes them.
        generator: decides everything random.
    """
    inputs = network.shrunk(faces.float().div_(255))  # first, so that changing them costs less
    if recipe.augment:
        inputs = augment(inputs, generator)
    with torch.autocast(faces.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        total, loss, correct = objective(inputs, targets)
    return total, loss, correct


def optimizer_for(objective: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Returns AdamW over all that is trained.

    It decays the weights of layers, not their biases nor the scales of normalisation, which decay would only bend.
    On a GPU its step is one kernel, which can be recorded and reads its size from the GPU.
    """
    parameters = list(objective.parameters())
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    device = parameters[0].device
    if device.type != "cuda":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    rate = torch.tensor(recipe.learning_rate, device=device)
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=True)

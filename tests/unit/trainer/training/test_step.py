import copy
import math
from dataclasses import dataclass

import pytest
import torch

from shared.params import TrainingParams
from trainer.training.device import seeded
from trainer.training.loss import MultiTaskLoss, Teacher
from trainer.training.model import FaceNetwork, build_network
from trainer.training.recipe import Recipe, decide
from trainer.training.step import TrainStep

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = (8, 7)
"""Of the batches, by turns, as in an epoch."""


RATE = 1e-4
"""Small, so that noise in a gradient, which Adam makes a whole step of, does not count."""


@dataclass
class Learner:
    """A fresh network and its steps; the same wherever it is made."""

    step: TrainStep
    model: MultiTaskLoss
    device: torch.device

    @classmethod
    def made(cls, device: torch.device, *, capture: bool = True, teacher: FaceNetwork | None = None) -> "Learner":
        params = TrainingParams(network="small", precision="float32", epochs=1, batch_size=8)
        recipe: Recipe = decide(
            params, faces=100, device=device, throughput=lambda _: math.inf, starter_helps=lambda: False
        )
        with seeded(CPU, 0):
            model = MultiTaskLoss(build_network("small", dropout=0.4), recipe.auxiliary).to(device)
        return cls(TrainStep(model, recipe, device, teacher=teacher, capture=capture), model, device)

    def learn(self, first: int, count: int) -> list[float]:
        """Takes steps, numbered from `first`. Returns their losses."""
        losses = []
        for number in range(first, first + count):
            size = SIZES[number % 2]
            draw = torch.Generator().manual_seed(number)
            faces = torch.randint(0, 256, (size, 1, 128, 128), generator=draw, dtype=torch.uint8)
            targets = torch.randint(0, 2, (size, 3), generator=draw)
            loss, correct = self.step(
                faces.to(self.device), targets.to(self.device), rate=RATE * (number + 1), decay=0.5, seeds=(1, number)
            )
            assert 0 <= correct.item() <= size
            losses.append(loss.item())
        return losses

    def averages(self) -> list[torch.Tensor]:
        assert self.step.average is not None
        return [value.cpu().float() for value in self.step.average.state_dict().values()]


def difference(one: Learner, other: Learner) -> float:
    """Returns the largest difference of their averages; where these are large, as a share of them."""
    return max(
        float(((mine - theirs).abs() / (1 + theirs.abs())).max())
        for mine, theirs in zip(one.averages(), other.averages(), strict=True)
    )


def test_steps_depend_on_their_seeds_and_nothing_else() -> None:
    one, other = Learner.made(CPU), Learner.made(CPU)
    assert one.learn(0, 4) == other.learn(0, 4)
    assert difference(one, other) == 0
    assert difference(one, Learner.made(CPU)) > 1e-1


def test_a_state_saved_on_a_gpu_is_taken_up_on_a_cpu() -> None:
    """What a GPU's optimizer says of itself would make a CPU's refuse to work."""
    one, other = Learner.made(CPU), Learner.made(CPU)
    one.learn(0, 2)
    assert one.step.average is not None
    state = copy.deepcopy(one.step.optimizer.state_dict())
    for group in state["param_groups"]:
        group |= {"lr": torch.tensor(9.0), "fused": True, "capturable": True}
    other.model.load_state_dict(copy.deepcopy(one.model.state_dict()))
    other.step.restore(state, copy.deepcopy(one.step.average.state_dict()))
    assert other.learn(2, 3) == one.learn(2, 3)
    assert difference(one, other) == 0


def test_a_teacher_changes_the_steps_and_stays_as_it_is() -> None:
    teacher = Teacher("small", build_network("small", dropout=0.0).state_dict()).build(CPU)
    before = copy.deepcopy(teacher.state_dict())
    plain, taught = Learner.made(CPU), Learner.made(CPU, teacher=teacher)
    assert taught.learn(0, 1) == plain.learn(0, 1)  # the loss that is told is that of the labels
    assert difference(taught, plain) > 0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training


@WITH_GPU
@pytest.mark.cuda
def test_captured_steps_do_what_the_others_do() -> None:
    captured, plain = Learner.made(GPU), Learner.made(GPU, capture=False)
    assert captured.learn(0, 12) == pytest.approx(plain.learn(0, 12), rel=2e-2)
    assert captured.step.captured_sizes == set(SIZES)
    assert plain.step.captured_sizes == set()
    assert difference(captured, plain) < 1e-2
    teacher = Teacher("small", build_network("small", dropout=0.0).state_dict()).build(GPU)
    taught, plain = (Learner.made(GPU, capture=capture, teacher=teacher) for capture in (True, False))
    assert taught.learn(0, 12) == pytest.approx(plain.learn(0, 12), rel=2e-2)
    assert taught.step.captured_sizes == set(SIZES)
    assert difference(taught, plain) < 1e-2
    assert difference(captured, Learner.made(GPU)) > 1e-1


@WITH_GPU
@pytest.mark.cuda
@pytest.mark.parametrize(("before", "after"), [(GPU, CPU), (CPU, GPU), (GPU, GPU)])
def test_training_goes_on_on_another_device(before: torch.device, after: torch.device) -> None:
    one, other = Learner.made(before), Learner.made(after)
    one.learn(0, 8)
    assert one.step.average is not None
    other.model.load_state_dict(one.model.state_dict())
    other.step.restore(one.step.optimizer.state_dict(), one.step.average.state_dict())
    # On a GPU, augmentation and dropout draw other numbers than on a CPU, so only what follows at once is comparable.
    (found,), (expected,) = other.learn(8, 1), one.learn(8, 1)
    assert found == pytest.approx(expected, rel=1e-2 if before == after else 0.5)
    assert all(math.isfinite(loss) for loss in other.learn(9, 8))
    assert other.step.captured_sizes == (set(SIZES) if after == GPU else set())

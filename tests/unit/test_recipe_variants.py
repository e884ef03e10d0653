"""What `make bench-recipe` trains with and no parameter of a run chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.bench.model.recipe_variants import CHANGES, erase_squares, varied
from trainer.training.augment import augment
from trainer.training.loss import MultiTaskLoss
from trainer.training.model import build_network


@pytest.fixture
def faces() -> torch.Tensor:
    return torch.rand(16, 1, 80, 80, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CHANGES)
def test_changed_faces_are_faces_still_and_depend_on_the_seed_alone(name: str, faces: torch.Tensor) -> None:
    def change(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return CHANGES[name](faces, torch.Generator().manual_seed(seed))

    changed = change(2)
    assert changed.shape == faces.shape
    assert changed.dtype == torch.float32
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(changed, change(2))
    assert not torch.equal(changed, change(3))


def test_about_half_of_the_faces_lose_one_square(faces: torch.Tensor) -> None:
    erased = erase_squares(faces, torch.Generator().manual_seed(2)) != augment(faces, torch.Generator().manual_seed(2))
    shares = erased.float().mean(dim=(1, 2, 3))
    assert 4 <= int((shares > 0).sum()) <= 12
    assert all(0.15**2 * 0.8 < float(share) < 0.45**2 * 1.1 for share in shares if share > 0)
    for face in erased[shares > 0, 0]:
        height, width = int(face.any(1).sum()), int(face.any(0).sum())
        assert int(face.sum()) >= 0.98 * height * width
        assert abs(height - width) <= 1


def test_mixed_faces_have_mixed_targets(faces: torch.Tensor) -> None:
    torch.manual_seed(1)
    loss = MultiTaskLoss(build_network("small", dropout=0.0).eval(), auxiliary=0.3).eval()
    labels = torch.tensor([[index % 2, index % 3, index % 5] for index in range(16)])
    with torch.no_grad():
        plain = float(loss(faces, labels)[0])
        with varied({"mixup": True}):
            mixed = {float(loss(faces, labels)[0]) for _ in range(5)}
    assert len(mixed) == 5
    assert plain not in mixed


def test_branches_are_one_convolution_once_they_are_trained(faces: torch.Tensor) -> None:
    with varied({"branches": True}):
        network = build_network("small", dropout=0.0).eval()
    branched: list[Any] = [module for module in network.modules() if type(module).__name__ == "_Branches"]
    assert len(branched) > 3
    maps = torch.rand(2, branched[0].branches[0][0].in_channels, 16, 16)
    with torch.no_grad():
        kernel, bias = merged(branched[0])
        assert torch.allclose(branched[0](maps), functional.conv2d(maps, kernel, bias, padding=1), atol=1e-5)
    assert not any(type(module).__name__ == "_Branches" for module in build_network("small", dropout=0.0).modules())


def merged(block: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the kernel and bias of the one convolution that a block with branches is."""
    kernel, bias = torch.zeros(0), torch.zeros(0)
    branch: Any
    norm: Any
    for branch in block.branches:
        convolution, norm = (None, branch) if isinstance(branch, torch.nn.BatchNorm2d) else branch
        weight = torch.eye(len(norm.weight))[:, :, None, None] if convolution is None else convolution.weight
        padded = functional.pad(weight, [(3 - weight.shape[-1]) // 2] * 4)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        part = padded * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        kernel, bias = part if not len(kernel) else (kernel + part[0], bias + part[1])
    return kernel, bias

"""The loss of training, and what a teacher adds to it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trainer.training.loss import TAUGHT, MultiTaskLoss, Teacher, ask
from trainer.training.model import build_network

CPU = torch.device("cpu")


@pytest.fixture
def faces() -> torch.Tensor:
    return torch.rand(16, 1, 80, 80, generator=torch.Generator().manual_seed(1))


def test_a_teacher_counts_beside_the_label(faces: torch.Tensor) -> None:
    network = build_network("small", dropout=0.0).eval()
    loss = MultiTaskLoss(network, auxiliary=0.0).eval()
    labels = torch.tensor([[1, 0, 0]] * len(faces))
    with torch.no_grad():
        plain, told, correct = loss(faces, labels)
        agreed, contradicted = (loss(faces, labels, torch.full((len(faces),), says)) for says in (1.0, 0.0))
        logits = network.decide(network.embed(faces))
    wanted = torch.full((len(faces),), 1 - TAUGHT)
    assert float(agreed[0]) == pytest.approx(float(plain))
    assert float(contradicted[0]) == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(logits, wanted)), rel=1e-5
    )
    assert [each[1:] for each in (agreed, contradicted)] == [(told, correct)] * 2  # of the labels alone


def test_a_teacher_answers_with_the_mirror_image(faces: torch.Tensor) -> None:
    teacher = Teacher("small", build_network("small", dropout=0.0).state_dict()).build(CPU)
    assert torch.allclose(ask(teacher, faces), ask(teacher, faces.flip(-1)), atol=1e-6)
    logits = [teacher.decide(teacher.embed(view)) for view in (faces, faces.flip(-1))]
    assert torch.allclose(ask(teacher, faces), torch.stack(logits).mean(0).sigmoid(), atol=1e-6)


def test_a_teacher_is_not_among_what_is_trained() -> None:
    teacher = Teacher("small", build_network("small", dropout=0.0).state_dict()).build(CPU)
    assert not any(value.requires_grad for value in teacher.parameters())

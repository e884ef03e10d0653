"""The loss of training: the log loss of the gender and, as auxiliary tasks, of the age band and the ethnicity.

The file names give all three. Auxiliary tasks teach a network more about a face than one bit would (Caruana,
"Multitask Learning", 1997). Their dense layers are dropped when the run ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from shared.faces.labels import ETHNICITIES, UNKNOWN
from shared.params import Network
from shared.records.dataset import AGE_BANDS
from trainer.data.dataset import Targets
from trainer.training.model import FaceNetwork, build_network
from trainer.training.starter import Weights

TAUGHT: Final = 0.7
"""Weight of what a teacher says of a face, beside its label."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained model that teaches another one.

    It is asked about each face as the other one sees it, changed at random: so that one learns the function, and not
    only what the teacher says of faces that it knows by heart (Beyer et al., "Knowledge distillation: a good teacher is
    patient and consistent", 2022).
    """

    network: Network
    weights: Weights

    def build(self, device: torch.device) -> FaceNetwork:
        """Returns the teacher's network on the device, for `ask`."""
        network = build_network(self.network, dropout=0.0)
        network.load_state_dict(self.weights)
        return network.to(device).eval().requires_grad_(requires_grad=False)


def ask(teacher: FaceNetwork, faces: torch.Tensor) -> torch.Tensor:
    """Returns the probabilities of *female*, float32 (n,), the mean over each face and its mirror image.

    Args:
        teacher: from `Teacher.build`.
        faces: float32 (n, 1, side, side) in [0, 1], at the side that the teacher's features read.
    """
    with torch.no_grad():
        logits = teacher.decide(teacher.embed(torch.cat([faces, faces.flip(-1)]))).float()
        return logits.view(2, -1).mean(0).sigmoid()


class MultiTaskLoss(nn.Module):
    """A network, the heads of its auxiliary tasks, and their common loss; the parameters of both are trained.

    Args:
        network: the network to train.
        auxiliary: weight of the losses of age band and ethnicity beside that of the gender; 0 leaves them out.
        gender_weights: weights of male and of female faces in the loss of the gender; None weighs all faces the same.
    """

    gender_weights: torch.Tensor | None

    def __init__(
        self, network: FaceNetwork, auxiliary: float, gender_weights: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        weights = None if gender_weights is None else torch.tensor(gender_weights)
        self.register_buffer("gender_weights", weights, persistent=False)
        self.network = network
        self.auxiliary = auxiliary
        classes = (len(AGE_BANDS), len(ETHNICITIES)) if auxiliary else ()
        self.heads = nn.ModuleList(nn.Linear(network.width, count) for count in classes)

    def forward(
        self, faces: torch.Tensor, targets: torch.Tensor, taught: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs the network on a batch.

        Args:
            faces: float32 (n, 1, side, side) in [0, 1].
            targets: int64 (n, 3): 1 for female, age band, ethnicity; from `targets_to_device`.
            taught: what a teacher says of these faces, from `ask`; None where there is no teacher.

        Returns:
            (the loss to minimise; the mean log loss of the gender alone; how many genders were correct), all scalars.
        """
        embedding = self.network.embed(faces)
        logits = self.network.decide(embedding).float()
        female = targets[:, 0].float()
        weights = None if self.gender_weights is None else self.gender_weights[targets[:, 0]]
        loss = functional.binary_cross_entropy_with_logits(logits, female, weight=weights)
        total = loss
        if taught is not None:
            mixed = female.lerp(taught, TAUGHT)
            total = functional.binary_cross_entropy_with_logits(logits, mixed, weight=weights)
        for head, classes in zip(self.heads, targets.T[1:], strict=False):
            # A mean over the faces that have the label, of which a batch may hold none.
            losses = functional.cross_entropy(head(embedding).float(), classes, ignore_index=UNKNOWN, reduction="sum")
            total = total + self.auxiliary * losses / (classes != UNKNOWN).sum().clamp(min=1)
        return total, loss.detach(), ((logits.detach() >= 0) == (female > 0.5)).sum()


def targets_to_device(targets: Targets, device: torch.device) -> torch.Tensor:
    """Returns the targets of all faces as `MultiTaskLoss` takes them: int64 (N, 3), on the device."""
    columns = (targets.female, targets.age_bands, targets.ethnicities)
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64)).to(device)

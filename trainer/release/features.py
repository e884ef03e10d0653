"""The starter's features of faces, which no label of the dataset has shaped, and the classifier that learns from them.

Both cost little: one pass over the faces, and seconds for the classifier, where training a network takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.training.balance import weigh_genders
from trainer.training.device import DeviceFaces
from trainer.training.model import build_network
from trainer.training.starter import STARTER_NETWORK, load_starter

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_REGULARISATION: Final = 0.01
"""Inverse strength, as scikit-learn has it; of features of unit variance."""
_BATCH: Final = 256


def embed_faces(
    faces: NDArray[np.uint8],
    device: torch.device,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NDArray[np.float32]:
    """Returns the starter's features, float32 (N, width).

    Args:
        faces: uint8 (N, 128, 128), luma; may be a memory map.
        device: where to compute.
        on_progress: called with the faces done and the number of all faces; its exceptions end the work.
    """
    network = build_network(STARTER_NETWORK, dropout=0.0).to(device)
    network.load_state_dict(load_starter().weights)
    network.eval()
    source = DeviceFaces(faces, device)
    indices = np.arange(len(faces))
    found = []
    with torch.inference_mode():
        for start in range(0, len(faces), _BATCH):
            batch = source.take(indices[start : start + _BATCH]).float().div_(255)
            found.append(network.embed(network.shrink(batch)).float().cpu().numpy())
            on_progress(min(start + _BATCH, len(faces)), len(faces))
    return np.concatenate(found)


def build_classifier(labels: NDArray[np.uint8]) -> Pipeline:
    """Returns a logistic regression, untrained, for these features.

    Args:
        labels: of all training faces; where they are unbalanced, both genders weigh the same, as in the network's loss.
    """
    # They take a second to load, which a trainer that starts should not wait for.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    weight = None if weigh_genders(labels) is None else "balanced"
    return make_pipeline(StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=1000, class_weight=weight))

"""The recipe: the value of every parameter that is `auto`, from the number of faces, the device and its throughput."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch

from shared.errors import InvalidMessage
from shared.params import EPOCH_LIMIT, Network, Precision, StartUri, TrainingParams
from trainer.training.device import computes_bfloat16
from trainer.training.starter import STARTER_NETWORK

FEW_FACES: Final = 2_000
"""Below that a small network learns as well, in a fraction of the time."""
MANY_FACES: Final = 20_000
"""From there on, a GPU's larger steps lose nothing."""
FACES_SHOWN: Final = 400_000
"""What `auto` epochs aim at: training faces shown over the whole run."""
MIN_EPOCHS: Final = 15
MAX_EPOCHS: Final = 64
MAX_EPOCHS_FROM_STARTER: Final = 20
"""The starter knows faces already: more epochs make it forget them."""
PATIENCE: Final = 12
VALIDATION_COST: Final = 1 / 3
"""The cost of a face in validation, without a backward pass, as a share of its cost in training."""
START_RATE: Final = 5e-4
LEAST_START_RATE: Final = 5e-5
FACES_OF_START_RATE: Final = 5_000
"""From weights that know faces, large steps forget more than few faces teach: the step grows up to so many faces."""


class Recipe(TrainingParams):
    """Training parameters without any `auto` left: what is actually done."""

    init: Literal["starter", "scratch"] | StartUri
    network: Network
    learning_rate: float
    epochs: int
    patience: int
    batch_size: int
    mirror: bool
    precision: Precision

    def fits(self, params: TrainingParams) -> bool:
        """Returns whether this does what the parameters ask for, wherever they do not leave it to us."""
        done = self.as_dict()
        return all(asked in ("auto", done[name]) for name, asked in params.as_dict().items())


def epoch_cost(faces: int, validation: int) -> float:
    """Returns how many faces one could train on in the time of an epoch, which ends in validation."""
    return faces + validation * VALIDATION_COST


def start_rate(faces: int) -> float:
    """Returns AdamW's largest step size from weights that know faces already, for so many training faces."""
    return max(LEAST_START_RATE, round(START_RATE * min(1, faces / FACES_OF_START_RATE), 6))


def decide(
    params: TrainingParams,
    *,
    faces: int,
    device: torch.device,
    throughput: Callable[[Recipe], float],
    starter_helps: Callable[[], bool],
    validation: int = 0,
    start_network: Network = STARTER_NETWORK,
    start_mirrors: bool = False,
) -> Recipe:
    """Decides everything that the parameters leave to us.

    Args:
        params: what the user chose.
        faces: how many there are to learn from, 1 or more.
        device: where to train.
        throughput: measures how many faces per second a recipe trains on; asked only where there is a `budget_s`.
        starter_helps: tries the starter on the training faces; asked only where `init` is `auto` and the network fits.
        validation: how many faces choose the epoch; they take time too.
        start_network: the network of the weights that `init` names; the starter's where it is `auto`.
        start_mirrors: whether they answer with the mirror image; the starter learned from a teacher that did.

    Raises:
        InvalidMessage: `init` names weights, and the network is another one than theirs; or `distil` names a teacher,
            and the network is `reference`, which reads larger faces than all others.
    """
    fits = params.network in {"auto", start_network}
    if params.init not in {"auto", "scratch"} and not fits:
        raise InvalidMessage(
            f"init is {params.init}, which needs network {start_network}; found network {params.network}",
            code="invalid_params",
        )
    from_start = fits and (starter_helps() if params.init == "auto" else params.init != "scratch")
    network = params.network
    if network == "auto":
        network = start_network if from_start else "small" if faces < FEW_FACES else "compact"
    if network == "reference" and params.distil != "none":
        raise InvalidMessage(
            f"distil is {params.distil}; the network reference cannot be taught, for it reads faces of another size",
            code="invalid_params",
        )
    decided = {
        "init": "starter" if from_start else "scratch",
        "network": network,
        "learning_rate": start_rate(faces) if from_start else 0.004,
        # `reference` is there to be compared to, as it is.
        # The teacher answers with the mirror image: who learns from it need not.
        "mirror": start_mirrors if from_start else network != "reference" and params.distil == "none",
        "batch_size": 256 if device.type == "cuda" and faces >= MANY_FACES else 64 if faces >= FEW_FACES else 32,
        "precision": "bfloat16" if computes_bfloat16(device) else "float32",
        "epochs": min(MAX_EPOCHS_FROM_STARTER if from_start else MAX_EPOCHS, max(MIN_EPOCHS, FACES_SHOWN // faces)),
        # A tenth of few faces is too few to tell when to stop.
        "patience": PATIENCE if faces >= FEW_FACES else EPOCH_LIMIT,
    }
    asked = params.as_dict()
    left = {name: value for name, value in decided.items() if asked[name] == "auto"}
    recipe = Recipe.model_validate(asked | left)
    if params.budget_s is None or params.epochs != "auto":
        return recipe
    affordable = int(params.budget_s * throughput(recipe) / epoch_cost(faces, validation))
    return recipe.model_copy(update={"epochs": max(1, min(recipe.epochs, affordable))})

"""The weights that a run begins from and its teacher, kept with the run until it ends.

Another trainer carries the run on with the same weights, without searching again for what they have learned from, also
where the model or the file that they came from is gone by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from pydantic import ValidationError

from shared.params import TrainingParams
from shared.records.model_card import CardStart
from shared.runtime.settings import Settings
from shared.store.base import Store
from trainer.data.dataset import Dataset
from trainer.release.start import Start, find_start, find_teacher
from trainer.training.checkpoint import CheckpointError, dump_state, load_state
from trainer.training.loss import Teacher
from trainer.training.starter import Weights

FORMAT: Final = 1
"""Changes with the content or meaning of what is kept."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run learns from beside its faces.

    Attributes:
        start: the weights that it begins from, unless the recipe decides for random ones.
        teacher: None where `distil` names none.
    """

    start: Start
    teacher: Teacher | None


def find_sources(
    params: TrainingParams, dataset: Dataset, store: Store, settings: Settings, check_cancelled: Callable[[], None]
) -> Sources:
    """Returns what `init` and `distil` name, as `find_start` and `find_teacher` do."""
    return Sources(
        find_start(params.init, dataset, store, settings, check_cancelled),
        find_teacher(params.distil, dataset, store, check_cancelled),
    )


def dump(sources: Sources) -> bytes:
    """Returns the sources as bytes that `load` reads."""
    start, teacher = sources.start, sources.teacher
    state = {
        "start": {
            "network": start.network,
            "mirrors": start.mirrors,
            "weights": None if start.weights is None else _narrow(start.weights),
            "card": start.card.as_dict(),
            "seen": None if start.seen is None else torch.from_numpy(start.seen.view(np.int64)),
        },
        "teacher": None if teacher is None else {"network": teacher.network, "weights": _narrow(teacher.weights)},
    }
    return dump_state(FORMAT, state)


def load(data: bytes) -> Sources:
    """Reads what `dump` wrote; executes nothing from it.

    Raises:
        CheckpointError: it is something else, or damaged.
    """
    state = load_state(FORMAT, data)
    try:
        start, teacher = state["start"], state["teacher"]
        return Sources(
            Start(
                network=start["network"],
                mirrors=start["mirrors"],
                weights=None if start["weights"] is None else _widen(start["weights"]),
                card=CardStart.model_validate(start["card"]),
                seen=None if start["seen"] is None else start["seen"].numpy().view(np.uint64),
            ),
            None if teacher is None else Teacher(teacher["network"], _widen(teacher["weights"])),
        )
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CheckpointError(f"the start and the teacher of the run cannot be read: {error}") from None


def _narrow(weights: Weights) -> Weights:
    """Returns weights in half precision, where that holds them exactly, as of those that were stored so."""
    halves = {name: value.half() for name, value in weights.items() if value.dtype == torch.float32}
    return weights | {name: half for name, half in halves.items() if torch.equal(half.float(), weights[name])}


def _widen(weights: Weights) -> Weights:
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}

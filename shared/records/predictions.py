"""What a model predicted for every face of a dataset: beside its run if it was trained on it, else the dataset."""

from __future__ import annotations

import csv
import io
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import GenderlineError, NotFound
from shared.records.model_card import ModelCard
from shared.records.results import result_row
from shared.store.base import Store

THRESHOLD: Final = 0.5
"""The decision threshold of the workers, and of every page where none is chosen."""


def predict_female(probabilities: NDArray[np.float32], threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """Returns bool (N,): who is predicted female. The one place where a stored probability becomes a prediction.

    Args:
        probabilities: float32 (N,), of female.
        threshold: predicted female from here on.
    """
    return probabilities >= np.float32(threshold)


def predictions_key(sha256: str, version: int) -> str:
    """Returns the store key of what a job of a model predicted for a dataset."""
    return f"datasets/{sha256}/predictions/{version}.csv"


def read_predictions(store: Store, sha256: str, card: ModelCard) -> NDArray[np.float32]:
    """Returns float32 (N,), the probability of female of every face of a dataset.

    Args:
        store: where they lie.
        sha256: the dataset.
        card: of the model.

    Raises:
        NotFound: the model has not predicted this dataset.
    """
    for key in predictions_keys(sha256, card):
        with suppress(NotFound):
            return _read(store.get(key))
    raise NotFound(f"version {card.version} has not predicted dataset {sha256[:12]}")


def predictions_keys(sha256: str, card: ModelCard) -> list[str]:
    """Returns the store keys where a dataset's predictions by a model may be, whichever dataset it was trained on.

    Those of its run are gone where the run was deleted; then a job may have predicted the dataset.
    """
    by_job = predictions_key(sha256, card.version)
    return [f"runs/{card.run_id}/predictions.csv", by_job] if card.dataset.sha256 == sha256 else [by_job]


def list_predicting_versions(store: Store, sha256: str, cards: Iterable[ModelCard]) -> list[int]:
    """Returns those of some models whose predictions for a dataset's faces may be in the store, newest first."""
    stored = set(store.children(f"datasets/{sha256}/predictions"))
    found = (card.version for card in cards if card.dataset.sha256 == sha256 or f"{card.version}.csv" in stored)
    return sorted(found, reverse=True)


def out_of_fold_key(run_id: str) -> str:
    """Returns the store key of what a run predicted for each face by weights that had not learned from it."""
    return f"runs/{run_id}/out_of_fold.csv"


def read_out_of_fold(store: Store, sha256: str, card: ModelCard) -> NDArray[np.float32]:
    """Returns float32 (N,), the probability of female of every face, by weights that had not learned from that face.

    Args:
        store: where they lie.
        sha256: the dataset.
        card: of the model.

    Raises:
        NotFound: the model's run kept none, or was given another dataset.
    """
    if card.dataset.sha256 != sha256:
        raise NotFound(f"version {card.version} was trained on other faces")
    return _read(store.get(out_of_fold_key(card.run_id)))


def _read(data: bytes) -> NDArray[np.float32]:
    rows = csv.DictReader(io.StringIO(data.decode()))
    return np.array([float(row["probability_female"]) for row in rows], np.float32)


def write_predictions(store: Store, sha256: str, version: int, names: Sequence[str], results: str) -> None:
    """Keeps what a job predicted for a dataset's archive as the predictions for its faces.

    Two entries of an archive may share a name. Faces and results are in the archive's order, so that the first of them
    is the first of that name here, too.

    Args:
        store: where they go.
        sha256: the dataset.
        version: the model.
        names: of the dataset's faces, in their order.
        results: of the job, as CSV.

    Raises:
        GenderlineError: the job has no prediction for one of the faces.
    """
    found: dict[str, deque[str]] = defaultdict(deque)
    for row in csv.DictReader(io.StringIO(results, newline="")):
        if row["probability_female"]:
            found[row["name"]].append(row["probability_female"])
    lines = ["index,probability_female"]
    for index, name in enumerate(names):
        probabilities = found[str(result_row(name, 0.5)[0])]  # the name as results write it
        if not probabilities:
            raise GenderlineError(f"the job has no prediction for {name[:80]!r}, face {index} of the dataset")
        lines.append(f"{index},{probabilities.popleft()}")
    store.put(predictions_key(sha256, version), ("\n".join(lines) + "\n").encode())

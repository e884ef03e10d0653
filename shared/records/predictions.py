"""What a model predicted for every face of a dataset: beside its run if it was trained on it, else the dataset."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import GenderlineError, NotFound
from shared.records.model_card import ModelCard
from shared.records.record import DamagedRecord
from shared.records.results import result_row
from shared.store.base import Store

_LOG = logging.getLogger(__name__)

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


def read_predictions(store: Store, sha256: str, card: ModelCard, faces: int) -> NDArray[np.float32]:
    """Returns float32 (N,), the probability of female of every face of a dataset.

    A damaged file is logged and passed over: one model's predictions must not keep the others from being shown, and a
    job can predict the dataset anew.

    Args:
        store: where they lie.
        sha256: the dataset.
        card: of the model.
        faces: how many the dataset has.

    Raises:
        NotFound: the model has not predicted this dataset, or what it predicted is damaged.
    """
    for key in predictions_keys(sha256, card):
        try:
            return _read(store, key, faces)
        except NotFound:
            continue
        except DamagedRecord as error:
            _LOG.warning("%s; version %d counts as one that has not predicted the dataset", error, card.version)
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


def read_out_of_fold(store: Store, sha256: str, card: ModelCard, faces: int) -> NDArray[np.float32]:
    """Returns float32 (N,), the probability of female of every face, by weights that had not learned from that face.

    Args:
        store: where they lie.
        sha256: the dataset.
        card: of the model.
        faces: how many the dataset has.

    Raises:
        NotFound: the model's run kept none, or was given another dataset, or what it kept is damaged.
    """
    if card.dataset.sha256 != sha256:
        raise NotFound(f"version {card.version} was trained on other faces")
    try:
        return _read(store, out_of_fold_key(card.run_id), faces)
    except DamagedRecord as error:
        _LOG.warning("%s; label errors are looked for without it", error)
        raise NotFound(f"what version {card.version} predicted out of fold is damaged") from None


def _read(store: Store, key: str, faces: int) -> NDArray[np.float32]:
    """Reads a file of predictions.

    Raises:
        NotFound: there is none.
        DamagedRecord: it was cut short, is no such file, or is about another number of faces.
    """
    data = store.get(key)
    try:
        rows = csv.DictReader(io.StringIO(data.decode()))
        found = np.array([float(row["probability_female"]) for row in rows], np.float32)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DamagedRecord(key, f"it is no table of predictions: {error}") from None
    if len(found) != faces or not data.endswith(b"\n"):
        cut = "" if data.endswith(b"\n") else ", the last one cut"
        raise DamagedRecord(key, f"found {len(found):,} predictions{cut}, expected {faces:,}, one for each face")
    return found


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

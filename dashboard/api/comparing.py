"""Comparisons of models that a request asks for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
from flask import request
from numpy.typing import NDArray

from dashboard.api.uploads import parse_integer, parse_number
from dashboard.context import dashboard
from shared.datasets.columns import EXCLUDED, Dataset
from shared.errors import Conflict, InvalidMessage, short_repr
from shared.measures.at_threshold import Measures, measure
from shared.measures.comparison import Comparison, MatrixCell, compare
from shared.measures.groups import Labels
from shared.measures.labels import ALL_FACES
from shared.records.dataset import SPLITS
from shared.records.predictions import THRESHOLD
from shared.records.record import StoredModel

_MODELS: Final = 12
_DATASETS: Final = 8


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """Two models and the faces to compare them on.

    Attributes:
        first: version of the first model, the one before.
        second: version of the second.
        dataset: SHA-256 of the dataset.
        split: a part of it, or `all`.
        threshold: predicted female from here on, by both.
        labels: the hash of the edits that make the labels, or `archive`; empty for those in force now.
    """

    first: int
    second: int
    dataset: str
    split: str
    threshold: float
    labels: str

    def as_query(self) -> dict[str, Any]:
        """Returns the query of an address that asks for the same."""
        return {
            "first": self.first,
            "second": self.second,
            "dataset": self.dataset,
            "split": self.split,
            "threshold": self.threshold,
            "labels": self.labels,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of a comparison.

    Attributes:
        comparison: the result; None where predictions are missing, or there are no faces.
        missing: the versions that have not predicted the dataset.
    """

    comparison: Comparison | None
    missing: list[int]


class MatrixDataset(StoredModel):
    """A column of the matrix."""

    sha256: str
    name: str | None


class Matrix(StoredModel):
    """The newest models on the newest datasets.

    Attributes:
        models: versions, newest first: the rows.
        datasets: those with the newest runs first: the columns.
        cells: a row after the other.
    """

    models: list[int]
    datasets: list[MatrixDataset]
    cells: list[MatrixCell]

    def row(self, version: int) -> list[MatrixCell]:
        """Returns a model's cells, in the order of the datasets."""
        return [cell for cell in self.cells if cell.version == version]


def requested_comparison() -> CompareRequest | None:
    """Returns what the request's query asks to compare; None where it does not name two models.

    Without a dataset it is the one that the second model was trained on, or the first where that is not in the store.

    Raises:
        InvalidMessage: a value makes no sense.
        NotFound: there is no such model.
    """
    first, second = (parse_integer(request.args.get(name), name, 1, 10**9) for name in ("first", "second"))
    if first is None or second is None:
        return None
    cache = dashboard().store_cache
    own = [cache.card(version).dataset.sha256 for version in (second, first)]
    dataset = request.args.get("dataset") or next((sha256 for sha256 in own if cache.summary(sha256)), own[0])
    split, threshold = _requested_split(), _requested_threshold()
    return CompareRequest(first, second, dataset, split, threshold, _requested_labels())


def compare_models(chosen: CompareRequest) -> Compared:
    """Compares two models.

    Raises:
        NotFound: the dataset is not there, or not decoded, or has no such edits.
        Conflict: the dataset has no faces of the split.
    """
    cache = dashboard().store_cache
    data = cache.edited(chosen.dataset, chosen.labels)
    first, second = (cache.predictions(chosen.dataset, version) for version in (chosen.first, chosen.second))
    if first is None or second is None:
        both = {chosen.first: first, chosen.second: second}
        return Compared(None, [version for version, found in both.items() if found is None])
    labels = Labels(data.gender, data.ethnicity, data.age)
    comparison = compare(labels, first, second, _members(data, chosen.split), chosen.threshold)
    if comparison is None:
        raise Conflict(f"dataset {chosen.dataset[:12]} has no {chosen.split} faces to compare on")
    return Compared(comparison, [])


def measure_requested(version: int) -> Measures:
    """Returns how well a model predicts the faces that the request's query names.

    Without `labels`, those of its own dataset are the ones that it was trained with, whatever was edited later.

    Raises:
        InvalidMessage: a value makes no sense.
        NotFound: there is no such model or dataset.
        Conflict: the model has not predicted the dataset, or there are no such faces.
    """
    cache = dashboard().store_cache
    own = cache.card(version).dataset
    dataset = request.args.get("dataset") or own.sha256
    probabilities = cache.predictions(dataset, version)
    if probabilities is None:
        raise Conflict(
            f"model {version} has not predicted dataset {dataset[:12]}; "
            f"start that with POST /api/v1/datasets/{dataset}/predictions?version={version}"
        )
    labels = request.args.get("labels", own.labels if dataset == own.sha256 else "")
    data, split = cache.edited(dataset, labels), _requested_split()
    measures = measure(
        Labels(data.gender, data.ethnicity, data.age), probabilities, _members(data, split), _requested_threshold()
    )
    if measures is None:
        raise Conflict(f"dataset {dataset[:12]} has no {split} faces")
    return measures


def _requested_split() -> str:
    split = request.args.get("split") or "test"
    if split not in {*SPLITS, ALL_FACES}:
        raise InvalidMessage(f"split is {short_repr(split)}; expected {', '.join(SPLITS)} or {ALL_FACES}")
    return split


def _requested_labels() -> str:
    return request.args.get("labels", "")


def _requested_threshold() -> float:
    threshold = parse_number(request.args.get("threshold"), "threshold", 0, 1)
    return THRESHOLD if threshold is None else threshold


def _members(data: Dataset, split: str) -> NDArray[np.bool_]:
    """Returns bool (N,): which faces are in a split, or in any; those that an edit left out are in none."""
    numbers: dict[str, int] = {name: i for i, name in enumerate(SPLITS)}
    return np.asarray(data.split == numbers[split] if split in numbers else data.split != EXCLUDED)


def accuracy_matrix() -> Matrix:
    """Returns the accuracy of the newest models on the test faces of the newest datasets."""
    cache = dashboard().store_cache
    cards = cache.cards(_MODELS).records
    decoded = ((sha256, name) for sha256, name in cache.named_datasets() if cache.readable_summary(sha256))
    datasets = [MatrixDataset(sha256=sha256, name=name) for sha256, name in islice(decoded, _DATASETS)]
    return Matrix(
        models=[card.version for card in cards],
        datasets=datasets,
        cells=[
            MatrixCell(
                version=card.version,
                dataset=dataset.sha256,
                accuracy=cache.test_accuracy(dataset.sha256, card.version),
                trained_on_it=card.dataset.sha256 == dataset.sha256,
            )
            for card in cards
            for dataset in datasets
        ],
    )

"""What the pages of a run and of its model begin with: how good the model is, for whom, and what the gate says."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from flask import url_for
from numpy.typing import NDArray

from dashboard.context import dashboard
from shared.datasets.columns import Dataset
from shared.datasets.face_filter import FaceFilter, face_view, select_faces
from shared.errors import NotFound
from shared.measures.at_threshold import measure, measured_before
from shared.measures.groups import Labels
from shared.records.dataset import ARCHIVE_LABELS, SPLITS
from shared.records.evaluation import MIN_GROUP, Evaluation
from shared.records.model_card import ModelCard
from shared.records.predictions import THRESHOLD

_SUSPECTS: Final = 12


def answer_view(evaluation: Evaluation, sha256: str | None, card: ModelCard | None, threshold: float) -> dict[str, Any]:
    """Returns what `answer.html` shows.

    Args:
        evaluation: of the run.
        sha256: its dataset.
        card: of its model; None where there is none, or it was deleted.
        threshold: predicted female from here on.
    """
    scored = None if card is None or sha256 is None else find_scored(sha256, card)
    labels = labels_of(card) if scored and card else ""
    measures, suspects, version = measured_before(evaluation), [], None
    if scored is not None and card is not None:
        data, probabilities = scored
        labelled = Labels(data.gender, data.ethnicity, data.age)
        measures = measure(labelled, probabilities, data.split == SPLITS.index("test"), threshold) or measures
        suspects = _suspects(data.sha256, probabilities, card.version)
        version = card.version

    def faces_url(**filters: Any) -> str:
        query = FaceFilter(version=version, split="test", labels=labels, threshold=threshold, **filters).as_query()
        return url_for("datasets.show_dataset", sha256=sha256, **query) + "#faces"

    return {
        "evaluation": evaluation,
        "measures": measures,
        "gate": card.gate if card else None,
        "scored": version is not None,
        "threshold": threshold if version is not None else THRESHOLD,
        "faces_url": faces_url,
        "suspects": suspects,
        "suspects_query": FaceFilter(version=version, sort="suspects").as_query(),
        "min_group": MIN_GROUP,
    }


def find_scored(sha256: str, card: ModelCard) -> tuple[Dataset, NDArray[np.float32]] | None:
    """Returns a model's own dataset, with the labels that it was measured by, and its predictions; None without."""
    cache = dashboard().store_cache
    try:
        probabilities = cache.predictions(sha256, card.version)
        data = cache.edited(sha256, card.dataset.labels)
        return None if probabilities is None else (data, probabilities)
    except NotFound:
        return None


def labels_of(card: ModelCard) -> str:
    """Returns the filter's `labels` for the labels that a model was measured on, whatever was edited later."""
    corrections = dashboard().store_cache.corrections(card.dataset.sha256)
    return card.dataset.edits or ("" if corrections.is_empty else ARCHIVE_LABELS)


def _suspects(sha256: str, probabilities: NDArray[np.float32], version: int) -> list[dict[str, Any]]:
    """Returns the faces whose labels now are the likeliest to be wrong: one that was corrected is so no more."""
    cache = dashboard().store_cache
    data, out_of_fold = cache.edited(sha256), cache.out_of_fold_predictions(sha256, version)
    order = select_faces(data, probabilities, FaceFilter(sort="suspects"), None, out_of_fold)
    return [face_view(data, probabilities, int(i)) for i in order[:_SUSPECTS]]

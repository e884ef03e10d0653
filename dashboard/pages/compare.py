"""Two models on the same faces, and all models on all datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from dashboard.api.comparing import CompareRequest, accuracy_matrix, compare_models, requested_comparison
from dashboard.api.uploads import parse_integer
from dashboard.context import dashboard
from shared.datasets.columns import Dataset
from shared.datasets.face_filter import AGREEMENTS, FaceFilter, face_view
from shared.errors import InvalidMessage
from shared.measures.labels import ALL_FACES
from shared.records.dataset import ARCHIVE_LABELS, SPLITS
from shared.records.evaluation import MIN_GROUP
from shared.records.model_card import caution_of_strangers

_FACES_SHOWN: Final = 12
_QUERY: Final = ("first", "second", "dataset", "split", "threshold", "labels")

blueprint = Blueprint("compare", __name__)


@blueprint.get("/compare")
def compare() -> str:
    """Shows two models on the same faces, and the accuracy of all models on all datasets."""
    parts = dashboard()
    cache = parts.store_cache
    cards = cache.cards().records
    matrix = accuracy_matrix()
    chosen = requested_comparison()
    result: dict[str, Any] = {"comparison": None, "missing": []}
    if chosen is not None:
        result = _compare(chosen)
    return render_template(
        "compare_models.html",
        chosen=chosen,
        versions=[card.version for card in cards],
        names=_names(),
        datasets=[(sha256, name) for sha256, name, _ in cache.decoded_datasets()],
        splits=(*SPLITS, ALL_FACES),
        matrix=matrix,
        scoring=parts.scoring.state,
        aliases=parts.client.registry.find_aliases()[0],
        agreements=AGREEMENTS,
        min_group=MIN_GROUP,
        **result,
    )


@blueprint.post("/compare/predict")
def score() -> Response:
    """Starts predicting a dataset's faces by a model that has not done so, and shows the comparison again."""
    version = parse_integer(request.form.get("version"), "version", 1, 10**9)
    if version is None:
        raise InvalidMessage("version is missing; expected a model's number")
    dashboard().scoring.score(request.form.get("dataset", ""), version)
    # The dataset of the form need not be the one of the comparison, which the address names.
    back: dict[str, Any] = {name: request.args[name] for name in _QUERY if name in request.args}
    return redirect(url_for("compare.compare", **back), 303)


def _compare(chosen: CompareRequest) -> dict[str, Any]:
    found = compare_models(chosen)
    if found.comparison is None:
        return {"comparison": None, "missing": found.missing}
    data = dashboard().store_cache.edited(chosen.dataset, chosen.labels)

    cards = [dashboard().store_cache.card(version) for version in (chosen.first, chosen.second)]

    def faces_url(**filters: Any) -> str:
        query = _filter(chosen, **filters).as_query()
        return url_for("datasets.show_dataset", sha256=chosen.dataset, **query) + "#faces"

    return {
        "comparison": found.comparison,
        "missing": [],
        "by_labels": _by_labels(chosen),
        "sentence": found.comparison.describe(chosen.first, chosen.second),
        "caution": caution_of_strangers(cards, chosen.dataset),
        "faces_url": faces_url,
        "turned_correct": _views(data, chosen, found.comparison.turned_correct),
        "turned_wrong": _views(data, chosen, found.comparison.turned_wrong),
        "correct_query": _filter(chosen, agreement="only_second").as_query(),
        "wrong_query": _filter(chosen, agreement="only_first").as_query(),
        "csv_url": url_for("api.compare_models", **chosen.as_query()),
    }


def _by_labels(chosen: CompareRequest) -> list[dict[str, Any]]:
    """Returns the same comparison by each kind of labels: those of the archive, those that a run was given, and now."""
    cache = dashboard().store_cache
    kinds = {ARCHIVE_LABELS: "Labels of the archive"}
    for version in (chosen.first, chosen.second):
        card = cache.card(version)
        if card.dataset.sha256 == chosen.dataset and card.dataset.edits:
            kinds.setdefault(card.dataset.edits, f"Labels that model {version} was trained with")
    corrections = cache.corrections(chosen.dataset)
    if not corrections.is_empty and corrections.sha256 not in kinds:
        kinds[""] = "Labels as corrected now"
    if len(kinds) == 1:
        return []
    now = "" if corrections.is_empty else corrections.sha256
    rows = []
    for labels, words in kinds.items():
        asked = replace(chosen, labels=labels)
        rows.append(
            {
                "words": words,
                "chosen": labels == chosen.labels or (not chosen.labels and labels == now),
                "comparison": compare_models(asked).comparison,
                "url": url_for("compare.compare", **asked.as_query()),
            }
        )
    return rows


def _filter(chosen: CompareRequest, **filters: Any) -> FaceFilter:
    return FaceFilter(
        version=chosen.first,
        other=chosen.second,
        split=chosen.split,
        threshold=chosen.threshold,
        labels=chosen.labels,
        **filters,
    )


def _views(data: Dataset, chosen: CompareRequest, indices: list[int]) -> list[dict[str, Any]]:
    """Returns some faces as the second model predicts them."""
    probabilities = dashboard().store_cache.predictions(data.sha256, chosen.second)
    return [face_view(data, probabilities, index, chosen.threshold) for index in indices[:_FACES_SHOWN]]


def _names() -> dict[int, str]:
    """Returns the names that people gave to models, by version."""
    annotations = dashboard().store_cache.annotations("model")
    return {int(version): found.name for version, found in annotations.items() if found.name}

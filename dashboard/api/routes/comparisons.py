"""Calls that compare models."""

from __future__ import annotations

from flask import Response, jsonify

from dashboard.api.blueprint import blueprint
from dashboard.api.comparing import accuracy_matrix, requested_comparison
from dashboard.api.comparing import compare_models as run_comparison
from dashboard.context import dashboard
from shared.errors import Conflict, InvalidMessage
from shared.records.model_card import caution_of_strangers


@blueprint.get("/compare")
def compare_models() -> Response:
    """Compares two versions on the same faces."""
    chosen = requested_comparison()
    if chosen is None:
        raise InvalidMessage("first or second is missing; expected two versions to compare")
    found = run_comparison(chosen)
    if found.comparison is None:
        versions = " and ".join(str(version) for version in found.missing)
        raise Conflict(
            f"model {versions} has not predicted dataset {chosen.dataset[:12]}; "
            f"start that with POST /api/v1/datasets/{chosen.dataset}/predictions?version={found.missing[0]}"
        )
    sentence = found.comparison.describe(chosen.first, chosen.second)
    asked = {"versions": [chosen.first, chosen.second], **chosen.as_query()}
    asked = {key: asked[key] for key in ("versions", "dataset", "split", "threshold", "labels")}
    cards = map(dashboard().store_cache.card, (chosen.first, chosen.second))
    caution = caution_of_strangers(cards, chosen.dataset)
    return jsonify({**asked, "sentence": sentence, "caution": caution, **found.comparison.as_dict()})


@blueprint.get("/compare/matrix")
def get_matrix() -> Response:
    """Tells the accuracy of the newest versions on the newest datasets."""
    return jsonify(accuracy_matrix().as_dict())

"""Calls about models: reading, promoting, challenging."""

from __future__ import annotations

from typing import Final, get_args

from flask import Response, jsonify, request

from dashboard.api.answers import describe_damaged, send_stored_file
from dashboard.api.blueprint import blueprint
from dashboard.api.comparing import measure_requested
from dashboard.api.exports import send_export
from dashboard.api.fields import read_field, read_page
from dashboard.api.managing import annotate, delete, describe_annotation, read_tag
from dashboard.api.uploads import parse_integer
from dashboard.auth import current_user
from dashboard.context import dashboard
from shared.errors import InvalidMessage, short_repr
from shared.records.model_card import ServedPrecision
from shared.records.registry import Registry

_REASON_LENGTH: Final = 500


_MODEL_SUMMARY: Final = {"name", "version", "run_id", "created", "dataset", "metrics", "params", "file"}


@blueprint.get("/models")
def list_models() -> Response:
    """Lists the versions, newest first, and which of them are in use."""
    parts = dashboard()
    aliases, damaged = parts.client.registry.find_aliases()
    found, annotations = parts.store_cache.cards(*read_page(), read_tag()), parts.store_cache.annotations("model")
    refusals = parts.refusals([card.version for card in found.records])
    models = [
        {
            **card.model_dump(mode="json", include=_MODEL_SUMMARY),
            "annotation": describe_annotation(annotations.get(str(card.version))),
            "refused": refusals.get(card.version),
        }
        for card in found.records
    ]
    figures = parts.client.shadow()
    return jsonify(
        {
            "aliases": aliases.as_dict(),
            "shadow": figures.summary() if figures else None,
            "models": models,
            "total": found.total,
            "damaged": describe_damaged(damaged + found.damaged),
        }
    )


@blueprint.get("/models/<int:version>")
def get_model(version: int) -> Response:
    """Returns a version's card."""
    parts = dashboard()
    return jsonify(
        {
            **parts.store_cache.card(version).as_dict(),
            "annotation": describe_annotation(parts.store_cache.annotation("model", str(version))),
            "refused": parts.refusals([version]).get(version),
        }
    )


@blueprint.get("/models/<int:version>/model.onnx")
def get_model_file(version: int) -> Response:
    """Sends a version's ONNX file, or a variant of it."""
    cache = dashboard().store_cache
    cache.card(version)
    asked = request.args.get("precision") or "float32"
    precision = next((known for known in get_args(ServedPrecision) if known == asked), None)
    if precision is None:
        raise InvalidMessage(f"precision is {short_repr(asked)}; expected {', '.join(get_args(ServedPrecision))}")
    name = f"gender-{version}.onnx" if precision == "float32" else f"gender-{version}-{precision}.onnx"
    return send_stored_file(Registry.model_key(version, precision), "application/octet-stream", name)


@blueprint.get("/models/<int:version>/card.md")
def get_model_card(version: int) -> Response:
    """Sends a version's card for people."""
    dashboard().store_cache.card(version)
    return send_stored_file(Registry.card_text_key(version), "text/markdown", f"gender-{version}.md")


@blueprint.get("/models/<int:version>/export.zip")
def export_model(version: int) -> Response:
    """Sends a version with all of its variants and its card."""
    return send_export("model", str(version))


@blueprint.get("/models/<int:version>/measures")
def measure_model(version: int) -> Response:
    """Tells how well a version predicts the faces of a dataset at a decision threshold."""
    measures = measure_requested(version)
    return jsonify(measures.as_dict())


@blueprint.post("/models/<int:version>/promote")
def promote_model(version: int) -> Response:
    """Makes a version the champion."""
    parts = dashboard()
    parts.client.promote(version, read_reason(), user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


@blueprint.post("/models/<int:version>/challenge")
def challenge_model(version: int) -> Response:
    """Makes a version the challenger."""
    parts = dashboard()
    parts.client.challenge(version, read_reason(), user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


@blueprint.delete("/models/<int:version>/challenge")
def dismiss_model(version: int) -> Response:
    """Takes the challenger's alias away from a version."""
    parts = dashboard()
    parts.client.dismiss(read_reason(), version, user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


@blueprint.post("/models/rollback")
def roll_back_model() -> Response:
    """Makes the previous champion the champion again."""
    parts = dashboard()
    parts.client.rollback(read_reason(), expected=read_expected_version(), user=current_user())
    return jsonify({"aliases": parts.client.registry.aliases().as_dict()})


def read_reason() -> str:
    """Returns why, as the request says it: kept with the promotion."""
    text = (read_field("reason") or "").strip()
    if len(text) > _REASON_LENGTH:
        raise InvalidMessage(f"reason has {len(text)} characters; expected at most {_REASON_LENGTH}")
    return text or "by hand, over HTTP"


def read_expected_version() -> int | None:
    """Returns the version that the request expects to roll back to; None where it names none."""
    return parse_integer(read_field("version"), "version", 1, 10**9)


@blueprint.patch("/models/<int:version>")
def annotate_model(version: int) -> Response:
    """Changes a model's name, note and tags."""
    return annotate("model", str(version))


@blueprint.delete("/models/<int:version>")
def delete_model(version: int) -> Response:
    """Deletes a model."""
    return delete("model", str(version))

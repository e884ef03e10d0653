"""The calls that predict images at once, and explain a prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from flask import Response, jsonify

from dashboard.api.blueprint import blueprint
from dashboard.api.fields import read_field
from dashboard.api.uploads import parse_integer, parse_number, receive_images
from dashboard.context import dashboard
from shared.client import Client
from shared.errors import Retryable
from shared.explanation import explain as explain_image
from shared.faces.decode import ImageLimits
from shared.messages import SCHEMA

ANSWER_S: Final = 30.0
"""How long a request waits for predictions unless it says otherwise."""


_LONGEST_ANSWER_S: Final = 120.0


@blueprint.post("/predictions")
def predict() -> Response:
    """Predicts images through the queue and waits for the answer."""
    parts = dashboard()
    names, images = receive_images(parts.settings.max_image_bytes)
    version = parse_integer(read_field("model_version"), "model_version", 1, 10**9)
    timeout_s = parse_number(read_field("timeout_s"), "timeout_s", 0.05, _LONGEST_ANSWER_S) or ANSWER_S
    return jsonify(predict_images(parts.client, names, images, version, timeout_s))


@blueprint.post("/explanations")
def explain() -> Response:
    """Explains the prediction of one image: how far it moves when a patch of the face is covered."""
    parts = dashboard()
    require_broker()
    _, images = receive_images(parts.settings.max_image_bytes)
    version = parse_integer(read_field("model_version"), "model_version", 1, 10**9)
    found = explain_image(
        parts.client,
        images[0],
        ImageLimits.from_settings(parts.settings),
        model_version=version,
        timeout_s=ANSWER_S,
    )
    return jsonify(dataclasses.asdict(found))


def require_broker() -> None:
    """Raises `Retryable` at once where the broker is known not to answer: asking it takes seconds."""
    if dashboard().event_hub.away:
        raise Retryable("the broker does not answer, so there are no predictions now; try again when it is back")


def predict_images(
    client: Client, ids: Sequence[str | None], images: Sequence[bytes], version: int | None, timeout_s: float
) -> dict[str, Any]:
    """Returns the contract's reply for some images, each under its id."""
    entries, model = client.predict(images, model_version=version, timeout_s=timeout_s)
    return {
        "schema": SCHEMA,
        "model": model,
        "predictions": [{**entry, "id": key} for key, entry in zip(ids, entries, strict=True)],
    }

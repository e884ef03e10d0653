"""Predict: one image, its label beside the prediction, and the areas that mattered."""

from __future__ import annotations

import base64
import random
import time

from flask import Blueprint, Response, jsonify, render_template, request

from dashboard.api.routes.predictions import ANSWER_S, predict_images, require_broker
from dashboard.api.uploads import parse_integer, receive_images
from dashboard.context import dashboard
from shared.clock import now_iso
from shared.datasets.columns import Dataset
from shared.datasets.face_filter import FaceFilter, face_view, select_faces
from shared.datasets.face_selection import find_predictions
from shared.errors import GenderlineError, NotFound
from shared.faces.decode import ImageLimits, decode_face
from shared.faces.labels import GENDERS, label_or_none
from shared.faces.png import encode_png

blueprint = Blueprint("predict", __name__)


@blueprint.get("/predict")
def predict() -> str:
    """Shows a face of a dataset, or the place to drop images of one's own."""
    cache = dashboard().store_cache
    decoded = list(cache.decoded_datasets())
    chosen = request.args.get("dataset") or (decoded[0][0] if decoded else None)
    face, note = None, ""
    if chosen is not None:
        data = cache.edited(chosen)
        index, note = _chosen_face(data)
        face = face_view(data, None, index)
    return render_template(
        "predict.html",
        datasets=[(sha256, name, summary.faces) for sha256, name, summary in decoded],
        chosen=chosen,
        face=face,
        note=note,
        versions=[card.version for card in cache.cards().records],
        champion=cache.champion(),
        version=request.args.get("version", None, int),
    )


@blueprint.post("/predict/image")
def predict_image() -> Response:
    """Predicts one image and returns it as the network sees it, with the label that its name carries.

    The answer: `{"reply", "seconds", "seen", "true_gender"}`; `seen` is a PNG as a data URL.
    """
    parts = dashboard()
    require_broker()
    names, images = receive_images(parts.settings.max_image_bytes)
    face = decode_face(images[0], ImageLimits.from_settings(parts.settings))
    name = request.args.get("name", names[0] or "")[:1000]
    started = time.perf_counter()
    reply = predict_images(parts.client, [None], images[:1], _version(), ANSWER_S)
    seconds = time.perf_counter() - started
    entry = reply["predictions"][0]
    if "error" in entry:
        raise GenderlineError(entry["error"]["message"], code=entry["error"]["code"])
    version = reply["model"]["version"]
    parts.recent_predictions.appendleft({**entry, "name": name or "an image", "at": now_iso(), "version": version})
    label = label_or_none(name)
    return jsonify(
        {
            "reply": reply,
            "seconds": round(seconds, 4),
            "seen": f"data:image/png;base64,{base64.b64encode(encode_png(face.pixels)).decode()}",
            "true_gender": None if label is None else GENDERS[label.gender],
        }
    )


def _version() -> int | None:
    return parse_integer(request.args.get("model_version"), "model_version", 1, 10**9)


def _chosen_face(data: Dataset) -> tuple[int, str]:
    """Returns the face that the query asks for, and what to say of the choice."""
    if len(data) == 0:
        raise NotFound("this dataset has no faces")
    asked = request.args.get("face", 0, int)
    now = min(max(0, asked), len(data) - 1)
    pick = request.args.get("pick", "")
    if pick == "random":
        return random.randrange(len(data)), ""
    if pick == "wrong":
        cache = dashboard().store_cache
        chosen = request.args.get("version", None, int)
        version, probabilities = (
            (chosen, cache.predictions(data.sha256, chosen)) if chosen else find_predictions(cache, data.sha256)
        )
        if probabilities is None:
            which = f"Model {chosen}" if chosen else "No model"
            has = "has not" if chosen else "has"
            return now, f"{which} {has} predicted this dataset yet. Predict all its faces on the dataset's page first."
        wrong = select_faces(data, probabilities, FaceFilter(result="wrong"))
        later = wrong[wrong > now]
        if len(wrong) == 0:
            return now, f"Model {version} predicts every face of this dataset correctly."
        return int(later[0] if len(later) else wrong[0]), f"Misclassified by model {version}."
    if search := request.args.get("search", "").strip():
        found = select_faces(data, None, FaceFilter(search=search[:200]))
        if len(found) == 0:
            return now, "No file name contains that. Try a shorter part of it."
        return int(found[0]), f"First of {len(found):,} faces whose file name contains it."
    if now != asked:
        return now, f"Face {asked} does not exist: the dataset has {len(data):,}, numbered from 0. This is face {now}."
    return now, ""

"""Models: the versions, one version's card, promotion and rollback."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from dashboard.api.routes.models import read_expected_version, read_reason
from dashboard.auth import current_user
from dashboard.context import dashboard
from dashboard.pages.answer import answer_view
from dashboard.pages.manage import annotation_view, tag_filter
from dashboard.workers import summarize_monitoring
from shared.datasets.face_filter import read_threshold

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
def list_models() -> str:
    """Shows all versions and which of them are in use."""
    parts = dashboard()
    aliases, damaged = parts.client.registry.find_aliases()
    tagged = tag_filter("model")
    cards = parts.store_cache.cards(tag=tagged["tag"] or None)
    workers = [worker for worker in parts.workers.states() if worker.state.get("service") == "inference"]
    return render_template(
        "models.html",
        cards=cards.records,
        damaged=damaged + cards.damaged + tagged["damaged_annotations"],
        **tagged,
        aliases=aliases,
        refusals=parts.refusals([card.version for card in cards.records]),
        history=[] if damaged else list(reversed(parts.client.registry.history()))[:20],
        workers=workers,
        shadow=None if damaged else parts.client.shadow(),
        watch=summarize_monitoring(workers),
    )


@blueprint.get("/models/<int:version>")
def show_model(version: int) -> str:
    """Shows a version's card."""
    parts = dashboard()
    card = parts.store_cache.card(version)
    return render_template(
        "model.html",
        card=card,
        has_run=parts.store_cache.find_run(card.run_id) is not None,
        scores_url=url_for("runs.scores", run_id=card.run_id),
        threshold_url=lambda value: url_for("models.show_model", version=version, threshold=value),
        **answer_view(card.evaluation, card.dataset.sha256, card, read_threshold(request.args)),
        about=annotation_view("model", str(version), ""),
        aliases=parts.client.registry.find_aliases()[0],
        refusal=parts.refusals([version]).get(version),
        workers=[worker for worker in parts.workers.states() if worker.state.get("version") == version],
    )


@blueprint.post("/models/<int:version>/promote")
def promote(version: int) -> Response:
    """Makes a version the champion."""
    dashboard().client.promote(version, read_reason(), user=current_user())
    flash(f"Model {version} is the champion now. Workers switch to it between two batches.")
    return redirect(url_for("models.list_models"), 303)


@blueprint.post("/models/rollback")
def roll_back() -> Response:
    """Makes the previous champion the champion again."""
    version = dashboard().client.rollback(read_reason(), expected=read_expected_version(), user=current_user())
    flash(f"Rolled back: model {version} is the champion again.")
    return redirect(url_for("models.list_models"), 303)

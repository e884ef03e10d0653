"""The pages for people."""

from __future__ import annotations

from flask import Blueprint, render_template

from dashboard.context import dashboard

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
def overview() -> str:
    """Shows the state of everything at a glance."""
    parts = dashboard()
    return render_template(
        "overview.html",
        runs=parts.catalog.runs()[:8],
        cards=parts.catalog.cards(),
        aliases=parts.client.registry.aliases(),
        depths={parts.broker.topology.short(queue): depth for queue, depth in parts.broker.depths().items()},
        workers=parts.presence.workers(),
    )

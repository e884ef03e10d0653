"""Calls about the system: its state, its events, its description."""

from __future__ import annotations

import dataclasses

from flask import Response, jsonify, request
from werkzeug.datastructures import Headers

from dashboard.api.blueprint import blueprint
from dashboard.api.document import document
from dashboard.context import dashboard


@blueprint.get("/status")
def status() -> Response:
    """Returns what the overview shows: workers, queues, speed and aliases."""
    parts = dashboard()
    return jsonify(
        {
            "workers": [
                {**worker.state, "silent_s": round(worker.silent_s, 1), "alive": worker.alive}
                for worker in parts.workers.states()
            ],
            "queues": {
                parts.broker.topology.short(queue): dataclasses.asdict(depth)
                for queue, depth in parts.broker.depths().items()
            },
            "speed": dataclasses.asdict(parts.workers.speed()),
            "aliases": parts.client.registry.find_aliases()[0].as_dict(),
        }
    )


@blueprint.get("/events")
def events() -> Response:
    """Streams the broker's events."""
    topics = request.args.get("topics", "#").split(",")
    last = request.headers.get("Last-Event-ID") or request.args.get("last_event_id")
    gone = request.environ.get("waitress.client_disconnected", lambda: False)
    stream = dashboard().event_hub.open_stream(topics, last, gone)
    # Buffering proxies would hold events back.
    headers = Headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    return Response(stream, mimetype="text/event-stream", headers=headers)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """Describes this API."""
    return jsonify({**document(), "servers": [{"url": f"{request.script_root}/api/v1"}]})

"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterable

from flask import Blueprint, Flask, Response, current_app, g, jsonify, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from dashboard.context import Dashboard, dashboard
from shared.errors import Retryable

_EXTENSION = "genderline.metrics"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 120)

blueprint = Blueprint("health", __name__)


def register_metrics(app: Flask, parts: Dashboard, registry: CollectorRegistry) -> None:
    """Counts the app's requests in `registry` and shows it at `/metrics`."""
    requests = Counter("genderline_http_requests", "HTTP requests answered", ["endpoint", "status"], registry=registry)
    seconds = Histogram(
        "genderline_http_request_seconds",
        "From a request to the start of its answer",
        ["endpoint"],
        buckets=_BUCKETS,
        registry=registry,
    )
    streams = Gauge("genderline_event_streams", "Event streams open now", registry=registry)
    streams.set_function(lambda: parts.event_hub.streams)

    def start() -> None:
        g.started = time.perf_counter()

    def count(response: Response) -> Response:
        # The endpoint's name, not the path: a closed set, however many faces are looked at.
        endpoint = request.endpoint or "unknown"
        requests.labels(endpoint, str(response.status_code)).inc()
        seconds.labels(endpoint).observe(time.perf_counter() - g.started)
        return response

    # First in line: a request that the guard turns away is counted too.
    app.before_request_funcs.setdefault(None, []).insert(0, start)
    app.after_request(count)
    app.extensions[_EXTENSION] = registry
    app.register_blueprint(blueprint)


@blueprint.get("/healthz")
def healthz() -> Response:
    """Says that the process answers."""
    return jsonify({"alive": True})


@blueprint.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Says whether broker and store answer too, and whether events reach the pages."""
    parts = dashboard()
    state = {
        "broker": _is_reachable(parts.broker.ping),
        "store": _is_reachable(parts.store.ping),
        "events": parts.event_hub.is_listening,
    }
    ready = all(state.values())
    troubles = {"broker_trouble": parts.broker.trouble, "store_trouble": parts.store.trouble}
    said = {name: trouble and trouble.text for name, trouble in troubles.items()}
    return jsonify({"ready": ready, **state, **said}), 200 if ready else 503


@blueprint.get("/metrics")
def metrics() -> Response:
    """Shows the metrics in the format that the scraper asks for."""
    registry: CollectorRegistry = current_app.extensions[_EXTENSION]
    names: Iterable[str] = request.args.getlist("name[]")
    chosen = registry.restricted_registry(names) if names else registry
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(chosen), content_type=content_type)


def _is_reachable(ping: object) -> bool:
    try:
        return bool(callable(ping) and ping())
    except Retryable:
        return False

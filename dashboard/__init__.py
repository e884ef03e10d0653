"""The dashboard: pages for people and the HTTP API, over the store and the broker's events."""

from __future__ import annotations

from flask import Flask
from prometheus_client import CollectorRegistry

from dashboard.api import routes
from dashboard.api.uploads import DashboardRequest
from dashboard.auth import register_auth
from dashboard.context import EXTENSION, Dashboard
from dashboard.errors import register_errors
from dashboard.event_stream import EventHub
from dashboard.health import register_metrics
from dashboard.incoming import IncomingUploads
from dashboard.pages import register_pages
from dashboard.pages.filters import register_formats
from dashboard.proxy import BehindProxies
from dashboard.store_cache import StoreCache
from dashboard.tasks.samples import SampleTask
from dashboard.tasks.scoring import ScoringTask
from dashboard.workers import WorkerStates
from shared.broker.base import Broker
from shared.client import Client
from shared.runtime.settings import Settings
from shared.store.base import Store
from shared.telemetry.metrics import BrokerCollector, StoreCollector, process_registry

STREAMS = 64
"""Event streams that may be open at once."""


def create_app(broker: Broker, store: Store, settings: Settings, registry: CollectorRegistry | None = None) -> Flask:
    """Makes the WSGI application.

    Args:
        broker: an open broker; it stays the caller's.
        store: likewise.
        settings: as the environment has them.
        registry: where metrics go; by default a new one with this process's figures.

    Returns:
        The app. Its parts are `app.extensions["genderline"]`, a `Dashboard`: call its `start` before serving, and its
        `close` after.
    """
    app = Flask(__name__)
    app.request_class = DashboardRequest
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Flask types the base class, the default provider has it
    client = Client(broker, store)
    workers = WorkerStates()
    store_cache = StoreCache(store)
    parts = Dashboard(
        broker=broker,
        store=store,
        settings=settings,
        client=client,
        store_cache=store_cache,
        workers=workers,
        event_hub=EventHub(broker, [workers.on_event], max_streams=STREAMS),
        uploads=IncomingUploads(store.staging_folder(), settings.max_archive_bytes),
        samples=SampleTask(client),
        scoring=ScoringTask(client, store_cache),
    )
    app.extensions[EXTENSION] = parts
    app.wsgi_app = BehindProxies(app.wsgi_app, settings)  # type: ignore[method-assign]  # Flask's own way of wrapping
    registry = registry or process_registry()
    registry.register(BrokerCollector(broker))
    registry.register(StoreCollector(store))
    register_auth(app, settings)
    register_metrics(app, parts, registry)
    register_errors(app)
    app.register_blueprint(routes.blueprint)
    register_pages(app)
    register_formats(app)
    return app

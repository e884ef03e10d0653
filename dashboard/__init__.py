"""The dashboard: pages for people and the HTTP API, over the store and the broker's events."""

from __future__ import annotations

from flask import Flask
from prometheus_client import CollectorRegistry

from dashboard import api
from dashboard.auth import register_auth
from dashboard.catalog import Catalog
from dashboard.context import EXTENSION, Dashboard
from dashboard.errors import register_errors
from dashboard.formats import register_formats
from dashboard.health import register_metrics
from dashboard.live import Live
from dashboard.pages import register_pages
from dashboard.presence import Presence
from dashboard.samples import Samples
from dashboard.scoring import Scorer
from shared.broker.base import Broker
from shared.client import Client
from shared.metrics import BrokerCollector, process_registry
from shared.settings import Settings
from shared.store.base import Store

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
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Flask types the base class, the default provider has it
    client = Client(broker, store)
    presence = Presence()
    catalog = Catalog(store)
    parts = Dashboard(
        broker=broker,
        store=store,
        settings=settings,
        client=client,
        catalog=catalog,
        presence=presence,
        live=Live(broker, [presence.hear], max_streams=STREAMS),
        samples=Samples(client),
        scorer=Scorer(client, catalog),
    )
    app.extensions[EXTENSION] = parts
    registry = registry or process_registry()
    registry.register(BrokerCollector(broker))
    register_auth(app, settings)
    register_metrics(app, parts, registry)
    register_errors(app)
    app.register_blueprint(api.blueprint)
    register_pages(app)
    register_formats(app)
    return app

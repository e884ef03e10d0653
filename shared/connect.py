"""Opens the broker, the store and a client that the settings name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from shared.broker import open_broker
from shared.broker.base import Access, Broker
from shared.client import Client
from shared.runtime.settings import Settings, SettingsError, variable
from shared.store import open_store
from shared.store.base import Store, json_bytes
from shared.topology import Topology

STORE_FORMAT: Final = 1
"""Goes up when a release can no longer read what an older one wrote."""
_FORMAT_KEY: Final = "format.json"


def open_broker_for(settings: Settings) -> Broker:
    """Opens the broker of the settings, with their queues and limits.

    Raises:
        BrokerError: the broker cannot be reached, or its queues were declared with other arguments.
        SettingsError: its URL has a parameter that does not exist, or a wrong value of one.
    """
    try:
        return open_broker(
            settings.broker_url,
            Topology(settings.queue_prefix),
            lease_s=settings.lease_s,
            delivery_limit=settings.delivery_limit,
            queue_limit=settings.queue_limit,
            access=Access(
                ca_file=settings.broker_ca_file,
                cert_file=settings.broker_cert_file,
                key_file=settings.broker_key_file,
                login=settings.broker_login,
                declare=settings.declare,
            ),
        )
    except ValueError as error:
        raise SettingsError(f"{variable('broker_url')}: {error}") from None


def open_store_for(settings: Settings) -> Store:
    """Opens the store of the settings.

    Raises:
        Retryable: it cannot be reached.
        SettingsError: no store of this release can be there: another release wrote it, or its server lacks what it
            takes.
    """
    try:
        store = open_store(settings.store_url)
    except ValueError as error:
        raise SettingsError(f"{variable('store_url')}: {error}") from None
    found = store.find_json(_FORMAT_KEY)
    if found is None:
        store.create(_FORMAT_KEY, json_bytes({"format": STORE_FORMAT}))
    elif found.get("format") != STORE_FORMAT:
        raise SettingsError(
            f"{variable('store_url')}: the store {settings.store_url} has format {found.get('format')}; this release "
            f"reads format {STORE_FORMAT}. Use the release that wrote it, or another store"
        )
    return store


@contextlib.contextmanager
def open_client(settings: Settings) -> Iterator[Client]:
    """Gives a client of the broker and the store that the settings name, for as long as the context lasts.

    Raises:
        Retryable: one of them cannot be reached.
        SettingsError: one of their URLs cannot be used.
    """
    with open_broker_for(settings) as broker:
        yield Client(broker, open_store_for(settings))

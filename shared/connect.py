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
from shared.store.identity import IDENTITY_KEY, IdentifiedStore, StoreReplaced, find_identity, give_identity
from shared.telemetry.heartbeat import HEARTBEAT_S
from shared.telemetry.liveness import HeartbeatListener
from shared.topology import Topology

STORE_FORMAT: Final = 1
"""Goes up when a release can no longer read what an older one wrote."""
_FORMAT_KEY: Final = "format.json"
_S3_TRUSTED_S: Final = 2.0
"""A request takes some ten milliseconds there, where a file takes as many microseconds."""


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


def open_store_for(settings: Settings, broker: Broker | None = None) -> Store:
    """Opens the store of the settings; makes one only where this installation has none.

    Args:
        settings: as the environment has them.
        broker: of the same installation, which may know which store is theirs. Without it, a store that is not there
            yet gets no identity.

    Raises:
        StoreReplaced: it is a `Retryable`: another store is there, or none, in the place of theirs.
        Retryable: it cannot be reached.
        SettingsError: no store of this release can be there: another release wrote it, or its server lacks what it
            takes.
    """
    try:
        store = open_store(settings.store_url, make=False)
    except ValueError as error:
        raise SettingsError(f"{variable('store_url')}: {error}") from None
    identity = find_identity(store)
    expected = _expected_store(broker, identity)
    if identity is None and expected is not None:
        identity = find_identity(store)  # which another service that started at the same time has written by now
    if expected not in {None, identity}:
        raise StoreReplaced(
            f"found {'another store' if identity else 'no store'} at {settings.store_url}; expected the one that this "
            f"installation works with (its {IDENTITY_KEY} has the id {expected}): is its disk or share mounted? To "
            "begin with an empty store, stop every service, and delete the file of the embedded broker, too"
        )
    layout = store.find_json(_FORMAT_KEY)
    if layout is not None and layout.get("format") != STORE_FORMAT:
        raise SettingsError(
            f"{variable('store_url')}: the store {settings.store_url} has format {layout.get('format')}; this release "
            f"reads format {STORE_FORMAT}. Use the release that wrote it, or another store"
        )
    if identity is None:
        store = open_store(settings.store_url)
    if layout is None:
        store.create(_FORMAT_KEY, json_bytes({"format": STORE_FORMAT}))
    if broker is not None:
        identity = identity or give_identity(store)
        broker.remember_store(identity)
    if identity is None:
        return store
    trusted_s = _S3_TRUSTED_S if settings.store_url.startswith("s3:") else 0.0
    return IdentifiedStore(store, settings.store_url, identity, trusted_s=trusted_s)


def _expected_store(broker: Broker | None, found: str | None) -> str | None:
    """Returns the identity of the store that this installation works with; None where it is new, or nobody knows.

    Where the broker does not remember it and none was found, the services that run are listened to: they name it in
    each heartbeat.
    """
    if broker is None:
        return None
    if broker.remembers_stores or found is not None:
        return broker.remembered_store()
    with HeartbeatListener(broker) as heartbeats:
        heartbeats.wait_until(lambda beats: any(beat.get("store") for beat in beats), HEARTBEAT_S + 0.3)
        named = [beat.get("store") for beat in heartbeats.workers()]
    return next((str(identity) for identity in named if identity), None)


@contextlib.contextmanager
def open_client(settings: Settings) -> Iterator[Client]:
    """Gives a client of the broker and the store that the settings name, for as long as the context lasts.

    Raises:
        Retryable: one of them cannot be reached.
        SettingsError: one of their URLs cannot be used.
    """
    with open_broker_for(settings) as broker:
        yield Client(broker, open_store_for(settings, broker))

"""Opens the broker, the store and a client that the settings name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from shared.broker import open_broker
from shared.broker.base import Access, Broker
from shared.client import Client
from shared.runtime.settings import Settings, SettingsError, variable
from shared.store import open_store
from shared.topology import Topology


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


@contextlib.contextmanager
def open_client(settings: Settings) -> Iterator[Client]:
    """Gives a client of the broker and the store that the settings name, for as long as the context lasts.

    Raises:
        Retryable: one of them cannot be reached.
        SettingsError: the broker's URL has a parameter that does not exist, or a wrong value of one.
    """
    with open_broker_for(settings) as broker:
        yield Client(broker, open_store(settings.store_url))

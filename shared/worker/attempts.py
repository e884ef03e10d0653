"""How often a message was worked on, kept in the store, since a broker's own count does not tell."""

from __future__ import annotations

import hashlib
import logging
from typing import Final

from shared.broker.base import Delivery
from shared.errors import Retryable
from shared.store.base import Store

UNRECORDED: Final = 2
"""Deliveries before attempts are recorded: nearly every message is done by then, and costs the store nothing."""
_LOG = logging.getLogger(__name__)


class Attempts:
    """Records that a message is being worked on before it is, where all workers see it: the next may be the last.

    Only messages that came `UNRECORDED` times before have a record, and it goes with the message. One message is at one
    worker at a time; should two ever have the same one, it may be tried once more than it might.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, delivery: Delivery) -> int:
        """Records one more attempt. Returns how often the message was worked on before.

        Raises:
            Retryable: the store is away; nothing was recorded.
        """
        if delivery.delivery_count < UNRECORDED:
            return delivery.delivery_count
        key = _key(delivery)
        record = self._store.find_json(key) or {"queue": delivery.queue, "message_id": delivery.message.message_id}
        recorded = int(record.get("attempts", 0))
        self._store.put_json(key, {**record, "attempts": recorded + 1})
        return UNRECORDED + recorded

    def end(self, delivery: Delivery) -> None:
        """Forgets a message that will not be worked on again, or whose work at least harmed nobody."""
        if delivery.delivery_count >= UNRECORDED:
            try:
                self._store.delete(_key(delivery))
            except Retryable as error:
                _LOG.warning("could not forget a message's attempts: %s", error)


def _key(delivery: Delivery) -> str:
    """Returns where a message's attempts are recorded. Foreign clients may use an id for more than one message."""
    message = delivery.message
    about = f"{delivery.queue}\0{message.message_id}\0".encode(errors="replace")
    return f"attempts/{hashlib.sha256(about + message.body).hexdigest()}"

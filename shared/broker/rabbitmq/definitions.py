"""Every queue, exchange and binding there is: declared by our own connections, or imported by an administrator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pika.channel import Channel
from pika.exchange_type import ExchangeType

from shared.broker.base import DEAD_BYTES_KEPT, DEAD_LETTERS_KEPT
from shared.topology import Topology

LAST_RESORT_MARGIN: Final = 95
"""Deliveries beyond our own limit before the broker itself gives a message up: our code buries what it can, and the
broker would strike those that were only held when others killed their worker, or connections went."""
_UNLIMITED: Final = 1_000_000_000
"""Deliveries of a dead letter: looking at it counts as one, and RabbitMQ 4 has a limit of 20 unless told otherwise."""


class Definitions:
    """The topology with its arguments.

    Args:
        topology: the names.
        delivery_limit: see `shared.broker.open_broker`.
        queue_limit: messages in one work queue before publishing is refused.
    """

    def __init__(self, topology: Topology, *, delivery_limit: int, queue_limit: int) -> None:
        self._topology = topology
        self.last_resort = delivery_limit + LAST_RESORT_MARGIN
        self._queue_limit = queue_limit

    def arguments(self, queue: str) -> dict[str, Any]:
        """Returns the arguments of a queue."""
        if queue == self._topology.dead:
            return {
                "x-queue-type": "quorum",
                "x-delivery-limit": _UNLIMITED,
                "x-max-length": DEAD_LETTERS_KEPT,
                "x-max-length-bytes": DEAD_BYTES_KEPT,
                "x-overflow": "drop-head",
            }
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": self.last_resort,
            "x-max-length": self._queue_limit,
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self._topology.dead,
            "x-dead-letter-strategy": "at-least-once",
        }

    def declare(self, channel: Channel, declared: Callable[[], None], *, passive: bool) -> None:
        """Declares everything and calls back when all of it is there; in the I/O thread.

        The broker answers in order, so the last answer stands for all; where it refuses, it closes the channel.

        Args:
            channel: to declare on.
            declared: called at the end.
            passive: only ask whether all of it is there.
        """
        topology = self._topology
        for exchange in (topology.events, topology.requests):
            channel.exchange_declare(exchange, ExchangeType.topic, durable=True, passive=passive)
        for queue in topology.queues:
            channel.queue_declare(
                queue, durable=True, passive=passive, arguments=None if passive else self.arguments(queue)
            )
        if not passive:
            for queue in topology.request_queues:
                channel.queue_bind(queue, topology.requests, queue)
        channel.exchange_declare(
            topology.events, ExchangeType.topic, durable=True, passive=True, callback=lambda _: declared()
        )

    def document(self, virtual_host: str) -> dict[str, Any]:
        """Returns what `rabbitmqctl import_definitions` takes."""
        topology = self._topology
        place = {"vhost": virtual_host, "durable": True, "auto_delete": False}
        return {
            "exchanges": [
                {"name": name, "type": "topic", "internal": False, "arguments": {}, **place}
                for name in (topology.events, topology.requests)
            ],
            "queues": [{"name": name, "arguments": self.arguments(name), **place} for name in topology.queues],
            "bindings": [
                {
                    "source": topology.requests,
                    "vhost": virtual_host,
                    "destination": queue,
                    "destination_type": "queue",
                    "routing_key": queue,
                    "arguments": {},
                }
                for queue in topology.request_queues
            ],
        }

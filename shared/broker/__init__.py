"""Two brokers behind one interface: the embedded SQLite one, and RabbitMQ."""

from __future__ import annotations

from urllib.parse import unquote

from shared.broker.base import Access, Broker
from shared.topology import Topology


def open_broker(
    url: str,
    topology: Topology | None = None,
    *,
    lease_s: float = 15.0,
    delivery_limit: int = 20,
    queue_limit: int = 1_000_000,
    access: Access | None = None,
) -> Broker:
    """Opens the broker that `url` names.

    Args:
        url: `sqlite:///relative/path`, `sqlite:////absolute/path`, `amqp://…` or `amqps://…`; several hosts of a
            RabbitMQ cluster are separated by commas.
        topology: the queues' names.
        lease_s: seconds after which a dead process's deliveries return to their queue (embedded broker).
        delivery_limit: a queue's own last resort against a message that kills every consumer before any code of ours
            can bury it.
        queue_limit: messages in one queue before publishing is refused.
        access: TLS, login and who declares the queues (RabbitMQ).

    Raises:
        BrokerError: the broker cannot be reached, or its queues were declared with other arguments.
        ValueError: the URL's scheme or one of its parameters is unknown, or a parameter's value is wrong.
    """
    topology = topology or Topology()
    if url.startswith("sqlite:///"):
        from shared.broker.sqlite.broker import SqliteBroker  # noqa: PLC0415 - only the chosen broker is loaded

        return SqliteBroker(unquote(url.removeprefix("sqlite:///")), topology, lease_s=lease_s, queue_limit=queue_limit)
    if url.startswith(("amqp://", "amqps://")):
        from shared.broker.rabbitmq.broker import RabbitBroker  # noqa: PLC0415 - only the chosen broker is loaded

        return RabbitBroker(url, topology, delivery_limit=delivery_limit, queue_limit=queue_limit, access=access)
    raise ValueError(f"unknown broker URL {url!r}; expected sqlite:///PATH, amqp://… or amqps://…")

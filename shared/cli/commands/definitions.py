"""The command that prints RabbitMQ's definitions."""

from __future__ import annotations

import json
from urllib.parse import unquote, urlsplit

import click

from shared.cli.base import settings_in_force


@click.command()
def definitions() -> None:
    """Print RabbitMQ's queues, exchanges and bindings as JSON.

    `rabbitmqctl import_definitions FILE` makes them; see docs/rabbitmq.md.
    """
    from shared.broker.rabbitmq.definitions import Definitions  # noqa: PLC0415
    from shared.topology import Topology  # noqa: PLC0415

    settings = settings_in_force()
    made = Definitions(
        Topology(settings.queue_prefix), delivery_limit=settings.delivery_limit, queue_limit=settings.queue_limit
    )
    url = urlsplit(settings.broker_url)
    virtual_host = unquote(url.path.removeprefix("/")) if url.scheme.startswith("amqp") else ""
    click.echo(json.dumps(made.document(virtual_host or "/"), indent=2))

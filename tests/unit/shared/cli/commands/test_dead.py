"""`dead`."""

from __future__ import annotations

import re

import pytest

from shared.broker.base import Message, Outgoing
from shared.client import Client
from tests.unit.shared.cli.helpers import document, run


@pytest.fixture
def dead_ids(client: Client) -> list[str]:
    """Two dead letters of the predictions queue."""
    topology = client.broker.topology
    client.broker.publish_many(
        [Outgoing(topology.predictions, Message(b"?", "text/plain", message_id=f"m{i}")) for i in range(2)]
    )
    with client.broker.consume([topology.predictions], prefetch=2) as consumer:
        for delivery in consumer.receive(2, timeout_s=5):
            consumer.dead_letter(delivery, "unsupported_content_type")
        consumer.flush()
    return [letter.dead_id for letter in client.broker.dead_letters()]


def test_dead_letters_are_listed_retried_and_dropped(client: Client, dead_ids: list[str]) -> None:
    assert re.search(rf"^{dead_ids[0]} +unsupported_content_type +predictions ", run("dead").stdout, flags=re.MULTILINE)
    assert [letter["message_id"] for letter in document("dead")] == ["m0", "m1"]
    assert len(document("dead", "list", "--limit", "1")) == 1
    assert run("dead", "retry", dead_ids[0]).stdout == "retried 1\n"
    assert client.broker.depths()[client.broker.topology.predictions].ready == 1
    assert document("dead", "drop", "--all") == {"dropped": 1}
    assert "no failed messages" in run("dead", "list").stderr


def test_an_unknown_dead_letter_is_exit_code_1(client: Client, dead_ids: list[str]) -> None:
    result = run("dead", "drop", dead_ids[0], "unknown")
    assert result.exit_code == 1
    assert result.stdout == "dropped 1\n"
    assert result.stderr == "error: no failed message has the ID 'unknown'\n"
    assert document("dead", "retry", dead_ids[1], "x", "y", "x", exit_code=1) == {"retried": 1}
    assert run("dead", "retry", "x", "y").stderr == "error: no failed message has the ID 'x' or 'y'\n"

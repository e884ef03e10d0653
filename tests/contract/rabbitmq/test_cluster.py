"""A cluster of three RabbitMQ nodes: a leader killed under load, no majority, and where leaders and replicas are."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Iterator

import pytest

from shared.broker import open_broker
from shared.broker.base import Broker, BrokerError, Message, Outgoing
from shared.topology import Topology
from tests.support.brokers.rabbitmq_node import RabbitCluster, rabbitmq_server
from tests.support.services import eventually

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitCluster]:
    with contextlib.closing(RabbitCluster(tmp_path_factory.mktemp("cluster"), rabbitmq_server())) as cluster:
        cluster.start()
        yield cluster


def test_leaders_are_spread_and_each_queue_has_three_replicas(cluster: RabbitCluster) -> None:
    topology = Topology(f"t{uuid.uuid4().hex[:8]}")
    with open_broker(cluster.url, topology):
        placed = cluster.placed(*topology.queues)
    assert len({leader.name for leader, _ in placed}) == 3
    assert [replicas for _, replicas in placed] == [3] * len(topology.queues)


def test_a_leader_killed_under_load_loses_nothing(cluster: RabbitCluster) -> None:
    topology = Topology(f"t{uuid.uuid4().hex[:8]}")
    queue = topology.predictions
    sent: set[str] = set()
    received: set[str] = set()
    stop, all_sent = threading.Event(), threading.Event()

    def publish() -> None:
        with open_broker(cluster.url, topology) as broker:
            while not stop.is_set():
                ids = [uuid.uuid4().hex for _ in range(20)]
                broker.publish_many([Outgoing(queue, Message(b"x", "image/png", message_id=key)) for key in ids])
                sent.update(ids)  # only what was confirmed counts

    def consume() -> None:
        with open_broker(cluster.url, topology) as broker, broker.consume([queue], 100) as reader:
            while not (all_sent.is_set() and sent <= received):
                deliveries = reader.receive(100, 0.5)
                received.update(delivery.message.message_id for delivery in deliveries)
                reader.settle(deliveries, [])

    publisher, consumer = (threading.Thread(target=work, daemon=True) for work in (publish, consume))
    publisher.start()
    consumer.start()
    eventually(lambda: len(received) > 200, 30, "the load")
    leader = cluster.leader_of(queue)
    leader.kill()
    before = len(sent)
    eventually(lambda: len(sent) > before + 200 and len(received) > before + 100, 60, "the load goes on")
    stop.set()
    publisher.join(30)
    all_sent.set()
    consumer.join(30)
    assert sent <= received
    assert cluster.leader_of(queue) is not leader
    leader.start()


def accepts(broker: Broker, queue: str) -> bool:
    try:
        broker.publish(queue, Message(b"after", "text/plain"), timeout_s=10)
    except BrokerError:
        return False
    return True


def test_without_a_majority_it_is_called_so_and_goes_on_by_itself(
    cluster: RabbitCluster, caplog: pytest.LogCaptureFixture
) -> None:
    topology = Topology(f"t{uuid.uuid4().hex[:8]}")
    caplog.set_level(logging.WARNING)
    with open_broker(cluster.url, topology) as broker:
        broker.publish(topology.jobs, Message(b"before", "text/plain"))
        assert broker.ping()
        for node in cluster.nodes[:2]:
            node.kill()
        eventually(lambda: broker.trouble is None, 30, "the node that is left")
        with pytest.raises(BrokerError, match="no majority"):
            broker.publish(topology.jobs, Message(b"refused", "text/plain"), timeout_s=20)
        assert "most of its replicas are away (no majority)" in caplog.text
        assert broker.trouble is not None
        assert broker.trouble.kind == "no_majority"
        assert not broker.ping()
        for node in cluster.nodes:
            node.begin()
        eventually(lambda: accepts(broker, topology.jobs), 60, "a majority")
        assert broker.trouble is None
        assert broker.ping()

"""What processes and brokers may die of, at any moment, without losing a message. On both brokers."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from shared.broker.base import Broker, Message
from tests.contract.broker.test_events import replies
from tests.contract.broker.test_messages import assert_nothing_else, bodies, numbered, take, to
from tests.contract.conftest import Place


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    found = child.stdout.readline().strip()
    assert found, f"the child ended with {child.wait()}"
    return found


def wait_for_number(child: subprocess.Popen[str], number: int) -> int:
    """Reads the child's lines until one is at least `number`; returns it."""
    while (reached := int(line(child))) < number:
        pass
    return reached


def last_number(child: subprocess.Popen[str], reached: int) -> int:
    """Returns the last number that a child printed before it ended."""
    assert child.stdout is not None
    numbers = [int(text) for text in child.stdout.read().split()]
    return max([reached, *numbers])


def collect(broker: Broker, queue: str, expected: set[bytes], timeout_s: float = 60.0) -> list[bytes]:
    """Takes and settles messages until all expected bodies were there; returns every body, duplicates too."""
    found: list[bytes] = []
    missing = set(expected)
    deadline = time.monotonic() + timeout_s
    with broker.consume([queue], 500) as consumer:
        while missing and time.monotonic() < deadline:
            taken = consumer.receive(500, timeout_s=1)
            found += bodies(taken)
            missing.difference_update(bodies(taken))
            consumer.settle(taken)
    assert not missing, f"{len(missing)} of {len(expected)} messages were lost"
    return found


def numbers(count: int) -> set[bytes]:
    return {str(number).encode() for number in range(count)}


def test_what_a_killed_process_held_is_delivered_again_with_a_count_of_one(place: Place) -> None:
    broker = place.open()
    queue = place.topology.predictions
    broker.publish_many(to(queue, numbered(3)))
    child = place.start("hold", "2")
    assert line(child) == "held"

    child.kill()

    with broker.consume([queue], 10) as consumer:
        counts = {delivery.message.body: delivery.delivery_count for delivery in take(consumer, 3)}
    assert counts == {b"0": 1, b"1": 1, b"2": 0}


@pytest.mark.parametrize("how", ["settle", "dead_letter"])
def test_a_consumer_that_stalled_may_end_its_work_late_without_harm(place: Place, how: str) -> None:
    broker = place.open()
    queue = place.topology.predictions
    reply_queue = broker.reply_queue()
    broker.publish(queue, Message(b"first", "text/plain", reply_to=reply_queue.name))
    # RabbitMQ notices a silent peer by its missing heartbeats, the embedded broker by its lease.
    child = place.start("late", how, url=f"{place.url}?heartbeat=1" if place.is_rabbitmq else None)
    assert line(child) == "took the first"
    child.send_signal(signal.SIGSTOP)
    with broker.consume([queue], 10) as other:
        (again,) = take(other, 1, timeout_s=20)
        assert (again.message.body, again.delivery_count) == (b"first", 1)
        other.settle([again], again.message.reply(b"in time", "text/plain"))
        other.flush()
    broker.publish(queue, Message(b"second", "text/plain"))

    child.send_signal(signal.SIGCONT)
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    # The second message may well have the first one's number on the child's new connection.
    assert line(child) == "took second"
    assert line(child) == "ended"
    child.kill()

    with broker.consume([queue], 10) as other:
        assert bodies(take(other, 1)) == [b"second"]
        assert_nothing_else(broker, other, queue)
    assert replies(reply_queue, 1) == [b"in time"]
    assert reply_queue.receive(0) == []
    assert broker.dead_letters() == []


def test_every_one_of_a_thousand_messages_is_accounted_for_when_one_of_two_workers_is_killed(place: Place) -> None:
    broker = place.open()
    topology = place.topology
    broker.publish_many(to(topology.predictions, numbered(1000)))
    victim, survivor = place.start("work"), place.start("work")
    wait_for_number(victim, 150)

    victim.kill()

    results = collect(broker, topology.shards, numbers(1000))
    assert set(results) == numbers(1000)
    assert len(results) <= 1000 + 5  # only the batch under way can have been done twice
    wait_for_number(survivor, 1000 - last_number(victim, 150) - 5)  # it says so only after it has settled them
    survivor.kill()
    survivor.wait()
    with broker.consume([topology.predictions], 10) as consumer:
        assert_nothing_else(broker, consumer, topology.predictions)
    assert broker.dead_letters() == []


def start_publisher_and_worker(place: Place) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Starts one process that publishes 1,500 messages and one that works them off; both are at work by now."""
    publisher, worker = place.start("publish", "1500"), place.start("work")
    wait_for_number(publisher, 300)
    wait_for_number(worker, 5)
    return publisher, worker


def test_nothing_that_was_confirmed_is_lost_when_all_who_use_the_embedded_broker_die(sqlite_place: Place) -> None:
    # The embedded broker is nothing but the processes that use it.
    publisher, worker = start_publisher_and_worker(sqlite_place)
    publisher.kill()
    worker.kill()
    confirmed = last_number(publisher, 300)
    sqlite_place.start("work")
    assert set(collect(sqlite_place.open(), sqlite_place.topology.shards, numbers(confirmed))) >= numbers(confirmed)

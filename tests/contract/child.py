"""A process for the tests to kill: `child.py URL PREFIX LEASE_S ROLE [ARGUMENT]`. It prints a line at each step.

Roles:
    hold N: takes N messages from `predictions` and holds them.
    late HOW: takes one message from `predictions`, waits for a line, takes one more, and only then ends the first
        with a reply, by `settle` or `dead_letter`.
    work: takes from `predictions` and settles each with a message of the same body to `shards`, until killed.
    publish N: publishes N numbered messages to `predictions`, ten at a time, printing how many are confirmed.
"""

from __future__ import annotations

import contextlib
import sys
import threading

from shared.broker import open_broker
from shared.broker.base import Broker, BrokerError, Message, Outgoing
from shared.topology import Topology


def main() -> None:
    url, prefix, lease_s, role, *arguments = sys.argv[1:]
    broker = open_broker(url, Topology(prefix), lease_s=float(lease_s))
    if role == "hold":
        hold(broker, int(arguments[0]))
    elif role == "late":
        late(broker, arguments[0])
    elif role == "work":
        work(broker)
    elif role == "publish":
        publish(broker, int(arguments[0]))


def hold(broker: Broker, count: int) -> None:
    consumer = broker.consume([broker.topology.predictions], prefetch=count)
    held = 0
    while held < count:
        held += len(consumer.receive(count))
    say("held")
    threading.Event().wait()


def late(broker: Broker, how: str) -> None:
    consumer = broker.consume([broker.topology.predictions], prefetch=10)
    (first,) = consumer.receive(1)
    reply = first.message.reply(b"late", "text/plain")
    say("took the first")
    sys.stdin.readline()
    second = consumer.receive(1)
    say(f"took {second[0].message.body.decode()}")
    if how == "settle":
        consumer.settle([first], reply)
    else:
        consumer.dead_letter(first, "internal", reply)
    with contextlib.suppress(BrokerError):
        consumer.flush()
    broker.ping()  # an answer: whatever the settling sent has arrived
    say("ended")
    threading.Event().wait()


def work(broker: Broker) -> None:
    consumer = broker.consume([broker.topology.predictions], prefetch=20)
    done = 0
    while True:
        taken = consumer.receive(5)
        results = [Outgoing(broker.topology.shards, Message(one.message.body, "text/plain")) for one in taken]
        try:
            consumer.settle(taken, results)
            consumer.flush()
        except BrokerError:
            continue  # the connection was lost: all of it comes again
        done += len(taken)
        say(str(done))


def publish(broker: Broker, count: int) -> None:
    for first in range(0, count, 10):
        numbers = range(first, min(first + 10, count))
        outgoing = [
            Outgoing(broker.topology.predictions, Message(str(number).encode(), "text/plain")) for number in numbers
        ]
        broker.publish_many(outgoing, timeout_s=60)
        say(str(numbers.stop))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

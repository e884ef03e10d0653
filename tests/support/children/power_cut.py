"""Publishes to an embedded broker, and says of each message when it is confirmed: `power_cut.py DATABASE`.

Under `strace`, in one thread: what it prints stands in the trace beside what it writes and syncs.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Final

from shared.broker.base import Message, Outgoing
from shared.broker.sqlite import database
from shared.broker.sqlite.broker import SqliteBroker

MESSAGES: Final = 60
SETTLED: Final = 15
"""Messages that are taken and acknowledged after each third of the others."""


def body_of(number: int) -> bytes:
    """Returns a message's body: from nothing to more than a page, and different for each."""
    return random.Random(number).randbytes([0, 100, 3000, 9000][number % 4])


def main() -> None:
    database._CHECKPOINT_PAGES = 25  # type: ignore[misc]  # so that the log begins anew several times
    with SqliteBroker(sys.argv[1], lease_s=3600) as broker:
        queue = broker.topology.predictions
        for number in range(0, MESSAGES, 2):
            pair = [Message(body_of(n), "image/jpeg", str(n)) for n in (number, number + 1)]
            broker.publish_many([Outgoing(queue, message) for message in pair])
            os.write(1, f"confirmed {number} {number + 1}\n".encode())
            if number % (MESSAGES // 3) == MESSAGES // 3 - 2:
                with broker.consume([queue], SETTLED) as consumer:
                    taken = consumer.receive(SETTLED, 5)
                    os.write(1, f"settling {' '.join(each.message.message_id for each in taken)}\n".encode())
                    consumer.settle(taken)


if __name__ == "__main__":
    main()

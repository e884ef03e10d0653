from __future__ import annotations

from pathlib import Path

import pytest

from shared.broker import open_broker
from shared.broker.base import BrokerError, Message


@pytest.mark.parametrize("place", ["a file that is no database", "below a file"])
def test_a_place_that_cannot_hold_the_broker_is_named(place: str, tmp_path: Path) -> None:
    taken = tmp_path / "notes.txt"
    taken.write_text("no database at all, but long enough to be asked for a header " * 20)
    path = taken if place == "a file that is no database" else taken / "broker.db"
    with pytest.raises(BrokerError, match=r"cannot open the embedded broker at .*notes\.txt"):
        open_broker(f"sqlite:///{path}")


def test_what_is_deleted_is_not_written_once_more(tmp_path: Path) -> None:
    with open_broker(f"sqlite:///{tmp_path / 'broker.db'}") as broker:
        queue = broker.topology.predictions
        broker.publish(queue, Message(bytes(1_000_000), "image/jpeg"))
        with broker.consume([queue], 1) as consumer:
            (delivery,) = consumer.take(1, 1.0)
            log = tmp_path / "broker.db-wal"
            written = log.stat().st_size
            consumer.settle([delivery])
            assert log.stat().st_size - written < 100_000

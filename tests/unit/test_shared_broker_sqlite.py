from __future__ import annotations

from pathlib import Path

import pytest

from shared.broker import open_broker
from shared.broker.base import BrokerError


@pytest.mark.parametrize("place", ["a file that is no database", "below a file"])
def test_a_place_that_cannot_hold_the_broker_is_named(place: str, tmp_path: Path) -> None:
    taken = tmp_path / "notes.txt"
    taken.write_text("no database at all, but long enough to be asked for a header " * 20)
    path = taken if place == "a file that is no database" else taken / "broker.db"
    with pytest.raises(BrokerError, match=r"cannot open the embedded broker at .*notes\.txt"):
        open_broker(f"sqlite:///{path}")

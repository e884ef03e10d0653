"""Who is up, on a real broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.broker.sqlite.broker import SqliteBroker
from shared.telemetry.liveness import HeartbeatListener
from shared.topology import WORKER_HEARTBEAT


@pytest.mark.parametrize("foreign", [{}, {"service": "inference"}, {"worker": "w"}, {"service": "x", "worker": ["w"]}])
def test_a_heartbeat_that_does_not_say_whose_it_is_is_passed_over(tmp_path: Path, foreign: dict[str, object]) -> None:
    with SqliteBroker(tmp_path / "broker.db") as broker, HeartbeatListener(broker) as heartbeats:
        broker.emit(WORKER_HEARTBEAT, foreign)
        broker.emit(WORKER_HEARTBEAT, {"service": "inference", "worker": "ours"})
        assert heartbeats.wait_for(["inference"], 10) == set()
        assert [beat["worker"] for beat in heartbeats.workers()] == ["ours"]

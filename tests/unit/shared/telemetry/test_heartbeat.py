from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from shared.broker.sqlite.broker import SqliteBroker
from shared.store.files import FileStore
from shared.telemetry import heartbeat
from shared.telemetry.heartbeat import Heartbeat


def test_beats_tell_who_and_what_until_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.01)
    stop = threading.Event()
    with SqliteBroker(tmp_path / "broker.db") as broker, broker.subscribe(["worker.*"]) as events:
        state = {"busy": None, "provider": "cpu"}
        thread = threading.Thread(
            target=Heartbeat(broker, "trainer", lambda: state, FileStore(tmp_path)).run, args=(stop,)
        )
        thread.start()
        first: dict[str, Any] = events.receive(10)[0].payload
        state["busy"] = "run-1"
        while (later := events.receive(10)[-1].payload)["busy"] != "run-1":
            pass
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
    assert (first["service"], first["pid"], first["provider"], first["busy"]) == ("trainer", os.getpid(), "cpu", None)
    assert first["worker"] == f"{first['host']}:{os.getpid()}"
    assert later["started"] == first["started"]


def test_the_last_beat_is_sent_though_it_was_stopped_before(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with SqliteBroker(tmp_path / "broker.db") as broker, broker.subscribe(["worker.*"]) as events:
        Heartbeat(broker, "inference", dict, FileStore(tmp_path)).run(stop)
        assert [event.topic for event in events.receive(10)] == ["worker.heartbeat"]


def test_a_broker_that_is_away_does_not_end_the_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.001)
    stop, asked = threading.Event(), threading.Semaphore(0)
    broker = SqliteBroker(tmp_path / "broker.db")
    broker.close()

    def state() -> dict[str, Any]:
        asked.release()
        return {}

    thread = threading.Thread(target=Heartbeat(broker, "trainer", state, FileStore(tmp_path)).run, args=(stop,))
    thread.start()
    for _ in range(3):
        assert asked.acquire(timeout=10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()

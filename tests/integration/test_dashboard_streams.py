"""Many open event streams beside ordinary requests, on the dashboard's real process."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import Installation, Service, eventually

STREAMS = 50
EVENTS = 40
REQUESTS_PER_S = 20


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}")
    try:
        yield installation
    finally:
        installation.close()


class Reader(threading.Thread):
    """Reads one stream to its end; notes when each of the test's events arrived."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        self.connection.request("GET", "/api/v1/events?topics=run.progress")
        self.answer = self.connection.getresponse()
        self.arrived: dict[int, float] = {}

    def run(self) -> None:
        for line in self.answer:
            if line.startswith(b"data: "):
                self.arrived[json.loads(line[6:])["number"]] = time.monotonic()
        self.connection.close()


def open_streams(service: Service) -> int:
    _, text = service.get("/metrics?name[]=genderline_event_streams")
    return int(float(text.split()[-1]))


def test_fifty_streams_and_twenty_requests_a_second_starve_nobody(installation: Installation) -> None:
    service = installation.start("dashboard")
    readers = [Reader(service) for _ in range(STREAMS)]
    for reader in readers:
        reader.start()
    sent: dict[int, float] = {}
    answers: list[float] = []
    with installation.broker() as broker:
        for number in range(EVENTS):
            sent[number] = time.monotonic()
            broker.emit("run.progress", {"number": number})
            started = time.monotonic()
            status, _ = service.get("/api/v1/runs")
            answers.append(time.monotonic() - started)
            assert status == 200
            time.sleep(max(0.0, sent[number] + 1 / REQUESTS_PER_S - time.monotonic()))
        eventually(lambda: all(len(reader.arrived) == EVENTS for reader in readers), 10, "every event on every stream")

    delays = sorted(reader.arrived[number] - sent[number] for reader in readers for number in sent)
    assert delays[int(0.99 * len(delays))] < 1.0  # what a page may be behind
    assert sorted(answers)[int(0.95 * len(answers))] < 0.5
    assert service.stop() == 0
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive()


def test_a_reader_that_leaves_soon_frees_its_place(installation: Installation) -> None:
    service = installation.start("dashboard")
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("GET", "/api/v1/events?topics=none")
    answer = connection.getresponse()
    assert answer.readline().startswith(b"retry")
    assert open_streams(service) == 1

    answer.close()
    connection.close()

    eventually(lambda: open_streams(service) == 0, 5, "the place is free")

"""Events as they reach a page: in order, resumable, bounded, and through a broker's absence."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dashboard.event_stream import EventHub, Stream
from dashboard.workers import Speed, WorkerStates
from shared.broker.base import BrokerError, Event, Subscription
from shared.broker.sqlite.broker import SqliteBroker
from shared.errors import Retryable
from tests.support.dashboard_app import error_of, open_site


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "broker.db") as broker:
        yield broker


@pytest.fixture
def hub(broker: SqliteBroker) -> Iterator[EventHub]:
    hub = EventHub(broker, buffered=5, max_streams=2, heartbeat_s=0.2)
    hub.start()
    yield hub
    hub.close()


def read(stream: Stream, events: int) -> list[tuple[str, str, dict[str, object]]]:
    """Reads until there are so many events; returns (id, topic, payload) of each."""
    found: list[tuple[str, str, dict[str, object]]] = []
    while len(found) < events:
        for block in next(stream).split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


def test_events_arrive_in_order_with_rising_ids(hub: EventHub, broker: SqliteBroker) -> None:
    stream = hub.open_stream(["#"])
    for i in range(3):
        broker.emit("run.progress", {"i": i})

    events = read(stream, 3)

    assert [payload["i"] for _, _, payload in events] == [0, 1, 2]
    assert [int(key.partition("-")[2]) for key, _, _ in events] == [1, 2, 3]
    stream.close()


def test_a_stream_gets_only_the_topics_it_asked_for(hub: EventHub, broker: SqliteBroker) -> None:
    stream = hub.open_stream(["job.*"])
    broker.emit("run.progress", {})
    broker.emit("job.progress", {"job_id": "a"})

    assert [topic for _, topic, _ in read(stream, 1)] == ["job.progress"]
    stream.close()


def test_a_stream_that_comes_back_gets_what_it_missed(hub: EventHub, broker: SqliteBroker) -> None:
    first = hub.open_stream(["#"])
    broker.emit("a.a", {"i": 0})
    ((last, _, _),) = read(first, 1)
    first.close()
    watcher = hub.open_stream(["#"])
    broker.emit("a.a", {"i": 1})
    broker.emit("a.a", {"i": 2})
    read(watcher, 2)

    back = hub.open_stream(["#"], last)

    assert [payload["i"] for _, _, payload in read(back, 2)] == [1, 2]
    back.close()
    watcher.close()


@pytest.mark.parametrize(
    "last", ["other-3", "nonsense", "-", "other-", "BOOT-\u00b2", "BOOT-\u0663", "BOOT-" + "9" * 5000, "BOOT--1"]
)
def test_an_id_of_before_a_restart_or_of_nobody_asks_to_look_again(
    hub: EventHub, broker: SqliteBroker, last: str
) -> None:
    watcher = hub.open_stream(["#"])
    broker.emit("a.a", {})
    boot = read(watcher, 1)[0][0].partition("-")[0]
    watcher.close()

    stream = hub.open_stream(["#"], last.replace("BOOT", boot))

    assert read(stream, 1) == [("", "resync", {})]
    stream.close()
    assert hub.streams == 0


def test_an_id_older_than_the_ring_asks_to_look_again(hub: EventHub, broker: SqliteBroker) -> None:
    watcher = hub.open_stream(["#"])
    ids = []
    for i in range(8):
        broker.emit("a.a", {"i": i})
        ids.append(read(watcher, 1)[0][0])

    back = hub.open_stream(["#"], ids[0])

    assert read(back, 1) == [("", "resync", {})]
    back.close()
    watcher.close()


def test_a_stream_that_is_slower_than_the_ring_is_asked_to_look_again(hub: EventHub, broker: SqliteBroker) -> None:
    slow, quick = hub.open_stream(["a.*"]), hub.open_stream(["#"])
    next(slow)
    for i in range(8):
        broker.emit("a.a", {"i": i})
        read(quick, 1)

    assert [(topic, payload.get("i")) for _, topic, payload in read(slow, 6)] == [
        ("resync", None),
        *(("a.a", i) for i in range(3, 8)),
    ]
    broker.emit("a.a", {"i": 8})
    assert [payload for _, _, payload in read(slow, 1)] == [{"i": 8}]
    slow.close()
    quick.close()


def test_silence_is_broken_by_heartbeats(hub: EventHub) -> None:
    stream = hub.open_stream(["none"])

    assert next(stream).startswith("retry: ")
    assert next(stream) == ": still here\n\n"
    stream.close()


def test_one_stream_too_many_is_refused_until_another_closes(hub: EventHub) -> None:
    first, second = hub.open_stream(["#"]), hub.open_stream(["#"])
    with pytest.raises(Retryable, match="2 event streams are open"):
        hub.open_stream(["#"])

    first.close()
    first.close()

    third = hub.open_stream(["#"])
    assert hub.streams == 2
    second.close()
    third.close()
    assert hub.streams == 0


def test_a_stream_whose_client_is_gone_ends(hub: EventHub) -> None:
    stream = hub.open_stream(["#"], client_gone=lambda: True)
    next(stream)

    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_closing_ends_a_waiting_stream(hub: EventHub) -> None:
    hub.heartbeat_s = 60.0
    stream = hub.open_stream(["none"])
    next(stream)
    ended = threading.Event()

    def wait() -> None:
        for _ in stream:
            pass
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    hub.close()

    assert ended.wait(5)
    thread.join()
    stream.close()


class LeavingBroker(SqliteBroker):
    """The embedded broker, away for a while."""

    away = False

    def subscribe(self, patterns: Sequence[str] = ("#",)) -> Subscription:
        if self.away:
            raise BrokerError("away")
        subscription = super().subscribe(patterns)
        take = subscription.receive

        def failing(timeout_s: float) -> list[Event]:
            if self.away:
                raise BrokerError("away")
            return take(min(timeout_s, 0.05))

        subscription.receive = failing  # type: ignore[method-assign]
        return subscription


def test_streams_outlive_a_broker_that_goes_away_and_are_told_to_look_again(tmp_path: Path) -> None:
    with LeavingBroker(tmp_path / "broker.db") as broker:
        hub = EventHub(broker)
        hub.start()
        stream = hub.open_stream(["run.*"])
        broker.away = True
        back = threading.Timer(0.3, lambda: setattr(broker, "away", False))
        back.start()

        assert [topic for _, topic, _ in read(stream, 1)] == ["away"]
        assert hub.away
        late = hub.open_stream(["run.*"])
        assert [topic for _, topic, _ in read(late, 1)] == ["away"]
        late.close()
        assert [topic for _, topic, _ in read(stream, 1)] == ["resync"]
        assert not hub.away
        broker.emit("run.progress", {"i": 1})
        assert read(stream, 1)[0][2] == {"i": 1}

        back.join()
        stream.close()
        hub.close()


class BuggyBroker(SqliteBroker):
    """The embedded broker with a bug in its first subscription."""

    subscriptions = 0

    def subscribe(self, patterns: Sequence[str] = ("#",)) -> Subscription:
        subscription = super().subscribe(patterns)
        self.subscriptions += 1
        if self.subscriptions == 1:

            def receive(timeout_s: float) -> list[Event]:
                raise TypeError("a bug")

            subscription.receive = receive  # type: ignore[method-assign]
        return subscription


def test_a_bug_in_listening_costs_a_moment_and_not_all_events_to_come(tmp_path: Path) -> None:
    with BuggyBroker(tmp_path / "broker.db") as broker:
        hub = EventHub(broker)
        hub.start()
        stream = hub.open_stream(["#"])
        assert [topic for _, topic, _ in read(stream, 2)][-1] == "resync"
        broker.emit("run.progress", {"i": 1})
        assert read(stream, 1)[0][2] == {"i": 1}
        assert hub.is_listening
        stream.close()
        hub.close()
        assert not hub.is_listening


def test_events_take_no_more_memory_than_the_ring_has_bytes(
    hub: EventHub, broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.event_stream._BUFFERED_BYTES", 100_000)
    watcher = hub.open_stream(["#"])
    ids = []
    for i in range(3):
        broker.emit("a.a", {"i": i, "text": "x" * 40_000})
        ids.append(read(watcher, 1)[0][0])
    broker.emit("a.a", {"i": 3})
    assert read(watcher, 1)[0][2] == {"i": 3}
    watcher.close()

    lost, kept = hub.open_stream(["#"], ids[0].replace("-1", "-0")), hub.open_stream(["#"], ids[0])

    assert [topic for _, topic, _ in read(lost, 1)] == ["resync"]
    assert [payload["i"] for _, _, payload in read(kept, 3)] == [1, 2, 3]
    lost.close()
    kept.close()


class SilentBroker(SqliteBroker):
    """The embedded broker as RabbitMQ is while its server is away: subscriptions stay, and nothing comes."""

    answers = True

    def ping(self, timeout_s: float = 2.0) -> bool:
        return self.answers and super().ping(timeout_s)


def test_a_broker_that_falls_silent_is_asked_whether_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.event_stream._SILENT_S", 0.1)
    monkeypatch.setattr("dashboard.event_stream._RECEIVE_S", 0.05)
    with SilentBroker(tmp_path / "broker.db") as broker:
        hub = EventHub(broker)
        hub.start()
        stream = hub.open_stream(["#"])
        broker.answers = False
        assert [topic for _, topic, _ in read(stream, 1)] == ["away"]

        broker.answers = True

        assert [topic for _, topic, _ in read(stream, 1)] == ["resync"]
        stream.close()
        hub.close()


def test_events_missed_in_no_time_at_all_ask_to_look_again(hub: EventHub, broker: SqliteBroker, tmp_path: Path) -> None:
    stream = hub.open_stream(["run.*"])
    broker.emit("run.progress", {"i": 1})
    assert read(stream, 1)[0][2] == {"i": 1}

    for name in ("broker.db", "broker.db-wal", "broker.db-shm"):  # another file, as a lost connection
        (tmp_path / name).unlink()
    broker.emit("run.progress", {"i": 2})

    assert sorted(topic for _, topic, _ in read(stream, 2)) == ["resync", "run.progress"]
    assert not hub.away
    stream.close()


def test_the_endpoint_streams_over_http_and_frees_its_place(tmp_path: Path) -> None:
    with open_site(tmp_path, started=True) as site:
        answer = site.web.get("/api/v1/events?topics=run.*")
        assert answer.mimetype == "text/event-stream"
        assert site.parts.event_hub.streams == 1
        site.broker.emit("run.progress", {"run_id": "a"})
        pieces = iter(answer.response)
        text = ""
        while "run.progress" not in text:
            piece = next(pieces)
            text += str(piece)
        answer.close()

        assert '"run_id": "a"' in text
        assert site.parts.event_hub.streams == 0


def test_over_the_cap_the_endpoint_says_unavailable(tmp_path: Path) -> None:
    with open_site(tmp_path) as site, contextlib.ExitStack() as streams:
        for _ in range(64):
            streams.callback(site.parts.event_hub.open_stream(["#"]).close)
        answer = site.web.get("/api/v1/events")

    assert (answer.status_code, error_of(answer.data)[0]) == (503, "unavailable")


def test_the_dashboard_hears_itself_live(tmp_path: Path) -> None:
    with open_site(tmp_path, started=True) as site:
        stream = site.parts.event_hub.open_stream(["worker.*"])
        read(stream, 1)
        stream.close()

        workers = (site.web.get("/api/v1/status").json or {})["workers"]

    assert [(worker["service"], worker["alive"]) for worker in workers] == [("dashboard", True)]


def beat(worker: str, **state: object) -> Event:
    return Event("worker.heartbeat", {"service": "inference", "worker": worker, **state})


def test_presence_adds_up_speed_and_takes_the_worst_latency() -> None:
    workers = WorkerStates()
    workers.on_event(beat("a", images_per_second=100.0, latency_p50_ms=9.0, latency_p99_ms=20.0))
    workers.on_event(beat("b", images_per_second=50.5, latency_p50_ms=4.0, latency_p99_ms=35.0))
    workers.on_event(beat("c", images_per_second=None, latency_p99_ms=None))
    workers.on_event(Event("worker.heartbeat", {"service": "trainer", "worker": "t", "images_per_second": 9.0}))

    assert workers.speed() == Speed(150.5, 9.0, 35.0)


def test_presence_calls_a_silent_worker_gone_and_then_forgets_it() -> None:
    now = [0.0]
    workers = WorkerStates(lambda: now[0])
    workers.on_event(beat("a", images_per_second=100.0))
    seen = []
    for now[0] in (1.0, 60.0, 601.0):
        seen.append([(worker.state["worker"], worker.alive) for worker in workers.states()])

    assert seen == [[("a", True)], [("a", False)], []]
    assert workers.speed() == Speed(0.0, None, None)


def test_presence_keeps_ten_minutes_of_speed() -> None:
    now = [0.0]
    workers = WorkerStates(lambda: now[0])
    for second in range(0, 700, 2):
        now[0] = float(second)
        workers.on_event(beat("a", images_per_second=float(second)))

    history = workers.speed_history()

    assert history[0][0] <= 605
    assert history[-1] == (0.0, Speed(698.0, None, None))
    assert 95 <= len(history) <= 122


def test_hostile_heartbeats_end_neither_the_listening_nor_the_pages_and_a_thousand_are_kept(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        beat = {"schema": 1, "service": "inference", "worker": "here:1", "images_per_second": 5.0}
        on_event = site.parts.workers.on_event
        for more in ({"images_per_second": "x"}, {"recent_predictions": True}, {"drift": 3}, {"worker": 7}):
            on_event(Event("worker.heartbeat", {**beat, **more}))
        assert site.parts.workers.states() == []
        for number in range(3000):
            on_event(Event("worker.heartbeat", {**beat, "worker": f"there:{number}"}))
        on_event(Event("worker.heartbeat", beat))
        assert len(site.parts.workers.states()) <= 1000
        assert "here:1" in {worker.state["worker"] for worker in site.parts.workers.states()}
        assert site.web.get("/").status_code == 200

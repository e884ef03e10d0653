"""The overview."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shared.broker.base import Event, Message
from shared.faces.labels import GENDERS
from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import bury, csrf_of, jpeg


def test_the_overview_names_what_needs_attention(filled: Site) -> None:
    bury(filled, b"x", "text/plain")
    filled.broker.publish(filled.broker.topology.datasets, Message(b"x", "application/zip"))

    text = filled.web.get("/").text

    assert "One message could not be processed" in text
    assert "was rejected: all faces are male" in text
    assert "Messages are waiting in the queue datasets, but no trainer service is running." in text


def test_the_overview_shows_champion_progress_and_workers(filled: Site) -> None:
    beat = {"service": "inference", "worker": "here:1", "version": 2, "provider": "cpu", "images_per_second": 512.0}
    filled.parts.workers.on_event(Event("worker.heartbeat", {**beat, "latency_p99_ms": 31.5}))

    text = filled.web.get("/").text

    assert "90.0\N{NO-BREAK SPACE}%" in text
    assert "Training · epoch 3 of 6 · 400 images/s" in text
    assert "1 min 15 s left" in text
    assert "here:1" in text
    assert "512" in text


def told(worker: str, *newest: dict[str, Any]) -> Event:
    beat = {"service": "inference", "worker": worker, "version": 2, "images_per_second": 1.0, "latency_p99_ms": 8.0}
    return Event("worker.heartbeat", {**beat, "recent_predictions": list(newest)})


def answer_at(second: int, p: float, **changes: Any) -> dict[str, Any]:
    at = f"2026-01-01T00:00:{second:02d}.000Z"
    entry = {"at": at, "version": 2, "images": 1, "gender": GENDERS[p >= 0.5], "probability_female": p}
    return {**entry, "confidence": max(p, 1 - p), **changes}


def test_the_overview_shows_the_newest_predictions_of_every_client(filled: Site) -> None:
    filled.parts.workers.on_event(told("a", answer_at(3, 0.9111), answer_at(1, 0.2)))
    filled.parts.workers.on_event(told("b", answer_at(2, 0.1222, images=226)))

    text = filled.web.get("/").text

    rows = re.findall(r"<tr><td[^>]*>(.*?)</td></tr>", text.partition("Recent predictions")[2], re.DOTALL)
    shown = [re.sub(r"<[^>]*>", " ", row).split() for row in rows]
    assert [row[-4:-2] for row in shown[:3]] == [["2", "2026-01-01"]] * 3
    assert ["91.1" in rows[0], "87.8" in rows[1], "80.0" in rows[2]] == [True] * 3
    assert "first of 226 in a batch" in rows[1]


def test_a_prediction_made_here_is_shown_once_and_by_its_name(filled: Site) -> None:
    with filled.worker():
        body = filled.web.post("/predict/image?name=mine.jpg", data=jpeg(), content_type="image/jpeg").json
    assert body is not None
    p = body["reply"]["predictions"][0]["probability_female"]
    version = body["reply"]["model"]["version"]
    filled.parts.workers.on_event(told("a", answer_at(3, p, version=version), answer_at(2, 0.25)))

    newest = filled.web.get("/").text.partition("Recent predictions")[2]

    assert newest.count("mine.jpg</bdi>") == 1
    assert newest.count("via the queue") == 1


def test_the_speed_of_the_last_minutes_comes_as_columns(filled: Site) -> None:
    filled.parts.workers.on_event(told("a"))

    answer = filled.web.get("/speed.json")

    assert answer.json is not None
    assert answer.json.keys() == {"minutes", "images_per_second", "latency_p50_ms", "latency_p99_ms"}
    assert [answer.json[key] for key in ("images_per_second", "latency_p50_ms", "latency_p99_ms")] == [
        [1.0, 1.0],
        [None, None],
        [8.0, 8.0],
    ]
    assert -1 < answer.json["minutes"][0] <= answer.json["minutes"][1] == 0


def test_the_overview_says_so_when_the_broker_is_away(filled: Site) -> None:
    filled.broker.close()

    answer = filled.web.get("/")

    assert answer.status_code == 200
    assert "The broker does not answer" in answer.text


def test_the_overview_says_what_is_wrong_with_the_broker_as_a_service_found_it(filled: Site) -> None:
    beat = {"service": "dashboard", "worker": "here:1", "broker_trouble": "queue x takes no messages (no majority)"}
    filled.parts.workers.on_event(Event("worker.heartbeat", beat))

    assert "queue x takes no messages (no majority)." in filled.web.get("/").text


@pytest.mark.parametrize("images", ["abc", "39", "20001"])
def test_a_sample_of_no_sensible_size_is_refused(site: Site, images: str) -> None:
    answer = site.web.post("/samples", data={"csrf": csrf_of(site.web), "images": images})
    assert answer.status_code == 400
    assert "expected" in answer.text


def test_the_sample_button_starts_a_sample(site: Site) -> None:
    web = site.web
    answer = web.post("/samples", data={"csrf": csrf_of(web), "images": "40"})

    assert answer.status_code == 303
    site.parts.samples.wait(30)
    assert site.parts.store_cache.runs().records[0].name == "sample"

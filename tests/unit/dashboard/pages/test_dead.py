"""The page of failed messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.broker.base import Message
from shared.messages import pack_message
from tests.support.dashboard_app import Site, open_site
from tests.unit.dashboard.pages.helpers import bury, bury_message, csrf_of, jpeg


def test_dead_letters_show_their_bodies_harmlessly(filled: Site) -> None:
    bury(filled, b"<script>alert(1)</script>", "text/html")
    bury(filled, b'{"schema": 2, "name": "x"}', "application/json")
    bury(filled, b"{broken", "application/json")
    bury(filled, jpeg(), "image/gif")
    bury(filled, b"long " * 1000, "text/plain")

    text = filled.web.get("/dead").text

    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "&#34;schema&#34;: 2" in text
    assert "{broken" in text
    assert "A JPEG image." in text
    assert len(text) < 20_000


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"[" * 1000 + b"]" * 1000, "[[[[["),
        (rb'{"name": "caf\ud83d"}', "caf\\ud83d"),
        (b'{"number": ' + b"9" * 5000 + b"}", "99999"),
    ],
    ids=["deep", "lone-surrogate", "long-number"],
)
def test_a_body_that_no_page_can_show_costs_only_its_own_preview(filled: Site, body: bytes, shown: str) -> None:
    bury_message(filled, Message(body, "application/json", headers={"model_version": "\ud83d"}))
    bury(filled, b"another", "text/plain")

    page = filled.web.get("/dead")

    assert page.status_code == 200
    assert shown in page.text
    assert "another" in page.text


def test_dead_letters_are_retried_and_dropped_in_bulk(filled: Site) -> None:
    first, second = bury(filled, b"a", "text/plain"), bury(filled, b"b", "text/plain")
    web = filled.web
    csrf = csrf_of(web)

    retried = web.post("/dead/retry", data={"csrf": csrf, "dead_id": [first, second]}, follow_redirects=True)
    bury(filled, b"c", "text/plain")
    dropped = web.post("/dead/drop", data={"csrf": csrf, "all": "true"}, follow_redirects=True)
    bury(filled, b"d", "text/plain")
    none = web.post("/dead/drop", data={"csrf": csrf}, follow_redirects=True)

    assert "2 re-queued." in retried.text
    assert "1 deleted." in dropped.text
    assert "No message was selected" in none.text
    assert len(filled.broker.dead_letters()) == 1


def test_below_a_prefix_the_list_is_led_back_to_below_it(tmp_path: Path) -> None:
    with open_site(tmp_path, url_prefix="/faces") as site:
        for path in ("/faces/dead/retry", "/faces/dead/drop"):
            assert site.web.post(path, data={"all": "true"}).headers["Location"] == "/faces/dead"


def test_a_dead_letter_says_what_it_held_and_which_model_it_was_for(filled: Site) -> None:
    images = [(str(i), jpeg()) for i in range(3)]
    for message in (pack_message(images, headers={"model_version": 7}), pack_message(images[:1])):
        bury_message(filled, message)
    bury(filled, b"\xc1", "application/msgpack")

    text = filled.web.get("/dead").text

    assert "A batch of 3 images." in text
    assert "A batch of one image." in text
    assert "MessagePack, but not a batch of images." in text
    assert re.search(r"for model <bdi[^>]*>7</bdi>", text)
    assert text.count('data-label="Attempts">1</td>') == 3

"""What tests of pages ask of a site."""

from __future__ import annotations

import re

import cv2
import numpy as np
from flask.testing import FlaskClient

from shared.broker.base import Message
from tests.support.dashboard_app import Site

RUN = "run-000000000001"
ASKS_FOR_JSON = {"Accept": "application/json"}


def sha_of(site: Site) -> str:
    return site.store.children("datasets")[0]


def bury(site: Site, body: bytes, content_type: str) -> str:
    return bury_message(site, Message(body, content_type))


def bury_message(site: Site, message: Message) -> str:
    queue = site.broker.topology.predictions
    site.broker.publish(queue, message)
    with site.broker.consume([queue], 1) as consumer:
        (delivery,) = consumer.receive(1, 1.0)
        consumer.dead_letter(delivery, "invalid_message")
    return site.broker.dead_letters()[-1].dead_id


def csrf_of(web: FlaskClient) -> str:
    found = re.search(r'name="csrf-token" content="([^"]+)"', web.get("/").text)
    assert found is not None
    return found[1]


def jpeg(side: int = 160) -> bytes:
    return cv2.imencode(".jpg", np.full((side, side, 3), 90, np.uint8))[1].tobytes()

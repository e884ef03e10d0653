"""One image that kills the process that decodes it, or provokes a bug there, costs one entry: in every way it comes."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from shared.broker.base import Message, Outgoing
from shared.messages import ZIP, job_id_of, pack_message
from shared.records.jobs import Jobs
from tests.integration.inference.test_jobs import faces, job_replies, zip_of
from tests.support.builders.models import brightness_model, image_of
from tests.support.inference_loops import Loops, open_loops, replies
from tests.support.killers import BUGGY, KILLER, killing_environment

NAMED_BY = {KILLER: "killed_worker", BUGGY: "internal"}


@pytest.fixture(params=["sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def loops(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loops]:
    """Both loops of a worker in this process, which must live; its children die of `KILLER`."""
    for name, value in killing_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbitmq").url
    with open_loops(tmp_path, url) as made:
        made.builder.register(brightness_model())
        made.models.refresh()
        yield made


def predict(loops: Loops, *messages: Message) -> dict[str, dict[str, Any]]:
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        asked = [Message(m.body, m.content_type, m.message_id, reply_to=inbox.name) for m in messages]
        loops.broker.publish_many([Outgoing(loops.broker.topology.predictions, message) for message in asked])
        return replies(inbox, len(messages), 60)


def deaths(caplog: pytest.LogCaptureFixture) -> int:
    """Returns how many children died: the first of each culprit among others, the second with it alone."""
    return caplog.text.count("a child process died") + caplog.text.count("killed two processes")


@pytest.mark.parametrize("image", [KILLER, BUGGY], ids=["killer", "bug"])
def test_a_single_image_is_answered_with_its_own_error_and_so_are_all_others(
    loops: Loops, image: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [Message(image_of(230), "image/png", f"m{number}") for number in range(100)]
    messages[50] = Message(image, "image/png", "culprit")
    found = predict(loops, *messages)
    ((entry,),) = [found.pop("culprit")["predictions"]]
    assert entry["error"]["code"] == NAMED_BY[image]
    assert "secret" not in entry["error"]["message"]
    assert {body["predictions"][0]["gender"] for body in found.values()} == {"female"}
    assert deaths(caplog) == (2 if image is KILLER else 0)
    assert loops.broker.dead_letters() == []


@pytest.mark.parametrize("image", [KILLER, BUGGY], ids=["killer", "bug"])
def test_in_a_pack_of_256_only_its_own_entry_fails(
    loops: Loops, image: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    images: list[tuple[str | int | None, bytes]] = [(number, image_of(230)) for number in range(256)]
    images[200] = (200, image)
    pack = pack_message(images, message_id="pack")
    entries = predict(loops, pack)["pack"]["predictions"]
    assert [entry["id"] for entry in entries if "error" in entry] == [200]
    assert entries[200]["error"]["code"] == NAMED_BY[image]
    assert len(entries) == 256
    assert deaths(caplog) == (2 if image is KILLER else 0)
    assert loops.broker.dead_letters() == []


@pytest.mark.parametrize("image", [KILLER, BUGGY], ids=["killer", "bug"])
def test_in_a_job_of_2000_only_its_own_row_fails(loops: Loops, image: bytes, caplog: pytest.LogCaptureFixture) -> None:
    entries = faces(2000)
    entries[1234] = ("culprit.png", image)
    with loops.broker.reply_queue() as inbox, loops.running(loops.bulk().run):
        message = Message(zip_of(entries), ZIP, "job", reply_to=inbox.name)
        loops.broker.publish(loops.broker.topology.jobs, message)
        _, finished = job_replies(inbox, "accepted", "finished")
    assert finished["counts"] == {"images": 2000, "errors": 1}
    rows = csv.DictReader(io.StringIO(loops.store.get(Jobs.results_key(job_id_of("job"))).decode()))
    (failed,) = [row for row in rows if row["error"]]
    assert failed["name"] == "culprit.png"
    assert failed["error"].startswith(f"{NAMED_BY[image]}: ")
    assert deaths(caplog) == (2 if image is KILLER else 0)
    assert loops.broker.dead_letters() == []


def test_ten_killers_among_300_cost_ten_entries(loops: Loops, caplog: pytest.LogCaptureFixture) -> None:
    messages = [Message(image_of(230), "image/png", f"m{number}") for number in range(300)]
    culprits = {f"m{number}" for number in range(0, 300, 30)}
    for number in range(0, 300, 30):
        messages[number] = Message(KILLER, "image/png", f"m{number}")
    found = predict(loops, *messages)
    assert {key for key, body in found.items() if "error" in body["predictions"][0]} == culprits
    assert deaths(caplog) <= 20


@pytest.mark.slow
def test_a_killer_among_10000_images_halves_the_throughput_for_less_than_five_seconds(loops: Loops) -> None:
    images = [image_of(level) for level in range(0, 256, 16)]
    asked = [(f"m{number}", images[number % 16]) for number in range(10_000)]
    asked[5000] = ("culprit", KILLER)
    arrivals: list[float] = []
    errors: dict[str, str] = {}
    with loops.broker.reply_queue() as inbox, loops.running(loops.interactive().run):
        messages = [Message(data, "image/png", key, reply_to=inbox.name) for key, data in asked]
        loops.broker.publish_many([Outgoing(loops.broker.topology.predictions, message) for message in messages])
        while len(arrivals) < len(messages):
            answers = inbox.receive(30)
            assert answers, f"{len(arrivals)} of {len(messages)} are answered, and no more in 30 seconds"
            arrivals += [time.monotonic()] * len(answers)
            for answer in answers:
                for entry in json.loads(answer.body)["predictions"]:
                    if "error" in entry:
                        errors[str(answer.correlation_id)] = entry["error"]["code"]
    assert errors == {"culprit": "killed_worker"}
    quarters = Counter(int(4 * (at - arrivals[0])) for at in arrivals)
    half = median(quarters.values()) / 2
    slow = [quarters[number] < half for number in range(max(quarters))]
    longest = max((len(list(run)) for is_slow, run in groupby(slow) if is_slow), default=0)
    assert longest / 4 < 5

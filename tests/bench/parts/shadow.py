"""What a challenger costs those who wait for replies: `python -m tests.bench.parts.shadow`.

A worker process answers images one by one, with pauses, and then a burst; without the challenger and with it, in turns,
as a machine is never the same twice.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from shared.broker.base import Message, Outgoing, ReplyQueue
from shared.client import Client
from shared.measures.shadow import shadow_figures
from tests.bench.parts.observers import built_model, drawn_faces
from tests.support.builders.models import ModelBuilder
from tests.support.services import Installation, collect, eventually

ROUNDS = 6
PACED, PAUSE_S = 150, 0.02
BURST = 1500


def paced(client: Client, inbox: ReplyQueue, images: list[bytes]) -> list[float]:
    """Returns the time from sending an image to its reply, in ms, of images sent one by one with pauses."""
    times = []
    for number in range(PACED):
        started = time.perf_counter()
        message = Message(images[number % len(images)], "image/jpeg", reply_to=inbox.name)
        client.broker.publish(client.broker.topology.predictions, message)
        collect(inbox, 1, 30)
        times.append(1000 * (time.perf_counter() - started))
        time.sleep(PAUSE_S)
    return times


def burst(client: Client, inbox: ReplyQueue, images: list[bytes]) -> float:
    """Returns images a second of a burst."""
    queue = client.broker.topology.predictions
    asked = [Message(images[number % len(images)], "image/jpeg", reply_to=inbox.name) for number in range(BURST)]
    started = time.perf_counter()
    client.broker.publish_many([Outgoing(queue, message) for message in asked])
    collect(inbox, BURST, 120)
    return BURST / (time.perf_counter() - started)


def main() -> int:
    """Prints latency and speed without a challenger and with one that sees everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = os.environ.get("GENDERLINE_BROKER_URL", f"sqlite:///{folder}/broker.db")
        images = drawn_faces(folder, 200)
        installation = Installation(folder, url, {"GENDERLINE_WORKERS": "1", "GENDERLINE_SHADOW_SHARE": "1"})
        times: dict[bool, list[float]] = {False: [], True: []}
        speeds: dict[bool, list[float]] = {False: [], True: []}
        try:
            with installation.client() as client, client.broker.reply_queue() as inbox:
                builder = ModelBuilder(client.store)  # type: ignore[arg-type]
                model = built_model(folder)
                builder.register(model)
                challenger = builder.register(model, promote=False)
                service = installation.start("inference")
                for number in range(ROUNDS):
                    for challenged in (False, True):
                        if challenged:
                            client.challenge(challenger, "a bench")
                            loaded = f"version {challenger} challenges"
                            eventually(lambda: service.log.read_text().count(loaded) == number + 1, 30, loaded)  # noqa: B023
                        times[challenged] += paced(client, inbox, images)
                        speeds[challenged].append(burst(client, inbox, images))
                    client.dismiss("a bench", challenger)
                service.stop()
                figures = shadow_figures(client.store, challenger, 1)
        finally:
            installation.close()
    sys.stdout.write(f"{'challenger':<12}{'p50 ms':>9}{'p99 ms':>9}{'images/s':>10}\n")
    for challenged, label in ((False, "none"), (True, "sees all")):
        hundredths = statistics.quantiles(times[challenged], n=100)
        speed = statistics.median(speeds[challenged])
        sys.stdout.write(f"{label:<12}{hundredths[49]:>9.2f}{hundredths[98]:>9.2f}{speed:>10.0f}\n")
    sys.stdout.write(f"{ROUNDS} rounds of {PACED} single images and a burst of {BURST:,} each way\n")
    sys.stdout.write(f"the challenger {figures.sentence()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which files one opens to follow a message: those of which a function runs from its delivery to its answer.

`python -m tests.ways` prints them for an image and a job on both brokers, and for a dataset. What runs once at the
start of a service is not on the way of a message, nor is what a child process does before it decodes.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import click
import torch
from prometheus_client import CollectorRegistry

from shared.broker import open_broker
from shared.broker.base import Message
from shared.client import Client
from shared.faces.decode import ImageLimits, decode_face
from shared.faces.synthetic import draw_sample
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from shared.telemetry.metrics import TrainerMetrics
from shared.worker.loop import ConsumerLoop
from shared.worker.retry import RetryPolicy
from tests.support.brokers.rabbitmq_node import RabbitNode, rabbitmq_server
from tests.support.builders.models import brightness_model, image_of
from tests.support.inference_loops import Loops, open_loops
from trainer.handler import DatasetHandler
from trainer.pipeline import Pipeline

ROOT: Final = Path(__file__).parent.parent
SERVICES: Final = ("shared", "trainer", "inference")


class Way:
    """Notes the files of which a function is called, in threads that start after it; not in this one, the client's."""

    def __init__(self) -> None:
        self._noting = False
        self._seen: set[str] = set()
        threading.setprofile(self._note)

    @contextlib.contextmanager
    def noted(self) -> Iterator[list[str]]:
        """Yields a list, which holds the files at its end, relative to the repository."""
        files: list[str] = []
        self._seen.clear()
        self._noting = True
        try:
            yield files
        finally:
            self._noting = False
        paths = [Path(name) for name in self._seen if name.startswith(str(ROOT))]
        relative = [str(path.relative_to(ROOT)) for path in paths]
        files += sorted(name for name in relative if name.startswith(SERVICES))

    def _note(self, frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG002
        if self._noting and event == "call":
            self._seen.add(frame.f_code.co_filename)


def main() -> None:
    """Prints the ways."""
    warnings.simplefilter("ignore")  # torch's exporter's own
    torch.set_num_threads(1)
    way = Way()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _follow_predictions(way, folder / "embedded", f"sqlite:///{folder / 'broker.db'}", "the embedded broker")
        (folder / "rabbitmq").mkdir()
        with contextlib.closing(RabbitNode(folder / "rabbitmq", rabbitmq_server())) as node:
            node.start()
            _follow_predictions(way, folder / "rabbit", node.url, "RabbitMQ")
        _follow_dataset(way, folder / "trainer")


def _follow_predictions(way: Way, folder: Path, url: str, broker: str) -> None:
    folder.mkdir()
    with open_loops(folder, url) as loops, loops.broker.reply_queue() as inbox:
        loops.builder.register(brightness_model())
        loops.models.refresh()
        image = image_of(200, "jpg")

        def answer() -> None:
            message = Message(image, "image/jpeg", reply_to=inbox.name)
            loops.broker.publish(loops.broker.topology.predictions, message)
            assert inbox.receive(30)

        with loops.running(loops.interactive().run):
            answer()  # what happens once is not on the way
            with way.noted() as files:
                answer()
                limits = ImageLimits.from_settings(loops.settings)
                child = threading.Thread(target=decode_face, args=(image, limits))  # as it does in a process of its own
                child.start()
                child.join()
        _show(f"an image, from delivery to reply, on {broker}", files)
        _follow_job(way, loops, folder, broker)


def _follow_job(way: Way, loops: Loops, folder: Path, broker: str) -> None:
    archive = folder / "images.zip"
    with zipfile.ZipFile(archive, "w") as images:
        for level in range(4):
            images.writestr(f"{level}.jpg", image_of(40 * level, "jpg"))
    client = Client(loops.broker, loops.store)

    def finish() -> None:
        for _ in client.follow_job(client.submit_job(archive), timeout_s=60):
            pass

    with loops.running(loops.bulk().run):
        finish()
        with way.noted() as files:
            finish()
    _show(f"a job, on {broker}", files)


def _follow_dataset(way: Way, folder: Path) -> None:
    folder.mkdir()
    archive = folder / "faces.zip"
    draw_sample(archive, 60, seed=1)
    settings, store, metrics = Settings(), FileStore(folder / "store"), TrainerMetrics(CollectorRegistry())
    with open_broker(f"sqlite:///{folder / 'broker.db'}") as broker:
        handler = DatasetHandler(
            store,
            settings,
            metrics,
            Pipeline(store, settings, metrics, torch.device("cpu")),
            broker.emit,
            broker.topology,
        )
        loop = ConsumerLoop(
            broker,
            {broker.topology.continuations: handler, broker.topology.datasets: handler},
            RetryPolicy(None, metrics.dead_letters),
            prefetch=0,
        )
        stop = threading.Event()
        thread = threading.Thread(target=loop.run, args=[stop])
        thread.start()
        client = Client(broker, store)
        try:
            with way.noted() as files:
                run = client.submit_dataset(archive, params={"epochs": 1})
                states = [str(record.state) for record in client.follow_run(run, timeout_s=300)]
        finally:
            stop.set()
            thread.join()
    assert states[-1] == "registered", states
    _show("a dataset, from delivery to model, on the embedded broker", files)


def _show(what: str, files: list[str]) -> None:
    click.echo("\n  ".join([f"{what}: {len(files)} files", *files]))


if __name__ == "__main__":
    main()

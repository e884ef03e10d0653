"""A worker's start, its memory under overload, and its models' comings and goings."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from shared.broker.base import Message, Outgoing
from shared.faces.decode import ImageLimits, decode_face
from shared.messages import pack_message
from shared.records.model_card import ServedPrecision
from shared.records.registry import Registry
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from shared.store.files import FileStore
from tests.bench.load import LostReply, served_by
from tests.bench.rows import Row
from tests.bench.stage import Served, Stage
from tests.support.services import Installation, Service, eventually

OVERLOAD = 100_000
SWAPS = 100
MAX_BYTES = 350 * 10**6
SWAP_PACK = 8


def start(stage: Stage) -> list[Row]:
    """From starting `python -m inference` to its one worker serving the model, and what that has loaded."""
    seconds, maps = [], ""
    for _ in range(2 if stage.quick else 5):
        folder = Path(tempfile.mkdtemp(dir=stage.folder))
        stage.material.install("default", folder / "store")
        installation = Installation(folder, stage.broker_url("embedded", folder), {"GENDERLINE_WORKERS": "1"})
        with contextlib.closing(installation):
            started = time.perf_counter()
            service = installation.start("inference", wait=False)
            while not (service.ready() and _serves(service)):
                time.sleep(0.005)
            seconds.append(time.perf_counter() - started)
            _, body = service.get("/readyz")
            maps = Path(f"/proc/{json.loads(body)['workers'][0]['pid']}/maps").read_text()
            service.stop()
    took = statistics.median(seconds)
    return [
        Row("worker from start to serving", f"{took:.2f} s", None, "≤ 1.5 s", took <= 1.5),
        Row(
            "torch in a worker", "loaded" if "torch" in maps else "not loaded", None, "not loaded", "torch" not in maps
        ),
    ]


def _serves(service: Service) -> bool:
    """Returns whether the workers have loaded the model, too."""
    _, body = service.get("/readyz")
    return all(state["version"] for state in json.loads(body)["workers"])


def overload(stage: Stage) -> list[Row]:
    """The largest worker's memory while far more waits than it can hold."""
    waiting = OVERLOAD // 3 if stage.quick else OVERLOAD
    seconds = 6 if stage.quick else 20
    with stage.served("RabbitMQ", "default") as served:
        broker, images = served.client.broker, itertools.cycle(stage.material.images)
        for _ in range(waiting * 2 // 2000):  # as many again, for what is taken meanwhile
            batch = [Message(next(images), "image/jpeg") for _ in range(2000)]
            broker.publish_many([Outgoing(broker.topology.predictions, message) for message in batch])
        samples = []
        for _ in range(seconds * 2):
            time.sleep(0.5)
            samples.append(served.memory_bytes())
        left = broker.depths()[broker.topology.predictions].ready
    if not left:
        raise RuntimeError("the queue ran empty: that was no overload")
    early, late = (statistics.mean(half) for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]))
    figure = f"{max(samples) / 1e6:,.0f} MB with {waiting:,} messages waiting, {late / early - 1:+.1%} in {seconds} s"
    met = max(samples) <= MAX_BYTES and late <= 1.05 * early
    return [Row("worker memory in overload", figure, late / early, "flat, ≤ 350 MB", met)]


def swaps(stage: Stage) -> list[Row]:
    """Two models by turns under load: every reply is whole and of the model that it names, and memory comes back."""
    return [swapping(stage, "RabbitMQ", count=SWAPS // 10 if stage.quick else SWAPS)]


def swapping(stage: Stage, broker: str, *, count: int, provider: str = "cpu") -> Row:
    """Returns what becomes of replies and memory while models are swapped."""
    with stage.served(broker, "default", provider=provider) as served:
        store = FileStore(served.installation.folder / "store")
        _add_second(store)
        load = _Load(stage, served, store)
        with load.running():
            for number in range(4):  # both models have been loaded and dropped: what that takes is taken
                _swap(served, number, load)
            before = served.memory_bytes()
            for number in range(count):
                _swap(served, number, load)
            after = served.memory_bytes()
    growth = after / before - 1
    figure = f"{count} swaps, {load.replies:,} replies, {load.wrong} wrong; memory {before / 1e6:,.0f} MB {growth:+.1%}"
    met = load.wrong == 0 and abs(growth) <= 0.1
    return Row("model swaps under load", figure, after / before, "none wrong, memory within 10 %", met)


def _add_second(store: FileStore) -> None:
    """Registers the model a second time with its last bias changed, as version 2: its answers are other ones."""
    source = store.root / "models" / "gender" / "1"
    model = onnx.load(source / "model.onnx")
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    (bias,) = (each for each in model.graph.initializer if each.name == last.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1), bias.name))
    changed = store.root / "second.onnx"
    onnx.save_model(model, changed)
    file = {"sha256": sha256_of(changed), "size_bytes": changed.stat().st_size}
    registry = Registry(store)
    version = registry.claim("run-second")
    card = registry.card(1).changed(version=version, file=file, variants={})
    registry.register(card, "", {"model.onnx": changed})


def _swap(served: Served, number: int, load: _Load) -> None:
    wanted = 2 - number % 2
    seen = load.replies
    served.client.promote(wanted, "by turns")
    eventually(lambda: _all_serve(served, wanted) and load.replies > seen, 60, f"all workers serve version {wanted}")


def _all_serve(served: Served, version: int) -> bool:
    _, body = served.service.get("/readyz")
    return all(state["version"] == version for state in json.loads(body)["workers"])


class _Load:
    """A thread that sends packs and compares each reply with what the model that it names answers.

    Attributes:
        replies: so far.
        wrong: replies that were errors, or of another model than they say.
    """

    def __init__(self, stage: Stage, served: Served, store: FileStore) -> None:
        self._served = served
        self._images = stage.material.images[:SWAP_PACK]
        limits = ImageLimits.from_settings(Settings())
        faces = np.stack([decode_face(data, limits).pixels for data in self._images])
        self._answers = {version: _answers(store, version, faces) for version in (1, 2)}
        self.replies = 0
        self.wrong = 0
        self._stop = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        broker, inbox = self._served.client.broker, self._served.inbox
        pack: list[tuple[str | int | None, bytes]] = list(enumerate(self._images))
        under_way = 0
        while not self._stop.is_set() or under_way:
            if not self._stop.is_set():
                new = [pack_message(pack, reply_to=inbox.name) for _ in range(8 - under_way)]
                broker.publish_many([Outgoing(broker.topology.predictions, message) for message in new])
                under_way = 8
            replies = inbox.receive(30)
            if not replies:
                raise LostReply(f"{under_way} replies did not come in 30 s")
            for reply in replies:
                self.wrong += not self._is_right(reply)
                self.replies += 1
                under_way -= 1

    def _is_right(self, reply: Message) -> bool:
        body = json.loads(reply.body)
        if "error" in body or any("error" in entry for entry in body["predictions"]):
            return False
        found = [entry["probability_female"] for entry in body["predictions"]]
        return any(np.allclose(found, answers, atol=2e-3) for answers in self._answers[served_by(reply)])


def _answers(store: FileStore, version: int, faces: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Returns what a version may answer: in float32 and in each of its variants."""
    keys = [key for kind in get_args(ServedPrecision) if store.exists(key := Registry.model_key(version, kind))]
    sessions = [ort.InferenceSession(store.get(key), providers=["CPUExecutionProvider"]) for key in keys]
    return [session.run(None, {"image": faces[:, np.newaxis]})[0] for session in sessions]

"""One worker in this process, on a real broker and store."""

from __future__ import annotations

import json
from pathlib import Path

from inference.worker import Worker
from shared.broker.base import Message
from tests.support.builders.models import brightness_model, image_of
from tests.support.inference_loops import open_loops, replies
from tests.support.services import eventually


def test_a_worker_serves_on_while_it_cannot_write_its_state(tmp_path: Path) -> None:
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}") as loops:
        loops.builder.register(brightness_model())
        status = tmp_path / "gone" / "worker.json"
        worker = Worker(loops.broker, loops.store, loops.settings, decode_processes=1, status_file=status)
        with loops.broker.reply_queue() as inbox, loops.running(worker.run):
            request = Message(image_of(250), "image/png", "m", reply_to=inbox.name)
            loops.broker.publish(loops.broker.topology.predictions, request)
            assert replies(inbox, 1)["m"]["predictions"][0]["gender"] == "female"
            status.parent.mkdir()
            eventually(status.exists, 10, "a state")
            assert json.loads(status.read_text())["ready"]

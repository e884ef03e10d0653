"""The model behind Celery on RabbitMQ: two prefork processes; a task is one image, or some.

Acknowledged late, as ours, so that a dead worker's tasks are done again; results come back as messages.
"""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import worker_process_init

from tests.bench.peers.serving import PROCESSES, Served, reply

app = Celery("gender", broker=os.environ["BENCH_BROKER"], backend="rpc://")
app.conf.update(
    task_serializer="msgpack",
    result_serializer="msgpack",
    accept_content=["msgpack"],
    task_acks_late=True,
    worker_prefetch_multiplier=32,
    worker_concurrency=PROCESSES,
    task_default_queue=os.environ["BENCH_QUEUE"],
    result_expires=600,
    worker_proc_alive_timeout=60,  # the model may take longer to load than the 4 s that it is given by default
)
served: Served


@worker_process_init.connect
def load(**_: object) -> None:
    """Loads the model once in each process."""
    global served  # noqa: PLW0603 - Celery's way: what a process needs is made by its signal
    served = Served()


@app.task(name="predict")
def predict(images: list[bytes]) -> list[dict[str, object]]:
    """Decodes and predicts the images of one task."""
    return [reply(value) for value in served.predict([served.decode(data) for data in images])]

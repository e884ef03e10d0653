"""How long one image takes: when nothing else happens, at half load, and while a job runs."""

from __future__ import annotations

import itertools
import threading
import time

from tests.bench.bare import BareLoops
from tests.bench.load import Saturation, at_rate, one_by_one
from tests.bench.rows import Row, at_most, quantile
from tests.bench.stage import Served, Stage
from tests.bench.throughput import JOB_IMAGES, SINGLES_OUTSTANDING, job_archive

PAUSE_S = 0.01
"""Between an answer and the next image: the workers have come to rest."""
LIMITS_MS = {"RabbitMQ": (3.0, 10.0), "embedded": (5.0, 20.0)}
"""Of the added latency: p50, p99."""


def idle(stage: Stage) -> list[Row]:
    """What queue, broker and client add to decoding and predicting one image, when idle."""
    rows = []
    for broker, (p50_ms, p99_ms) in LIMITS_MS.items():
        with (
            stage.served(broker, "default") as served,
            BareLoops(stage.material.store("default"), stage.material.archive, processes=1, batch_size=1) as bare,
        ):
            lap = bare.run(1 if stage.quick else 3)
            alone_ms = 1000 * lap.seconds / lap.images
            latencies = _one_by_one(stage, served, 100 if stage.quick else 1000)
        for name, share, limit_ms in (("p50", 0.5, p50_ms), ("p99", 0.99, p99_ms)):
            added = 1000 * quantile(latencies, share) - alone_ms
            figure = f"{added:.1f} ms beside {alone_ms:.1f} ms for decoding and predicting alone"
            rows.append(
                Row(f"added latency when idle, {name}, {broker}", figure, None, f"≤ {limit_ms:g} ms", added <= limit_ms)
            )
    return rows


def half_load(stage: Stage) -> list[Row]:
    """The spread of the latency when images come at random moments, half as many as the workers could take."""
    rows = []
    for broker in LIMITS_MS:
        with stage.served(broker, "default") as served:
            images = stage.material.images
            most = Saturation(served.client.broker, served.inbox, images, pack=1, outstanding=SINGLES_OUTSTANDING).run(
                2 if stage.quick else 4
            )
            latencies = at_rate(served.client.broker, served.inbox, images, most.rate / 2, 3 if stage.quick else 12)
        p50, p99 = 1000 * quantile(latencies, 0.5), 1000 * quantile(latencies, 0.99)
        figure = f"p99 {p99:.1f} ms, p50 {p50:.1f} ms at {most.rate / 2:,.0f} images/s"
        rows.append(at_most(f"latency at half load, p99 over p50, {broker}", figure, p99 / p50, 4))
    return rows


def beside_a_job(stage: Stage) -> list[Row]:
    """The latency of single images while a job keeps all workers busy."""
    archive = job_archive(stage, JOB_IMAGES)
    rows = []
    for broker in LIMITS_MS:
        with stage.served(broker, "default") as served:
            alone = _one_by_one(stage, served, 100 if stage.quick else 400)
            job_id = served.client.submit_job(archive)
            ended = threading.Event()

            def watch(served: Served = served, job_id: str = job_id, ended: threading.Event = ended) -> None:
                while not served.client.jobs.get(job_id).state.is_final:
                    time.sleep(0.2)
                ended.set()

            watcher = threading.Thread(target=watch)
            watcher.start()
            while not served.client.jobs.progress(served.client.jobs.get(job_id)).done:
                time.sleep(0.05)
            beside: list[float] = []
            endless = itertools.cycle(stage.material.images)
            while not ended.is_set():
                beside += one_by_one(served.client.broker, served.inbox, [next(endless)], pause_s=PAUSE_S)
            watcher.join()
        p99, idle_p99 = 1000 * quantile(beside, 0.99), 1000 * quantile(alone, 0.99)
        figure = f"p99 {p99:.1f} ms of {len(beside)} images, idle {idle_p99:.1f} ms"
        rows.append(at_most(f"latency beside a job of {JOB_IMAGES:,} images, p99, {broker}", figure, p99 / idle_p99, 3))
    return rows


def _one_by_one(stage: Stage, served: Served, count: int) -> list[float]:
    images = list(itertools.islice(itertools.cycle(stage.material.images), count + 20))
    return one_by_one(served.client.broker, served.inbox, images, pause_s=PAUSE_S)[20:]

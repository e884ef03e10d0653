"""Images a second through the service, against the bare loop."""

from __future__ import annotations

import itertools
import os
import statistics
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.bare import BareLoops, Lap
from tests.bench.load import Saturation
from tests.bench.rows import Pairs, Row, at_least, at_most
from tests.bench.stage import Served, Stage, pinned

PACK = 64
JOB_IMAGES = 20_000
SINGLES_OUTSTANDING = 768
"""Three prefetches: two workers never find the queue empty."""
PACKS_OUTSTANDING = 24
JOB_TIMEOUT_S = 300.0


def reference_singles(stage: Stage) -> list[Row]:
    """Single images, each with a reply, through RabbitMQ, on the reference network."""
    rows, _ = _through_a_queue(stage, "RabbitMQ", "reference", "reference, single images", pack=1, least=0.9)
    return rows


def packs(stage: Stage) -> list[Row]:
    """Packs of 64 on the default network, through both brokers."""
    rows = []
    for broker in ("RabbitMQ", "embedded"):
        rows += _through_a_queue(stage, broker, "default", f"champion, packs of {PACK}", pack=PACK, least=0.9)[0]
    return rows


def singles(stage: Stage) -> list[Row]:
    """Single images on the default network, through both brokers, and what they cost the workers themselves."""
    rows = []
    for broker in ("RabbitMQ", "embedded"):
        what = "champion, single images"
        found, pairs = _through_a_queue(stage, broker, "default", what, pack=1, least=0.7)
        rows += found
        ours = statistics.median(lap.cpu_us for lap in pairs.ours)
        bare = statistics.median(lap.cpu_us for lap in pairs.bare)
        figure = f"{ours:,.0f} µs an image, bare loop {bare:,.0f} µs"
        rows.append(at_most(f"{what}, {broker}: the workers' own CPU time", figure, ours / bare, 1.25))
    return rows


def apart(stage: Stage) -> list[Row]:
    """One worker with a core to itself, the broker and the client on another: what of the rest is the service's own."""
    own, other = _two_cores()
    rows = []
    for model, pack, what, least in (
        ("reference", 1, "reference, single images", 0.9),
        ("default", PACK, f"champion, packs of {PACK}", 0.9),
        ("default", 1, "champion, single images", 0.7),
    ):
        with (
            stage.rabbitmq_on(other),
            stage.served("RabbitMQ", model, workers=1) as served,
            BareLoops(stage.material.store(model), stage.material.archive, processes=1) as bare,
            pinned([*served.pids, *bare.pids], own),
        ):
            pairs = queue_pairs(stage, served, bare, pack=pack)
        rows.append(at_least(f"{what}, RabbitMQ and the client on another core", pairs.figure, pairs.ratio, least))
    return rows


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("found a single core, expected one for the worker and one for the broker and the client")
    return cores[0], cores[1]


def batch_jobs(stage: Stage) -> list[Row]:
    """A job from handing the archive over to the finished results, through both brokers."""
    archive = job_archive(stage, JOB_IMAGES // 2 if stage.quick else JOB_IMAGES)
    rows = []
    for broker in ("RabbitMQ", "embedded"):
        with (
            stage.served(broker, "default") as served,
            BareLoops(stage.material.store("default"), stage.material.archive) as bare,
        ):
            pairs, handing_s = Pairs([], []), []
            for _ in range(1 if stage.quick else 5):
                pairs.bare.append(bare.run(2 if stage.quick else 5))
                lap, seconds = run_job(served, archive)
                pairs.ours.append(lap)
                handing_s.append(seconds)
        rows.append(at_least(f"champion, jobs, {broker}", pairs.figure, pairs.ratio, 0.9))
        rows.append(_but_for_the_disk(f"champion, jobs, {broker}: with an archive at hand", pairs, handing_s))
    return rows


def _but_for_the_disk(name: str, pairs: Pairs, handing_s: Sequence[float]) -> Row:
    """Returns the ratio without handing the archive over: a durable copy of 100 MB, whose time is the disk's."""
    left = [
        Lap(lap.images, lap.seconds - seconds, lap.cpu_s) for lap, seconds in zip(pairs.ours, handing_s, strict=True)
    ]
    figure = f"handing over takes {min(handing_s):.2f} to {max(handing_s):.2f} s of {pairs.ours[0].seconds:.1f}"
    return Row(name, figure, Pairs(pairs.bare, left).ratio, "", None)


def second_worker(stage: Stage) -> list[Row]:
    """Packs by two worker processes against packs by one."""
    seconds = 2 if stage.quick else 4
    with (
        stage.served("RabbitMQ", "default", workers=1) as one,
        stage.served("RabbitMQ", "default", workers=2) as two,
    ):
        loads = [_saturation(stage, served, PACK) for served in (one, two)]
        laps = [[load.run(seconds) for load in loads] for _ in range(2 if stage.quick else 3)]
    ratio = statistics.median(by_two.rate / by_one.rate for by_one, by_two in laps)
    figure = f"{statistics.median(lap.rate for _, lap in laps):,.0f} images/s"
    figure += f", one worker {statistics.median(lap.rate for lap, _ in laps):,.0f}"
    return [at_least(f"a second worker process, packs of {PACK}", figure, ratio, 1.6)]


def _through_a_queue(
    stage: Stage, broker: str, model: str, what: str, *, pack: int, least: float
) -> tuple[list[Row], Pairs]:
    """Returns the ratio to the bare loop, and what it would be if workers took no more than the bare loop does."""
    with (
        stage.served(broker, model) as served,
        BareLoops(stage.material.store(model), stage.material.archive) as bare,
    ):
        pairs = queue_pairs(stage, served, bare, pack=pack)
        load, seconds = _saturation(stage, served, pack), 1.5 if stage.quick else 4
        others = {"client": load.run(seconds).cpu_us}
        if broker == "RabbitMQ":
            others = {broker: load.run(seconds, stage.rabbitmq_cpu_s).cpu_us, **others}
    bare_us = statistics.median(lap.cpu_us for lap in pairs.bare)
    figure = ", ".join(f"{who} {us:,.0f} µs" for who, us in {**others, "bare loop": bare_us}.items())
    left = Row(
        f"{what}, {broker}: what others leave of the cores",
        figure,
        bare_us / (bare_us + sum(others.values())),
        "",
        None,
    )
    return [at_least(f"{what}, {broker}", pairs.figure, pairs.ratio, least), left], pairs


def queue_pairs(stage: Stage, served: Served, bare: BareLoops, *, pack: int) -> Pairs:
    """Returns laps of the bare loops and of a saturated queue by turns; the CPU time is the workers'."""
    seconds, rounds = (1.5, 3) if stage.quick else (4, 4)
    load = _saturation(stage, served, pack)
    bare.run(0.5)
    load.run(0.5)
    pairs = Pairs([], [])
    for _ in range(rounds):
        pairs.bare.append(bare.run(seconds))
        pairs.ours.append(load.run(seconds, served.cpu_s))
    return pairs


def _saturation(stage: Stage, served: Served, pack: int) -> Saturation:
    outstanding = SINGLES_OUTSTANDING if pack == 1 else PACKS_OUTSTANDING
    return Saturation(served.client.broker, served.inbox, stage.material.images, pack=pack, outstanding=outstanding)


def job_archive(stage: Stage, images: int) -> Path:
    """Returns a zip of so many images."""
    path = stage.folder / f"job-{images}.zip"
    if not path.exists():
        with zipfile.ZipFile(path, "w") as archive:
            for index, data in zip(range(images), itertools.cycle(stage.material.images), strict=False):
                archive.writestr(zipfile.ZipInfo(f"30_0_0_{index:017d}.jpg"), data)
    return path


def run_job(served: Served, archive: Path) -> tuple[Lap, float]:
    """Submits a job and follows it to its end. Returns both together, and the seconds that submitting took."""
    started, cpu = time.perf_counter(), served.cpu_s()
    job_id = served.client.submit_job(archive)
    handed_over = time.perf_counter()
    *_, (job, _) = served.client.follow_job(job_id, JOB_TIMEOUT_S)
    took = time.perf_counter() - started
    if job.counts is None or job.counts.errors:
        raise RuntimeError(f"the job did not finish well: {job}")
    return Lap(job.counts.images, took, served.cpu_s() - cpu), handed_over - started

"""One soak: services under load, hurt at random moments, until the time is over and everything is answered."""

from __future__ import annotations

import contextlib
import csv
import io
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.client import Client
from shared.errors import GenderlineError, Retryable
from shared.faces.synthetic import draw_sample
from tests.soak.clock import SettableClock
from tests.soak.ledger import STEEPNESS, Fault, JobEnd, Ledger, threshold_of
from tests.soak.load import Clock, Sender, embedded_receiver, rabbitmq_receiver
from tests.soak.services import Target, weight_of
from tests.support.brokers.rabbitmq_node import RabbitNode, rabbitmq_server
from tests.support.builders.models import ModelBuilder, brightness_model
from tests.support.services import Installation, eventually

VERSIONS = (1, 2, 3)
_SAMPLE_EVERY_S = 2.0


@dataclass(frozen=True)
class Plan:
    """What a soak does.

    Attributes:
        seconds: for how long things are hurt.
        seed: repeats the faults, their order and their moments, and what is sent.
        broker: `sqlite` or `rabbitmq`.
        trainer: whether datasets are trained, too.
        lease_s: after which a dead process's work returns.
        gaps_s: the shortest and the longest time between two faults.
    """

    seconds: float
    seed: int
    broker: str
    trainer: bool = True
    lease_s: float = 4.0
    gaps_s: tuple[float, float] = (1.0, 6.0)


def soak(plan: Plan, folder: Path) -> Ledger:
    """Carries a plan out below an empty folder, and returns what happened.

    Raises:
        AssertionError: the services did not get well again, or an accepted request stays without an answer; what was
            written down lies in `folder / "ledger.jsonl"` all the same.
    """
    ledger = Ledger()
    with contextlib.ExitStack() as stack:
        node = None
        if plan.broker == "rabbitmq":
            (folder / "node").mkdir()
            node = stack.enter_context(contextlib.closing(RabbitNode(folder / "node", rabbitmq_server())))
            node.start()
        target = stack.enter_context(_installed(plan, folder, node))
        try:
            with target.installation.client() as client:
                _register(client)
                target.start()
                _carry_out(plan, target, client, ledger)
                _note_ends(client, ledger)
            for service in target.services.values():
                service.stop(60)
            ledger.left_over = sorted(path.name for path in (folder / "tmp").iterdir())
        finally:
            ledger.write(folder / "ledger.jsonl")
    return ledger


@contextlib.contextmanager
def _installed(plan: Plan, folder: Path, node: RabbitNode | None) -> Iterator[Target]:
    (folder / "tmp").mkdir()
    (folder / "clock").mkdir()
    clock = SettableClock(folder / "clock")
    extra = {"TMPDIR": str(folder / "tmp"), "GENDERLINE_LEASE_S": f"{plan.lease_s:g}", **clock.environment}
    url = node.url if node is not None else f"sqlite:///{folder / 'broker.db'}"
    # One that is killed with its worker is delivered again: no request may be given up for the faults' number.
    installation = Installation(folder, url, extra, delivery_limit=100)
    try:
        yield Target(installation, node, plan.lease_s, clock, plan.trainer)
    finally:
        installation.close()


def _register(client: Client) -> None:
    builder = ModelBuilder(client.store)  # type: ignore[arg-type]
    for version in VERSIONS:
        model = brightness_model(threshold=threshold_of(version), steepness=STEEPNESS)
        assert builder.register(model) == version


def _carry_out(plan: Plan, target: Target, client: Client, ledger: Ledger) -> None:
    started = time.monotonic()

    def clock() -> float:
        return time.monotonic() - started

    with contextlib.ExitStack() as stack:
        receivers = [
            stack.enter_context(
                embedded_receiver(stack.enter_context(target.installation.broker()), ledger, clock)
                if target.node is None
                else rabbitmq_receiver(target.node.url, f"soak.{target.installation.prefix}.{n}", ledger, clock)
            )
            for n in range(2)
        ]
        sender = Sender(
            stack.enter_context(target.installation.broker()),
            ledger,
            clock,
            [receiver.name for receiver in receivers],
            _dataset(target.installation) if plan.trainer else None,
            plan.seed,
        )
        stop_sending, stop = threading.Event(), threading.Event()
        threads = [threading.Thread(target=receiver.run, args=[stop], name=receiver.name) for receiver in receivers] + [
            threading.Thread(target=_watch, args=[target, ledger, clock, stop_sending], name="samples")
        ]
        sending = threading.Thread(target=lambda: sender.run(stop_sending, job_every_s=4, dataset_every_s=25.0))
        for thread in (*threads, sending):
            thread.start()
        try:
            _hurt(plan, target, client, ledger, clock)
            stop_sending.set()
            sending.join()
            target.heal()
            eventually(lambda: not ledger.waiting(), 300, "every accepted request is answered")
            eventually(lambda: _all_ended(client, ledger), 300, "every job and run ends")
            time.sleep(1.0)  # for duplicates, which nobody announces
        finally:
            stop_sending.set()
            stop.set()
            for thread in (*threads, sending):
                thread.join()


def _hurt(plan: Plan, target: Target, client: Client, ledger: Ledger, clock: Clock) -> None:
    """Makes one fault after the other, each kind as often as its weight says, and promotes now and then."""
    rng = random.Random(f"faults {plan.seed}")
    faults = target.faults()
    bag: list[str] = []
    time.sleep(min(2.0, plan.seconds / 5))  # a first answer, which nothing has hurt
    while clock() < plan.seconds:
        if not bag:
            kinds = sorted(faults)
            bag = rng.sample(kinds, sum(map(weight_of, kinds)), counts=list(map(weight_of, kinds)))
        kind = bag.pop()
        at = clock()
        try:
            faults[kind](rng)
        except subprocess.SubprocessError:  # of `rabbitmqctl`, on a machine that is busy: nothing was done
            continue
        # It is over now: from here on, the services have to recover.
        ledger.faults.append(Fault(kind, clock() if clock() - at > 0.2 else at))
        with contextlib.suppress(Retryable):
            client.promote(rng.choice(VERSIONS), "the soak")
        time.sleep(rng.uniform(*plan.gaps_s))


def _watch(target: Target, ledger: Ledger, clock: Clock, stop: threading.Event) -> None:
    while not stop.wait(_SAMPLE_EVERY_S):
        ledger.samples.append(target.sample(clock()))


def _dataset(installation: Installation) -> bytes:
    with tempfile.TemporaryDirectory(dir=installation.folder) as folder:
        draw_sample(Path(folder) / "faces.zip", 40, seed=7)
        return (Path(folder) / "faces.zip").read_bytes()


def _all_ended(client: Client, ledger: Ledger) -> bool:
    records = [client.jobs.find(job.job_id) for job in ledger.jobs]
    runs = [client.runs.find(run_id) for run_id in ledger.datasets]
    return all(record is not None and record.state.is_final for record in (*records, *runs))


def _note_ends(client: Client, ledger: Ledger) -> None:
    for job in ledger.jobs:
        record = client.jobs.find(job.job_id)
        if record is None:
            continue
        rows: tuple[float | None, ...] = ()
        with contextlib.suppress(GenderlineError):
            text = client.store.get(client.jobs.results_key(job.job_id)).decode()
            table = csv.DictReader(io.StringIO(text))
            rows = tuple(float(row["probability_female"]) if row["probability_female"] else None for row in table)
        version = record.model.version if record.model else None
        ledger.job_ends[job.job_id] = JobEnd(str(record.state), version, rows)
    owners = [client.registry.card(version).run_id for version in client.registry.versions()]
    for run_id in ledger.datasets:
        if (run := client.runs.find(run_id)) is not None:
            ledger.runs[run_id] = (str(run.state), owners.count(run_id))

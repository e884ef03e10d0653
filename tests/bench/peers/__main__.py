"""`python -m tests.bench.peers`: ours beside what else one could take to serve the same, all in one run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from shared.faces.decode import configure_opencv
from tests.bench import report
from tests.bench.bare import BareLoops, Lap
from tests.bench.load import Saturation
from tests.bench.material import ROOT, Material, material
from tests.bench.peers.serving import DECODER, MODEL
from tests.bench.rows import Row
from tests.bench.stage import Stage, open_stage
from tests.bench.throughput import JOB_IMAGES, PACK, PACKS_OUTSTANDING, SINGLES_OUTSTANDING, job_archive, run_job
from tests.support.brokers.rabbitmq_node import free_port
from tests.support.services import eventually

FOLDER = Path(__file__).parent
READY_S = 120
CELERY = "celery -A tests.bench.peers.serve_celery worker -l WARNING --without-gossip --without-mingle -n "


@dataclass(frozen=True)
class Peer:
    """One way to serve.

    Attributes:
        name: for people.
        package: its requirements are in `<package>.txt`, its server in `serve_<package>.py`.
        command: after `python -m`, with the port for `{port}`.
        address: what its driver takes: path and form of a request; images in a task for Celery.
    """

    name: str
    package: str
    command: str
    address: tuple[str, ...]


PEERS = (
    Peer("mosec", "mosec", "tests.bench.peers.serve_mosec --address 127.0.0.1 --port {port}", ("inference", "body")),
    Peer("LitServe", "litserve", "tests.bench.peers.serve_litserve {port}", ("predict", "form")),
    Peer(
        "BentoML",
        "bentoml",
        "bentoml serve tests.bench.peers.serve_bentoml:Gender --host 127.0.0.1 --port {port}",
        ("predict", "body"),
    ),
    Peer("Celery, one image a task", "celery", CELERY + "one", ("1",)),
    Peer("Celery, 32 images a task", "celery", CELERY + "many", ("32",)),
)


def python_of(package: str) -> Path:
    """Returns the Python of a peer's own virtual environment, made now if it is not there."""
    requirements = FOLDER / f"{package}.txt"
    folder = ROOT / ".venvs" / f"bench-{package}"
    installed = folder / "requirements.txt"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--requirement", str(requirements)], check=True)
        installed.write_text(requirements.read_text())
    return folder / "bin" / "python"


class Driver:
    """A process that keeps a peer busy when told to."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, seconds: float) -> Lap:
        """Returns how many images it got answers for, and in which time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver ended with {self._process.wait()}")
        answer = json.loads(line)
        return Lap(answer["images"], answer["seconds"], 0.0)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@contextlib.contextmanager
def serving(peer: Peer, served: Mapping[str, str], stage: Stage) -> Iterator[Driver]:
    """Starts a peer's server and its driver, warms both up, and ends them afterwards."""
    python, port = str(python_of(peer.package)), free_port()
    env = {
        **os.environ,
        **served,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "1",
        "BENCH_BROKER": stage.broker_url("RabbitMQ", stage.folder),
        "BENCH_QUEUE": f"celery-{served[DECODER]}-{peer.address[-1]}",
    }
    log = Path(tempfile.mkstemp(dir=stage.folder, suffix=f"-{peer.package}.log")[1])
    with log.open("wb") as output:
        server = subprocess.Popen(
            [python, "-m", *peer.command.format(port=port).split()],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    archive = str(stage.material.archive)
    if peer.package == "celery":
        command = [python, "-m", "tests.bench.peers.drive_celery", archive, peer.address[0]]
    else:
        address = f"http://127.0.0.1:{port}/{peer.address[0]}"
        command = [sys.executable, "-m", "tests.bench.peers.drive_http", address, archive, peer.address[1]]
    try:
        if peer.package != "celery":
            eventually(lambda: _answers(port, server), READY_S, f"{peer.name} answers; see {log}")
        with contextlib.closing(Driver(command, env)) as driver:
            driver.run(2)
            yield driver
    finally:
        # In order first: BentoML's processes are of no common group, and only their parent ends them all.
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    if server.poll() is not None:
        raise RuntimeError(f"the server ended with {server.returncode}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def measure(stage: Stage, name: str, model: Path, decoder: str, console: Console) -> dict[str, float]:
    """Returns the images a second of the bare loop and of each peer, measured by turns."""
    served = {MODEL: str(model), DECODER: decoder}
    seconds, rounds = (2, 1) if stage.quick else (4, 3)
    with contextlib.ExitStack() as close:
        bare = close.enter_context(BareLoops(None, stage.material.archive, like_peers=served))
        drivers: dict[str, BareLoops | Driver] = {"bare loop": bare}
        for peer in PEERS:
            drivers[peer.name] = close.enter_context(serving(peer, served, stage))
        laps = [{who: driver.run(seconds).rate for who, driver in drivers.items()} for _ in range(rounds)]
    rates = {who: statistics.median(lap[who] for lap in laps) for who in drivers}
    for who, rate in rates.items():
        console.print(f"{name}: {who}: {rate:,.0f} images/s", highlight=False)
    return rates


def measure_ours(stage: Stage) -> dict[str, float]:
    """Returns the images a second of ours, by how they come."""
    seconds, rounds = (2, 1) if stage.quick else (4, 3)
    images, archive = stage.material.images, job_archive(stage, JOB_IMAGES // 2 if stage.quick else JOB_IMAGES)
    with stage.served("RabbitMQ", "default") as served:
        broker = served.client.broker
        packs = Saturation(broker, served.inbox, images, pack=PACK, outstanding=PACKS_OUTSTANDING)
        singles = Saturation(broker, served.inbox, images, pack=1, outstanding=SINGLES_OUTSTANDING)
        packs.run(1)
        laps = [
            {
                "packs": packs.run(seconds).rate,
                "jobs": run_job(served, archive)[0].rate,
                "single images": singles.run(seconds).rate,
            }
            for _ in range(rounds)
        ]
    return {how: statistics.median(lap[how] for lap in laps) for how in laps[0]}


def rows_of(reference: Mapping[str, float], same: Mapping[str, float], ours: Mapping[str, float]) -> list[Row]:
    """Returns each peer against its bare loop, and ours against the best peer."""
    rows = []
    for what, rates in (("reference, Pillow", reference), ("our model, our decoder", same)):
        bare = rates["bare loop"]
        rows += [Row(f"{what}: {who}", f"{rate:,.0f} images/s", rate / bare, "", None) for who, rate in rates.items()]
    best_reference, best_same = (_best(rates) for rates in (reference, same))
    for how, rate in ours.items():
        for (who, best), least, what in (
            (best_reference, 3.0 if how == "single images" else 4.0, "reference with Pillow"),
            (best_same, 0.75 if how == "single images" else 1.0, "our model with our decoder"),
        ):
            figure = f"{rate:,.0f} images/s, {who} {best:,.0f}"
            ratio = rate / best
            rows.append(
                Row(f"ours, {how}, against the best serving {what}", figure, ratio, f"≥ {least:g}", ratio >= least)
            )
    return rows


def _best(rates: Mapping[str, float]) -> tuple[str, float]:
    return max(((who, rate) for who, rate in rates.items() if who != "bare loop"), key=lambda each: each[1])


def served_file(found: Material) -> Path:
    """Returns the file of the default network that is served on this machine: in int8 where that is faster."""
    with BareLoops(found.store("default"), found.archive, processes=1) as bare:
        name = "model_int8.onnx" if bare.precision == "int8" else "model.onnx"
    return found.store("default") / "models" / "gender" / "1" / name


def main() -> int:
    """Sets the peers up and measures everything. Returns 1 where a target is not reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="rougher figures in a fraction of the time")
    parser.add_argument("--write", action="store_true", help="renew docs/benchmarks.md")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    configure_opencv()
    console.print("preparing: each peer gets a virtual environment of its own in .venvs")
    for package in {peer.package for peer in PEERS}:
        python_of(package)
    found = material()
    with open_stage(found, quick=arguments.quick) as stage:
        plain = found.store("reference") / "models" / "gender" / "1" / "model.onnx"
        reference = measure(stage, "reference, Pillow", plain, "pillow", console)
        same = measure(stage, "our model, our decoder", served_file(found), "ours", console)
        rows = rows_of(reference, same, measure_ours(stage))
    console.print(report.machine(), report.versions(), *report.models(found), sep="\n", highlight=False)
    report.show("Ours, and others", rows, console)
    if arguments.write:
        report.write("peers", "make bench-peers", rows, found)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

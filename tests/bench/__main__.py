"""`python -m tests.bench`: how fast the service is, in ratios to a bare loop on the same cores in the same run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from rich.console import Console

from shared.faces.decode import configure_opencv
from tests.bench import gpu, ingesting, latency, lifetime, queues, report, throughput, training
from tests.bench.material import material
from tests.bench.rows import Row
from tests.bench.stage import Stage, open_stage

BENCHMARKS: dict[str, Callable[[Stage], list[Row]]] = {
    "reference": throughput.reference_singles,
    "packs": throughput.packs,
    "jobs": throughput.batch_jobs,
    "singles": throughput.singles,
    "apart": throughput.apart,
    "idle": latency.idle,
    "half-load": latency.half_load,
    "beside-job": latency.beside_a_job,
    "publishes": queues.confirmed_publishes,
    "embedded": queues.embedded_batches,
    "ingest": ingesting.ingesting,
    "training": training.training,
    "second-worker": throughput.second_worker,
    "start": lifetime.start,
    "overload": lifetime.overload,
    "swaps": lifetime.swaps,
}

ON_A_GPU: dict[str, Callable[[Stage], list[Row]]] = {
    "batches": gpu.batches,
    "jobs": gpu.jobs,
    "layouts": gpu.layouts,
    "training": gpu.learning,
    "swaps": gpu.swaps,
}


_COMMANDS = {"ours": "make bench", "gpu": "make bench-gpu"}
"""By the part of `docs/benchmarks.md` that each renews."""


def main() -> int:
    """Runs the benchmarks asked for. Returns 1 where a target is not reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="measure what a GPU adds, and only that")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these only; --list names them")
    parser.add_argument("--quick", action="store_true", help="rougher figures in a fraction of the time")
    parser.add_argument("--write", action="store_true", help="renew docs/benchmarks.md")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and end")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    benchmarks = ON_A_GPU if arguments.gpu else BENCHMARKS
    if unknown := set(arguments.only or ()) - benchmarks.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; expected some of {', '.join(benchmarks)}")
    if arguments.list:
        for name, benchmark in benchmarks.items():
            console.print(f"{name:<14} {benchmark.__doc__}")
        return 0
    if arguments.gpu and gpu.name() is None:
        parser.error("found no GPU that ONNX Runtime can use, expected one, and the extra `inference-gpu`")
    configure_opencv()
    console.print("preparing: on the first run two networks are trained, which takes some minutes")
    rows: list[Row] = []
    with open_stage(material(), quick=arguments.quick) as stage:
        for name in arguments.only or benchmarks:
            started = time.monotonic()
            found = benchmarks[name](stage)
            rows += found
            for row in found:
                console.print(f"{time.monotonic() - started:5.0f} s  {row.name}: {row.figure}", highlight=False)
        console.print(report.machine(), report.versions(), *report.models(stage.material), sep="\n", highlight=False)
        report.show("On a GPU" if arguments.gpu else "Ours, and the bare loop", rows, console)
        if arguments.write:
            section = "gpu" if arguments.gpu else "ours"
            report.write(section, " ".join([_COMMANDS[section], *_arguments_note()]), rows, stage.material)
    return 0 if all(row.met is not False for row in rows) else 1


def _arguments_note() -> list[str]:
    given = [argument for argument in sys.argv[1:] if argument not in {"--write", "--gpu"}]
    return [f"ARGS='{' '.join(given)}'"] if given else []


if __name__ == "__main__":
    sys.exit(main())

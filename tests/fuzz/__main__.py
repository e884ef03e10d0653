"""Feeds mutated archives, images, tables, messages, events and forms to their readers, for as long as it is told to.

Whatever comes, a reader answers with a result or with one of our errors, within two seconds of CPU time and one
gigabyte. An input that does otherwise is written to the corpus, which `tests/unit/test_fuzz.py` replays.

    python -m tests.fuzz MINUTES [SEED]
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS, mutate, seeds

CORPUS: Final = Path(__file__).with_name("corpus")
SLOW_S: Final = 2.0
_LARGE_BYTES: Final = 2**30
_HANG_S: Final = 30.0
_BATCH: Final = 400
"""Inputs that one child tries: a new one shows what each batch takes."""


def main() -> int:
    """Fuzzes. Returns 1 where something was found."""
    CORPUS.mkdir(exist_ok=True)
    minutes, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    until = time.monotonic() + 60 * minutes
    tried: Counter[str] = Counter()
    found = 0
    batch = 0
    peak = 0
    slowest = 0.0
    while time.monotonic() < until:
        for name in TARGETS:
            batch += 1
            count, problem, data, took, grown = _run(name, (seed, batch))
            tried[name] += count
            slowest, peak = max(slowest, took), max(peak, grown)
            if problem:
                found += 1
                path = CORPUS / f"{name}-{seed}-{batch}.bin"
                path.write_bytes(data)
                print(f"{name}: {problem}: {path}", flush=True)  # noqa: T201
    print(  # noqa: T201
        f"seed {seed}, {minutes:g} minutes: " + ", ".join(f"{count:,} {name}" for name, count in tried.items()),
        f"slowest {slowest:.2f} s, a child's peak {peak / 2**20:,.0f} MiB, problems {found}",
        sep="\n",
    )
    return 1 if found else 0


def _run(name: str, seed: tuple[int, int]) -> tuple[int, str, bytes, float, int]:
    """Runs a batch in a child. Returns inputs tried, a problem or "", its input, the longest time, and memory used."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_work, args=(theirs, name, seed))
    process.start()
    theirs.close()
    count, data, slowest, grown = 0, b"", 0.0, 0
    problem = ""
    try:
        while True:
            if not ours.poll(_HANG_S):
                problem = "hangs"
                break
            message = ours.recv()
            if message is None:
                break
            if isinstance(message, bytes):
                data = message
                continue
            problem, took, grown = message
            count += 1
            slowest = max(slowest, took)
            if problem:
                break
    except EOFError:
        process.join()
        problem = f"kills its process ({process.exitcode})"
    process.kill()
    process.join()
    return count, problem, data, slowest, grown


def _work(pipe: Connection, name: str, seed: tuple[int, int]) -> None:
    import random

    logging.disable()  # each input that is refused would be told of
    rng = random.Random(repr((name, seed)))
    chosen = seeds(name)
    before = _memory()
    for _ in range(_BATCH):
        data = mutate(rng.choice(chosen), rng, chosen)
        pipe.send(data)
        started = time.process_time()  # the machine may be busy with other things
        problem = ""
        try:
            TARGETS[name](data)
        except Exception as error:  # which is what is looked for
            problem = f"{type(error).__name__}: {error}"
        took, grown = time.process_time() - started, _memory() - before
        if not problem and took > SLOW_S:
            problem = f"takes {took:.1f} s"
        if not problem and grown > _LARGE_BYTES:
            problem = f"takes {grown:,} bytes"
        pipe.send((problem, took, grown))
    pipe.send(None)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())

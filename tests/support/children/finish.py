"""A worker that ends a job and stops itself at a named point: `finish.py STORE_URL POINT`.

Points:
    before-the-parts: it owns the job's end, and has not read the parts.
    after-the-parts: it has read the parts, and has not written the results.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from inference.jobs import finish
from inference.jobs.finish import JobFinisher
from shared.errors import GenderlineError
from shared.records.results import assemble
from shared.store import open_store

JOB = "job-1"


def main() -> None:
    url, point = sys.argv[1:]

    def stopping(path: Path, parts: Iterable[str]) -> tuple[dict[str, int], float | None]:
        if point == "before-the-parts":
            os.kill(os.getpid(), signal.SIGSTOP)
        found = assemble(path, parts)
        if point == "after-the-parts":
            os.kill(os.getpid(), signal.SIGSTOP)
        return found

    vars(finish)["assemble"] = stopping
    finisher = JobFinisher(open_store(url), lambda *_: None, 3600)
    assert finisher.claim(JOB, 1)
    try:
        outcome = str(len(finisher.finish(JOB)))
    except GenderlineError as error:
        outcome = type(error).__name__
    sys.stdout.write(f"finish: {outcome}\n")


if __name__ == "__main__":
    main()

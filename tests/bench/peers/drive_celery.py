"""Keeps Celery busy by its own client: more images outstanding than the workers hold at once.

Prints `{"images", "seconds"}` a line for each line of its standard input, which says for how many seconds.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import zipfile
from collections import deque

from tests.bench.peers.serve_celery import predict

OUTSTANDING = 256
TIMEOUT_S = 60


def main() -> int:
    """Runs until its standard input ends."""
    path, size = sys.argv[1], int(sys.argv[2])
    with zipfile.ZipFile(path) as archive:
        images = [archive.read(member) for member in archive.infolist()]
    endless = itertools.cycle(images)
    for line in sys.stdin:
        under_way = deque(predict.delay(list(itertools.islice(endless, size))) for _ in range(OUTSTANDING // size))
        for _ in range(len(under_way) // 2):
            under_way.popleft().get(timeout=TIMEOUT_S)
            under_way.append(predict.delay(list(itertools.islice(endless, size))))
        started, done = time.perf_counter(), 0
        while (took := time.perf_counter() - started) < float(line):
            answers = under_way.popleft().get(timeout=TIMEOUT_S)
            done += len(answers)
            under_way.append(predict.delay(list(itertools.islice(endless, size))))
        for result in under_way:
            result.get(timeout=TIMEOUT_S)
        sys.stdout.write(json.dumps({"images": done, "seconds": took}) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

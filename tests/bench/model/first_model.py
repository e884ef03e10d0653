"""How long it takes from the drop of a zip to a registered model, from the starter and from random weights.

    python -m tests.bench.model.first_model FACES.zip [COUNT] [INIT ...]

One trainer runs as a service with the default settings, on the embedded broker. Each run is given the first COUNT
faces of the archive.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tests.support.services import Installation
from tests.support.training import finished


def main() -> int:
    """Measures, and prints a line for each start."""
    source, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        installation = Installation(folder, f"sqlite:///{folder / 'broker.db'}", {"OMP_NUM_THREADS": ""})
        with contextlib.closing(installation), installation.client() as client:
            installation.start("trainer")
            for init in sys.argv[3:] or ["auto", "scratch"]:
                _take_first(source, folder / "faces.zip", count, comment=init)
                dropped = time.monotonic()
                run = finished(
                    client, client.submit_dataset(folder / "faces.zip", params={"init": init}), timeout_s=3600
                )
                seconds = time.monotonic() - dropped
                assert run.metrics is not None, run
                print(f"{count:,} faces, init={init}: {seconds:.1f} s, accuracy {run.metrics['test_accuracy']:.3f}")  # noqa: T201
    return 0


def _take_first(source: Path, target: Path, count: int, comment: str) -> None:
    """Writes the first faces into a zip; another comment makes another dataset, which must be read anew."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as taken:
        for member in archive.infolist()[:count]:
            taken.writestr(member, archive.read(member))
        taken.comment = comment.encode()


if __name__ == "__main__":
    sys.exit(main())

"""Ingest of as many plain JPEGs as UTKFace has, beside an earlier commit, in turns: how much slower has it become?

python -m tests.bench.ingest_beside [COMMIT] [TURNS] [FACES]
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from tests.bench.material import UTKFACE, write_archive

ROOT: Final = Path(__file__).resolve().parents[2]
MOST: Final = 1.05

# It runs in either tree, whose modules have other names.
_INGEST: Final = """
import os, sys, tempfile, time
from pathlib import Path
try:
    from shared.archives.archive import ArchiveLimits
    from shared.faces.decode import ImageLimits
    from shared.runtime.settings import Settings
    from trainer.data.ingest import ingest
except ImportError:
    from shared.archive import ArchiveLimits
    from shared.image import ImageLimits
    from shared.settings import Settings
    from trainer.ingest import ingest
settings = Settings()
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
    started, before = time.perf_counter(), os.times()
    summary = ingest(
        Path(sys.argv[1]), Path(folder) / "d", ArchiveLimits.from_settings(settings),
        ImageLimits.from_settings(settings), threads=2,
    )
    after = os.times()
    assert not summary.rejects, summary.rejects
    print(time.perf_counter() - started, sum(after[:4]) - sum(before[:4]))
"""


def main() -> int:
    """Measures, prints, and returns 1 where the CPU time has grown by more than 5 %."""
    commit = sys.argv[1] if len(sys.argv) > 1 else "f8fd484"
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    faces = int(sys.argv[3]) if len(sys.argv) > 3 else UTKFACE
    with tempfile.TemporaryDirectory() as folder:
        archive, before = Path(folder) / "faces.zip", Path(folder) / "before"
        write_archive(archive, faces, distinct=min(faces, 300))
        tree = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(tree)) as packed:
            packed.extractall(before, filter="data")
        taken: dict[Path, list[tuple[float, float]]] = {before: [], ROOT: []}
        for _ in range(turns):
            for root, times in taken.items():
                command = [sys.executable, "-c", _INGEST, str(archive), folder]
                environment = os.environ | {"PYTHONPATH": str(root)}
                ended = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True)
                wall, cpu = map(float, ended.stdout.split())
                times.append((wall, cpu))
        (was_s, was_cpu), (is_s, is_cpu) = (
            [statistics.median(column) for column in zip(*times, strict=True)] for times in taken.values()
        )
    print(  # noqa: T201
        f"{faces:,} faces, {turns} turns: {commit} {was_s:.2f} s, {was_cpu:.2f} s of CPU; now {is_s:.2f} s, "
        f"{is_cpu:.2f} s of CPU; ratio {is_s / was_s:.3f} in time, {is_cpu / was_cpu:.3f} in CPU time"
    )
    return int(is_cpu / was_cpu > MOST)


if __name__ == "__main__":
    sys.exit(main())

"""Ingest of as many plain JPEGs as UTKFace has, beside an earlier commit, in turns: how much slower has it become?

python -m tests.bench.parts.ingest_beside [COMMIT] [TURNS] [FACES]
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

ROOT: Final = Path(__file__).resolve().parents[3]
MOST: Final = 1.05

# It runs in either tree, whose modules have other names.
_INGEST: Final = """
import sys, tempfile, time
from pathlib import Path
try:
    from shared.archives.archive import Archive, ArchiveLimits
    from shared.faces.decode import ImageLimits, configure_opencv, decode_face
    from shared.runtime.settings import Settings
    from trainer.data.ingest import ingest
except ImportError:
    from shared.archive import Archive, ArchiveLimits
    from shared.image import ImageLimits, configure_opencv, decode_face
    from shared.settings import Settings
    from trainer.ingest import ingest
settings = Settings()
archive, limits = Path(sys.argv[1]), ImageLimits.from_settings(settings)
archive_limits = ArchiveLimits.from_settings(settings)
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
    started = time.perf_counter()
    summary = ingest(archive, Path(folder) / "d", archive_limits, limits, threads=2)
    wall = time.perf_counter() - started
    assert not summary.rejects, summary.rejects
configure_opencv()
before = time.process_time()
with Archive(archive, archive_limits) as opened:
    for start in range(0, min(4000, len(opened.entries)), 32):
        for content in opened.read_together(opened.entries[start : start + 32]):
            decode_face(content, limits)
print(wall, time.process_time() - before)
"""


def main() -> int:
    """Measures, prints, and returns 1 where it takes over 5 % more time, or decoding alone more CPU time."""
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
        f"{faces:,} faces, {turns} turns: {commit} {was_s:.2f} s, now {is_s:.2f} s, ratio {is_s / was_s:.3f}; reading "
        f"and decoding in one process {was_cpu:.2f} and {is_cpu:.2f} s of CPU, ratio {is_cpu / was_cpu:.3f}"
    )
    return int(max(is_s / was_s, is_cpu / was_cpu) > MOST)


if __name__ == "__main__":
    sys.exit(main())

"""From a zip as large as UTKFace to a decoded dataset, against decoding alone."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from shared.archives.archive import ArchiveLimits
from shared.faces.decode import ImageLimits
from shared.runtime.settings import Settings
from tests.bench.bare import BareLoops, Lap
from tests.bench.material import UTKFACE
from tests.bench.rows import Pairs, Row, at_least
from tests.bench.stage import Stage
from trainer.data.ingest import ingest


def ingesting(stage: Stage) -> list[Row]:
    """Reading, decoding, checking, hashing, splitting and writing against decoding from memory in two processes."""
    archive = stage.material.like_utkface()
    settings = Settings()
    pairs = Pairs([], [])
    with BareLoops(None, archive) as bare:
        for _ in range(1 if stage.quick else 3):
            pairs.bare.append(bare.run(2 if stage.quick else 4))
            with tempfile.TemporaryDirectory(dir=stage.folder) as folder:
                cpu = _cpu_s()
                summary = ingest(
                    archive,
                    Path(folder) / "dataset",
                    ArchiveLimits.from_settings(settings),
                    ImageLimits.from_settings(settings),
                    threads=settings.cores,
                )
                if summary.rejects:
                    raise RuntimeError(f"expected every face to be taken, found rejects {summary.rejects}")
                pairs.ours.append(Lap(summary.images_seen, summary.seconds, _cpu_s() - cpu))
    rate = statistics.median(lap.rate for lap in pairs.ours)
    name = f"ingest of {UTKFACE:,} faces"
    return [
        at_least(f"{name}, against decoding alone", pairs.figure.replace("bare loop", "decoding"), pairs.ratio, 0.7),
        Row(name, f"{rate:,.0f} images/s", None, "≥ 8,000 images/s", rate >= 8000),
    ]


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

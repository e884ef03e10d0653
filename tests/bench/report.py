"""The results as a table in the terminal and in `docs/benchmarks.md`."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench import gpu
from tests.bench.material import MODELS, ROOT, Material
from tests.bench.rows import Row

DOCUMENT = ROOT / "docs" / "benchmarks.md"
HEADINGS = ("what", "figure", "ratio", "target", "reached")


def show(title: str, rows: Sequence[Row], console: Console) -> None:
    """Prints a table."""
    table = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading == "ratio" else "left")
    for row in rows:
        *cells, reached = _cells(row)
        table.add_row(*cells, Text(reached, {"yes": "green", "no": "bold red"}.get(reached, "")))
    console.print(table)


def write(section: str, command: str, rows: Sequence[Row], material: Material) -> None:
    """Puts a table in the place of the last one under the heading `section` of `docs/benchmarks.md`."""
    lines = [
        f"`{command}` on {dt.datetime.now(dt.UTC):%Y-%m-%d}: {machine()}.",
        "",
        versions(),
        "",
        *models(material),
        "",
        f"| {' | '.join(HEADINGS)} |",
        "| --- | --- | ---: | --- | --- |",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]
    text = DOCUMENT.read_text(encoding="utf-8")
    pattern = re.compile(rf"(?<=<!-- {section} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"found no part {section!r} in {DOCUMENT}, expected `<!-- {section} -->` … `<!-- end -->`")
    new = "\n" + "\n".join(lines) + "\n\n"
    DOCUMENT.write_text(pattern.sub(lambda _: new, text), encoding="utf-8")


def machine() -> str:
    """Returns the processor, its cores and the kernel."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or "an unknown processor",
    )
    cores = sum(line.startswith("processor") for line in _lines("/proc/cpuinfo"))
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    found = f"{model}, {cores} cores, {memory:.0f} GB, {platform.system()} {platform.release()}"
    return found if (card := gpu.name()) is None else f"{found}; {card}"


def versions() -> str:
    """Returns the versions of what does the work."""
    names = ("opencv-python-headless", "numpy", "pika", "torch")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"Python {platform.python_version()}, onnxruntime {ort.__version__} on {ort.get_device()}, {found}."


def models(material: Material) -> list[str]:
    """Returns a line a model: what it is. What a network learns from drawn faces says nothing about people."""
    lines = []
    for name in MODELS:
        card = material.card(name)
        int8 = "float32"
        if (variant := card.variants.get("int8")) is not None:
            kept = "kept" if variant.file else "not kept"
            int8 = f"int8 {kept} ({variant.accuracy:.3f} against {variant.accuracy_float32:.3f} in float32)"
        lines.append(
            f"- {name}: network {card.params['network']}, {card.multiply_adds / 1e6:.0f} M multiply-adds, {int8}; "
            f"epochs on synthetic faces: {card.epochs}."
        )
    return lines


def _cells(row: Row) -> list[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return [row.name, row.figure, ratio, row.target, _reached(row)]


def _reached(row: Row) -> str:
    return {True: "yes", False: "no", None: ""}[row.met]


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []

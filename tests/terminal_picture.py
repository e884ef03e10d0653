"""The README's picture of the terminal, of the demo: `python -m tests.terminal_picture FILE.svg [ZIP]`."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 96


def main(target: Path, archive: Path | None) -> None:
    """Runs the demo in an empty folder, on `archive` or on drawn faces, and saves what it printed."""
    command = [str(Path(sys.executable).with_name("genderline")), "demo", "--once"]
    if archive is not None:
        command += ["--dataset", str(archive.resolve())]
    with tempfile.TemporaryDirectory() as folder:
        # Colours as on a terminal, but a line for each step instead of bars that move.
        colours = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(WIDTH)}
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **colours},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )
    printed = done.stdout.decode().replace(folder, "~/genderline")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo ONCE=1", style="bold green"))
    console.print(Text.from_ansi(printed))
    svg = console.export_svg(title="genderline")
    # Rich names fonts on other hosts; every viewer has a monospaced one of its own.
    target.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)

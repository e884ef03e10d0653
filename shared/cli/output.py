"""What commands print: results on standard output, progress and remarks on standard error; colours on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from shared.runtime.log import printable

NOTHING: Final = "-"
_PLAIN_WIDTH: Final = 240
"""Columns where there is no terminal to ask: lines for programs and files are not to be broken."""
_PLAIN_PAUSE_S: Final = 10.0

STYLES: Final[Mapping[str, str]] = {
    "registered": "green",
    "ingested": "green",
    "finished": "green",
    "champion": "bold green",
    "challenger": "cyan",
    "rejected": "red",
    "failed": "red",
    "cancelled": "yellow",
    "queued": "dim",
}
"""How states look on a terminal."""


class Output:
    """A command's standard output and standard error.

    Args:
        as_json: whether standard output is for a program: one JSON document and nothing else.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._out = _console(error=False)
        self._err = _console(error=True)

    def document(self, value: Any) -> None:
        """Prints the one JSON document."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        # Letters of every script stay readable; what could steer a terminal is escaped, as JSON allows.
        sys.stdout.write("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n")

    def line(self, text: str = "", style: str | None = None) -> None:
        """Prints a line of the result."""
        self._out.print(Text(printable(text), style=style or ""), soft_wrap=True)

    def remark(self, text: str, style: str | None = None) -> None:
        """Prints a line that is no result: on standard error."""
        self._err.print(Text(printable(text), style=style or ""), soft_wrap=True)

    def error(self, text: str) -> None:
        """Prints what went wrong, on standard error; of several lines, each."""
        for line in text.splitlines():
            self._err.print(Text.assemble(("error: ", "bold red"), printable(line)), soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()) -> None:
        """Prints an aligned table; cells named in `STYLES` get their colour.

        Args:
            headings: one a column.
            rows: the cells; None shows as a dash.
            right: the columns, from 0, whose numbers stand to the right.
        """
        numbers = set(right)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
        for column, heading in enumerate(headings):
            # Only the last column may be folded: a cut-off id or number is of no use.
            table.add_column(
                heading,
                justify="right" if column in numbers else "left",
                no_wrap=column < len(headings) - 1,
                overflow="fold",
            )
        for row in rows:
            cells = [NOTHING if cell is None else printable(str(cell)) for cell in row]
            table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
        self._out.print(table)

    def markdown(self, text: str) -> None:
        """Prints Markdown, rendered on a terminal."""
        from rich.markdown import Markdown  # noqa: PLC0415 - slow to import, and one command's only

        clean = "\n".join(printable(line) for line in text.splitlines())
        if self._out.is_terminal:
            self._out.print(Markdown(clean, hyperlinks=False))
        else:
            self._out.print(Text(clean), soft_wrap=True)

    def steps(self) -> Steps:
        """Returns a display of work in progress, on standard error."""
        return _LiveSteps(self._err) if self._err.is_terminal else Steps(self._err)


class Steps:
    """Shows the steps of some work as they go on: a line now and then, for logs and pipes. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name: str | None = None
        self._due = 0.0

    def step(
        self,
        name: str,
        done: float = 0,
        total: float | None = None,
        *,
        unit: str = "images",
        rate: float | None = None,
        eta_s: float | None = None,
        detail: str = "",
    ) -> None:
        """Says how far a step is; a new name ends the step before.

        Args:
            name: what is being done, such as `training`.
            done: out of `total`, in `unit`.
            total: None where it is unknown.
            unit: what is counted.
            rate: units a second; None where nobody measured it.
            eta_s: seconds left; None where nobody knows.
            detail: such as `epoch 3/20`.
        """
        if name == self._name and time.monotonic() < self._due:
            return
        parts = [
            f"{done / total:.0%}" if total else "",
            _rate_text(rate, unit) if rate else "",
            f"{_clock_text(eta_s)} left" if eta_s is not None else "",
            detail,
        ]
        said = ", ".join(part for part in parts if part)
        if name != self._name:
            self.line(name)
        elif said:
            self.line(f"{name}: {said}")
        self._name, self._due = name, time.monotonic() + _PLAIN_PAUSE_S

    def line(self, text: str, style: str | None = None) -> None:
        """Prints a line that stays, above what goes on."""
        self._console.print(Text(printable(text), style=style or ""), soft_wrap=True)

    def finish(self) -> None:
        """Marks the last step as done; the next one is a new one, whatever its name."""
        self._name = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the display."""


class _LiveSteps(Steps):
    """Bars that move, one a step."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            _Share(),
            _Rate(),
            _Left(),
            TextColumn("{task.fields[detail]}", markup=False, style="dim"),
            console=console,
            refresh_per_second=8,
        )
        self._task: TaskID | None = None

    def step(
        self,
        name: str,
        done: float = 0,
        total: float | None = None,
        *,
        unit: str = "images",
        rate: float | None = None,
        eta_s: float | None = None,
        detail: str = "",
    ) -> None:
        fields: dict[str, Any] = {"unit": unit, "rate": rate, "eta_s": eta_s, "detail": printable(detail)}
        if name != self._name or self._task is None:
            self.finish()
            self._name, self._task = (
                name,
                self._progress.add_task(f"{name:<10}", completed=int(done), total=total, **fields),
            )
        self._progress.update(self._task, completed=done, total=total, **fields)

    def finish(self) -> None:
        if self._task is not None:
            total = self._progress.tasks[self._progress.task_ids.index(self._task)].total or 1
            self._progress.update(self._task, completed=total, total=total, eta_s=None, detail="")
            self._progress.stop_task(self._task)
            self._task = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class _Share(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("    " if task.total is None else f"{task.percentage:3.0f} %")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # Once finished, a measured speed would tell of the last jump to the end.
        rate = task.fields["rate"] or (None if task.finished else task.speed)
        return Text(_rate_text(rate, task.fields["unit"]) if rate and task.total != 1 else "", style="cyan")


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"in {_clock_text(task.finished_time or 0)}")
        left = task.fields["eta_s"] if task.fields["eta_s"] is not None else task.time_remaining
        return Text("" if left is None else f"{_clock_text(left)} left")


def percent(share: float | None) -> str | None:
    """Returns a share of 1 as percent for people; None stays None."""
    return None if share is None else f"{share * 100:.1f} %"


def moment(iso: str | None) -> str | None:
    """Returns an ISO 8601 time in UTC to the second, as tables show it."""
    return None if iso is None else iso[:19].replace("T", " ")


def _rate_text(rate: float, unit: str) -> str:
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _console(*, error: bool) -> Console:
    terminal = (sys.stderr if error else sys.stdout).isatty()
    # No markup: names come from messages, and "[red]" in one is a name.
    return Console(stderr=error, markup=False, highlight=False, emoji=False, width=None if terminal else _PLAIN_WIDTH)

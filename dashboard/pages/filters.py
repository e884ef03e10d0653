"""How values read on a page: filters for the templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flask import Flask, request, url_for

from shared.events import EVENT_TYPES
from shared.faces.decode import reads_heic
from shared.records.jobs import Job, JobState
from shared.records.runs import Progress, Run, RunState

_NOTHING: Final = "\N{EN DASH}"
_STAGES: Final[dict[str, str]] = {
    "ingesting": "Reading faces",
    "training": "Training",
    "evaluating": "Evaluating",
    "exporting": "Exporting",
}


def register_formats(app: Flask) -> None:
    """Gives the templates their filters."""
    app.jinja_env.filters.update(
        percent=percent,
        percent_range=percent_range,
        problem=problem,
        count=count,
        counted=counted,
        size=size,
        duration=duration,
        state_class=state_class,
        short=short,
        number=number,
        parameter=parameter,
    )
    app.jinja_env.globals["event_topics"] = lambda: list(EVENT_TYPES)
    app.jinja_env.globals["label_hint"] = _label_hint()
    app.jinja_env.globals["static_url"] = lambda name: url_for("static", filename=name)
    app.context_processor(lambda: {"root": request.script_root})
    app.jinja_env.trim_blocks = True
    app.jinja_env.lstrip_blocks = True


def _label_hint() -> str:
    """Returns what may be dropped as a dataset, with what cannot be read here."""
    images = "JPEG, PNG, WebP, BMP, AVIF or HEIC" if reads_heic() else "JPEG, PNG, WebP, BMP or AVIF"
    missing = "" if reads_heic() else " HEIC photos need the extra heic, which is not installed here."
    return (
        "Labels: folders such as male and female, a table (CSV) in the archive, or file names such as 24_0_1.jpg. "
        f"Images: {images}.{missing}"
    )


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share as `93.1 %`."""
    return _NOTHING if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def percent_range(low: float | None, high: float | None, digits: int = 1) -> str:
    """Returns two shares as `74.8-83.8 %`, with an en dash."""
    if low is None or high is None:
        return _NOTHING
    return f"{100 * low:.{digits}f}\N{EN DASH}{percent(high, digits)}"


def problem(record: Run | Job) -> str:
    """Returns why a run or job ended without success, for people; empty where it did not."""
    if record.error is None:
        return ""
    if record.error.code == "internal":
        service, key = ("trainer", record.run_id) if isinstance(record, Run) else ("inference", record.job_id)
        return f"Internal error. Look for {key} in the {service} service's log."
    if record.error.code == "cancelled":
        return "Cancelled by a user."
    return record.error.message


def count(value: float | None) -> str:
    """Returns a whole number with its thousands apart."""
    return _NOTHING if value is None else f"{value:,.0f}"


def counted(value: int, noun: str) -> str:
    """Returns a number and what is counted, such as `1 face` or `1,200 faces`."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number with a fixed number of digits."""
    return _NOTHING if value is None else f"{value:.{digits}f}"


def size(size_bytes: float | None) -> str:
    """Returns a size such as `10.8 MB`."""
    if size_bytes is None:
        return _NOTHING
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f}\N{NO-BREAK SPACE}{unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f}\N{NO-BREAK SPACE}GB"


def duration(seconds: float | None) -> str:
    """Returns a time span such as `3 min 20 s`."""
    if seconds is None:
        return _NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(identifier: str | None) -> str:
    """Returns the beginning of a hash, enough to tell it from others."""
    return (identifier or _NOTHING)[:12]


def parameter(value: object) -> str:
    """Returns a training parameter as docs/reference.md writes it."""
    if value is None:
        return _NOTHING
    return str(value).lower() if isinstance(value, bool) else str(value)


def parameters(asked: Mapping[str, Any] | None, done: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns training parameters by name, as `auto → 49` where a choice was left to the recipe and is known.

    Args:
        asked: what the run was asked for.
        done: what was trained with; parameters not decided yet may be missing.
    """
    found = {}
    for name, value in (asked or {}).items():
        decided = (done or {}).get(name, value) if value == "auto" else value
        found[name] = parameter(value) if decided == value else f"{parameter(value)} → {parameter(decided)}"
    return found


def state_class(state: str) -> str:
    """Returns how a state is coloured."""
    if state in {RunState.REGISTERED, RunState.INGESTED, JobState.FINISHED}:
        return "good"
    if state in {RunState.FAILED, RunState.REJECTED, "damaged"}:
        return "bad"
    return "" if state in {RunState.CANCELLED, RunState.QUEUED} else "live"


def progress_view(progress: Progress | None, state: RunState, *, abandoned: bool = False) -> dict[str, Any]:
    """Returns what a progress bar shows, as the script that moves it on does.

    Args:
        progress: of a run's record; one of an earlier stage is over.
        state: of the run.
        abandoned: whether the trainer that worked on it does not respond.
    """
    nothing = {"share": 0.0, "percent": "", "eta": ""}
    if abandoned:
        return {**nothing, "text": "Waiting for a trainer"}
    if progress is None or progress.stage != state:
        return {**nothing, "text": "Queued" if state is RunState.QUEUED else _STAGES.get(state, "")}
    share = progress.done / progress.total if progress.total else 0.0
    words = [_STAGES.get(progress.stage, progress.stage)]
    if progress.epochs:
        words.append(f"epoch {progress.epoch} of {progress.epochs}")
    if progress.rate:
        words.append(f"{progress.rate:,.0f} images/s")
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.3f}")
    if progress.accuracy is not None:
        words.append(f"accuracy {percent(progress.accuracy)}")
    return {
        "share": round(share, 4),
        "percent": f"{int(100 * share)} %" if progress.total else "",
        "text": " · ".join(words),
        "eta": f"{duration(progress.eta_s)} left" if progress.eta_s is not None else "",
    }

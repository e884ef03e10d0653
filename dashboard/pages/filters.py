"""How values read on a page: filters for the templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flask import Flask, url_for

from shared.records import jobs, runs

_NOTHING: Final = "\N{EN DASH}"
_STAGES: Final = {
    "ingesting": "Reading faces",
    "training": "Training",
    "evaluating": "Evaluating",
    "exporting": "Exporting",
}


def register_formats(app: Flask) -> None:
    """Gives the templates their filters."""
    app.jinja_env.filters.update(
        percent=percent,
        count=count,
        counted=counted,
        size=size,
        duration=duration,
        state_class=state_class,
        short=short,
        number=number,
        parameter=parameter,
    )
    app.jinja_env.globals["static_url"] = lambda name: url_for("static", filename=name)
    app.jinja_env.trim_blocks = True
    app.jinja_env.lstrip_blocks = True


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share as `93.1 %`."""
    return _NOTHING if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


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
    if state in {runs.REGISTERED, jobs.FINISHED}:
        return "good"
    if state in {runs.FAILED, runs.REJECTED}:
        return "bad"
    return "" if state in {runs.CANCELLED, runs.QUEUED} else "live"


def progress_view(progress: Mapping[str, Any] | None, state: str | None = None) -> dict[str, Any]:
    """Returns what a progress bar shows, as the script that moves it on does.

    Args:
        progress: of a record: `stage`, `done`, `total`, `rate`, `eta_s`, `epoch`, `epochs`, `loss`, `accuracy`.
        state: of a run: what stands in the queue has no progress, and says that.
    """
    given = progress or {}
    total = given.get("total") or 0
    share = given.get("done", 0) / total if total else 0.0
    words = ["In the queue"] if state == runs.QUEUED else []
    if stage := given.get("stage"):
        words.append(_STAGES.get(stage, stage))
    if given.get("epochs"):
        words.append(f"epoch {given['epoch']} of {given['epochs']}")
    if given.get("rate"):
        words.append(f"{given['rate']:,.0f} images/s")
    if given.get("loss") is not None:
        words.append(f"loss {given['loss']:.3f}")
    if given.get("accuracy") is not None:
        words.append(f"accuracy {percent(given['accuracy'])}")
    eta_s = given.get("eta_s")
    return {
        "share": round(share, 4),
        "percent": f"{int(100 * share)} %" if total else "",
        "text": " · ".join(words),
        "eta": f"{duration(eta_s)} left" if eta_s is not None else "",
    }

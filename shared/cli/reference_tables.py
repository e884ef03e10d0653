"""The reference tables, read from where settings, parameters, metrics, error codes and reject reasons are defined."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from shared.broker import open_broker
from shared.errors import CODES
from shared.faces.rejects import REJECT_REASONS
from shared.params import TrainingParams
from shared.runtime.field_docs import values_of
from shared.runtime.settings import Settings, variable
from shared.store import open_store
from shared.telemetry.metrics import LABELS, BrokerCollector, InferenceMetrics, StoreCollector, TrainerMetrics

_HIDDEN: Final = "***"
_VALUES_SHOWN: Final = 6
"""A label with more values than this has a table of its own: error codes, reject reasons."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A table: its headings, and its rows in the order of their definition."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Returns the table as Markdown; the first column is code."""
        lines = [self.headings, tuple("---" for _ in self.headings)]
        lines += [(f"`{row[0]}`", *row[1:]) for row in self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

    def as_dicts(self) -> list[dict[str, str]]:
        """Returns the rows by their headings, in small letters."""
        return [dict(zip((heading.lower() for heading in self.headings), row, strict=True)) for row in self.rows]


def settings_reference() -> Reference:
    """Returns every setting with its default and meaning."""
    return Reference(
        ("Variable", "Default", "Values", "Meaning"),
        tuple(
            (variable(name), _code(field.default), values_of(field), field.description or "")
            for name, field in Settings.model_fields.items()
        ),
    )


def settings_now(settings: Settings) -> Reference:
    """Returns every setting with the value that is in force; secrets are never shown."""
    return Reference(
        ("Variable", "Value", "Default", "Meaning"),
        tuple(
            (
                variable(name),
                _HIDDEN
                if name in {"token", "tokens"} and getattr(settings, name)
                else _text(_redacted(getattr(settings, name))),
                _text(field.default),
                (field.description or "").replace("`", ""),
            )
            for name, field in Settings.model_fields.items()
        ),
    )


def params_reference() -> Reference:
    """Returns every training parameter with its default and meaning."""
    return Reference(
        ("Parameter", "Default", "Values", "Meaning"),
        tuple(
            (name, _code(field.default), values_of(field), field.description or "")
            for name, field in TrainingParams.model_fields.items()
        ),
    )


def errors_reference() -> Reference:
    """Returns every error code with its meaning."""
    return Reference(("Code", "Meaning"), tuple(CODES.items()))


def metrics_reference() -> Reference:
    """Returns every metric of our own with its labels, its services and its meaning."""
    found: dict[str, tuple[Metric, list[str]]] = {}
    for service, kind in (("trainer", TrainerMetrics), ("inference", InferenceMetrics)):
        for metric in vars(kind(CollectorRegistry())).values():
            (family,) = metric.describe()
            found.setdefault(family.name, (family, []))[1].append(service)
    for family in _shared_metrics():
        found[family.name] = (family, ["trainer", "inference", "dashboard"])
    return Reference(
        ("Metric", "Type", "Labels", "Service", "Meaning"),
        tuple(
            (
                name + ("_total" if family.type == "counter" else ""),
                family.type,
                ", ".join(_label(label, values) for label, values in LABELS.get(name, {}).items()),
                ", ".join(services),
                family.documentation,
            )
            for name, (family, services) in found.items()
        ),
    )


def rejects_reference() -> Reference:
    """Returns every reason why an entry of an archive is left out."""
    return Reference(("Reason", "Meaning"), tuple(REJECT_REASONS.items()))


def without_password(url: str) -> str:
    """Returns a URL that may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{_HIDDEN}@{host}").geturl()


def _shared_metrics() -> Sequence[Metric]:
    """Returns what the collectors of every service yield, for an idle broker and store."""
    with (
        tempfile.TemporaryDirectory(prefix="genderline-") as folder,
        open_broker(f"sqlite:///{folder}/broker.db") as broker,
    ):
        return [*BrokerCollector(broker).collect(), *StoreCollector(open_store(f"file:{folder}/store")).collect()]


def _label(name: str, values: Sequence[str]) -> str:
    """Returns a label with its values, where there are few."""
    return f"{name} ({', '.join(values)})" if 0 < len(values) <= _VALUES_SHOWN else name


def _redacted(value: object) -> object:
    return without_password(value) if isinstance(value, str) else value


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case tuple():
            return os.pathsep.join(map(str, value))
        case bool():
            return str(value).lower()
        case Path():
            return value.as_posix()
        case _:
            return str(value)


def _code(value: object) -> str:
    text = _text(value)
    return f"`{text}`" if text else ""

"""Logging: one line an event on standard error, for people or, as JSON, for programs."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final

_ids: ContextVar[Mapping[str, str]] = ContextVar("ids", default=MappingProxyType({}))
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@contextlib.contextmanager
def log_ids(**ids: str) -> Iterator[None]:
    """Adds ids, such as that of the message at hand, to every line that this thread logs while the context lasts."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


def printable(text: str) -> str:
    r"""Returns text from anywhere as it may be sent to a terminal or a log: on one line, controls spelled out.

    A newline becomes `\n`, an escape `\x1b`: a name can neither forge a line nor command a terminal.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _TextFormatter(logging.Formatter):
    """One line an event; a traceback follows with its lines indented, so that none of them looks like an event."""

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {service}: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        ids = "".join(f" [{name} {value}]" for name, value in _ids.get().items())
        return printable(super().formatMessage(record) + ids)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base class's name
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; what a call gave as `extra` becomes fields."""

    converter = staticmethod(time.gmtime)

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_ids.get(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")  # JSON would leave this control character


def configure_logging(service: str, level: str, form: str) -> None:
    """Sets up the process's logging; called once, by a `__main__`.

    Args:
        service: what the lines are marked with.
        level: the least that is shown, such as `info`.
        form: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(service) if form == "json" else _TextFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Other people's chatter is ours only from a warning up.
    for noisy in ("waitress", "werkzeug", "onnxscript", "onnx_ir", "torch", "botocore", "aiobotocore", "s3fs"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    # pika logs a page of errors at each reconnection, which our link tells in a line of its own.
    logging.getLogger("pika").setLevel(logging.CRITICAL)

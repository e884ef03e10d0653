"""How a service starts and ends: settings, log, signals, exit code. Each `__main__` calls `run_service`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from shared.errors import GenderlineError
from shared.runtime.log import configure_logging
from shared.runtime.settings import Settings, SettingsError, load_settings, unknown_settings
from shared.runtime.supervisor import WRONG_USAGE, watch_parent

_LOG = logging.getLogger(__name__)

Serve = Callable[[Settings, threading.Event], int]
"""The work of a service: returns its exit code after the event was set."""


def run_service(name: str, serve: Serve) -> int:
    """Reads the settings, sets up the log and serves until SIGTERM, SIGINT or the end of the supervisor.

    Args:
        name: `trainer`, `inference` or `dashboard`: what log lines are marked with.
        serve: the work. It ends soon after the event is set. What it raises ends the service with one line in the log.

    Returns:
        The exit code: 2 where a setting is wrong, 1 where broker, store, a port or a file is not to be had.
    """
    try:
        settings = load_settings()
    except SettingsError as error:
        configure_logging(name, "info", os.environ.get("GENDERLINE_LOG_FORMAT", "text"))
        return _refuse(error)
    configure_logging(name, settings.log_level, settings.log_format)
    os.umask(int(settings.umask, 8))
    for warning in unknown_settings():
        _LOG.warning(warning)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    watch_parent(stop)
    try:
        return serve(settings, stop)
    except SettingsError as error:
        return _refuse(error)
    except GenderlineError as error:  # the broker is away, or its user lacks a permission
        _LOG.error("%s", error)
    except OSError as error:
        _LOG.error("%s%s", f"{error.filename}: " if error.filename else "", error.strerror or error)
        _LOG.debug("where that was", exc_info=True)
    return 1


def _refuse(error: SettingsError) -> int:
    """Logs what is wrong with the settings, a line each; returns the exit code that tells a supervisor not to retry."""
    for line in str(error).splitlines():
        _LOG.error("%s", line)
    return WRONG_USAGE

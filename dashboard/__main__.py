"""Starts the dashboard: `python -m dashboard`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from waitress.server import create_server

from dashboard import STREAMS, create_app
from dashboard.context import EXTENSION, Dashboard
from shared.connect import open_broker_for
from shared.errors import Retryable
from shared.runtime.log import configure_logging
from shared.runtime.settings import SettingsError, load_settings, unknown_settings
from shared.runtime.supervisor import watch_parent
from shared.store import open_store

_REQUEST_THREADS = 16
_LOG = logging.getLogger("dashboard")


def main() -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code."""
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logging("dashboard", settings.log_level, settings.log_format)
    for warning in unknown_settings():
        _LOG.warning(warning)
    try:
        store = open_store(settings.store_url)
        broker = open_broker_for(settings)
    except (Retryable, SettingsError) as error:
        _LOG.error("cannot start: %s", error)
        return 1 if isinstance(error, Retryable) else 2  # a wrong URL stays wrong
    with broker:
        app = create_app(broker, store, settings)
        parts: Dashboard = app.extensions[EXTENSION]
        try:
            server = create_server(
                app,
                host=settings.host,
                port=settings.port,
                # Each open event stream holds a thread.
                threads=STREAMS + _REQUEST_THREADS,
                connection_limit=1000,
                # So that a stream is told when its reader is gone.
                channel_request_lookahead=1,
                max_request_body_size=settings.max_archive_bytes + 2**20,
                ident="genderline",
            )
        except OSError as error:
            _LOG.error("cannot serve at %s:%d: %s", settings.host, settings.port, error.strerror or error)
            return 1

        def stop(_signal: int, _frame: FrameType | None) -> None:
            parts.event_hub.end_streams()
            raise SystemExit  # waitress ends its loop by it, and finishes what it is answering

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        orphaned = threading.Event()
        watch_parent(orphaned)
        threading.Thread(target=_end_with, args=(orphaned,), name="supervisor", daemon=True).start()
        parts.start()
        for host, port in _addresses(server):
            _LOG.info("serving at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
        try:
            server.run()
        finally:
            parts.close()
            server.close()
    _LOG.info("stopped")
    return 0


def _end_with(stop: threading.Event) -> None:
    """Ends this process once `stop` is set."""
    stop.wait()
    os.kill(os.getpid(), signal.SIGTERM)


def _addresses(server: Any) -> list[tuple[str, int]]:
    """Returns where a waitress server listens: `localhost` may be two addresses."""
    listens = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
    return [(str(host), int(port)) for host, port in listens]


if __name__ == "__main__":
    sys.exit(main())

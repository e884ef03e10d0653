"""`python -m dashboard`: the pages and the HTTP API."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from typing import Any, Final

from dashboard import STREAMS, create_app
from dashboard.context import EXTENSION, Dashboard
from dashboard.http_server import serve
from shared.connect import open_broker_for, open_store_for
from shared.errors import Retryable
from shared.runtime.listening import host_faults_named
from shared.runtime.service import run_service
from shared.runtime.settings import Settings
from shared.runtime.tempdir import workspace

_REQUEST_THREADS: Final = 16
_LOG = logging.getLogger("dashboard")


def main() -> int:
    """Serves until it is told to stop. Returns the exit code."""
    return run_service("dashboard", _serve)


def _serve(settings: Settings, stop: threading.Event) -> int:
    with workspace("dashboard"), open_broker_for(settings) as broker:
        store = open_store_for(settings, broker)
        app = create_app(broker, store, settings)
        parts: Dashboard = app.extensions[EXTENSION]
        staging = store.staging_folder()
        try:
            with host_faults_named(settings.host):
                socket.getaddrinfo(settings.host, None)  # waitress would not say why it cannot be resolved
                server = serve(
                    app,
                    settings,
                    host=settings.host,
                    port=settings.port,
                    threads=STREAMS + _REQUEST_THREADS,  # each open event stream holds a thread
                    max_body_bytes=settings.max_archive_bytes + 2**20,
                    staging=staging,
                )
        except OSError as error:
            raise Retryable(
                f"cannot serve at {settings.host}:{settings.port}: {error.strerror or error}; set GENDERLINE_PORT"
            ) from error
        parts.start()
        for host, port in _addresses(server):
            _LOG.info("serving at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
        threading.Thread(target=_run, args=(server, stop), name="http", daemon=True).start()
        try:
            stop.wait()
        finally:
            parts.event_hub.end_streams()
            server.task_dispatcher.shutdown()  # finishes what it is answering
            parts.close()
    _LOG.info("stopped")
    return 0


def _run(server: Any, stop: threading.Event) -> None:
    """Accepts requests; should that ever end, the process ends too."""
    try:
        server.run()
    finally:
        stop.set()


def _addresses(server: Any) -> list[tuple[str, int]]:
    """Returns where a waitress server listens: `localhost` may be two addresses."""
    listens = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
    return [(str(host), int(port)) for host, port in listens]


if __name__ == "__main__":
    sys.exit(main())

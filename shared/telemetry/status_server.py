"""A small HTTP server for the services without a web framework: `/metrics`, `/healthz` and `/readyz`."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from shared.access import AccessToken, find_token
from shared.errors import Retryable
from shared.runtime.listening import host_faults_named

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CONNECTIONS: Final = 32
"""Connections that may be open at once. One more closes the oldest, so that a scrape always finds a place."""
IDLE_S: Final = 10.0
"""Seconds after which a connection that sends nothing is closed."""

_LOG = logging.getLogger(__name__)


class StatusServer:
    """Serves `/metrics`, `/healthz` and `/readyz` from a thread of its own.

    Args:
        registry: what `/metrics` shows.
        readiness: returns the body of `/readyz`; its key `ready` decides between 200 and 503.
        host: the address to bind to.
        port: the port; 0 takes a free one.
        tokens: one of them opens `/metrics`, where there are any; health stays open.

    Raises:
        SettingsError: the host cannot be resolved or bound to.
        Retryable: the port cannot be bound to, since another process has it for example.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        readiness: Callable[[], Mapping[str, Any]],
        *,
        host: str,
        port: int,
        tokens: Sequence[AccessToken] = (),
    ) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._readiness = readiness
        self._tokens = tokens
        family = _ThreadingServerV6 if ":" in host else _ThreadingServer
        try:
            with host_faults_named(host):
                self._server = make_server(host, port, self._answer, server_class=family, handler_class=_QuietHandler)
        except OSError as error:
            raise Retryable(
                f"cannot serve metrics on port {port}: {error.strerror or error}; set GENDERLINE_METRICS_PORT"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            if not self._tokens or find_token(environ.get("HTTP_AUTHORIZATION"), self._tokens):
                return self._metrics(environ, start_response)
            error = {"error": {"code": "unauthorized", "message": "expected Authorization: Bearer TOKEN"}}
            return _json_answer(start_response, "401 Unauthorized", error)
        if path == "/healthz":
            return _json_answer(start_response, "200 OK", {"alive": True})
        if path == "/readyz":
            state = self._readiness()
            return _json_answer(start_response, "200 OK" if state["ready"] else "503 Service Unavailable", state)
        error = {"error": {"code": "not_found", "message": f"no {path}; expected /metrics, /healthz or /readyz"}}
        return _json_answer(start_response, "404 Not Found", error)

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """A thread for each connection, and no more than `CONNECTIONS` of them."""

    daemon_threads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._lock = threading.Lock()
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > CONNECTIONS else None
        if oldest is not None:
            with contextlib.suppress(OSError):  # its thread then reads the end of it, and closes it
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's arguments
        """A peer that went silent or away is no news; anything else is a bug of ours."""
        if not isinstance(sys.exception(), OSError):
            _LOG.exception("a request to the metrics port failed")


class _ThreadingServerV6(_ThreadingServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = IDLE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """A scrape every few seconds is no news."""


def _json_answer(start_response: StartResponse, status: str, body: Mapping[str, Any]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]

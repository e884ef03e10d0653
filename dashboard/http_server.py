"""The HTTP server under the app: waitress, which looks at a request's headers before it takes in a large body.

Without that, a stranger's gigabyte would lie on the disk before anybody looked at the token, and a thousand connections
that never send a whole request would leave no room for others. A large body that is let in is written to the store's
staging folder, where an archive stays: not to the folder for temporary files, which is often memory.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final

from flask import Flask
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.task import WSGITask
from waitress.utilities import Error
from werkzeug.test import EnvironBuilder

from dashboard.auth import refusal_by_headers
from dashboard.errors import TooManyAttempts, status_of
from dashboard.incoming import RECEIVED_BODY
from dashboard.proxy import undo_proxies
from shared.errors import GenderlineError, Retryable
from shared.runtime.settings import Settings
from shared.store.staging import StagedFile

SMALL_BODY_BYTES: Final = 64 * 1024
"""Bodies up to here, such as a form's, are taken in before the request is looked at."""

HEADER_S: Final = 10.0
"""Seconds in which a request's headers must have come once it has begun."""

SMALL_BODY_S: Final = 30.0
"""Seconds in which a request with a small body must have come once it has begun: enough for a slow line."""

CONNECTIONS: Final = 900
WAITING_CONNECTIONS: Final = 500
"""Connections that may be idle, or in the middle of headers or a small body: one more closes the oldest of them."""

Guard = Callable[[HTTPRequestParser, str], "GenderlineError | None"]
"""Given a request's headers and the address that it came from, tells why it is refused."""


class _Refusal(Error):  # type: ignore[misc]  # waitress has no types
    """An answer in the API's error form, to a request whose body is not wanted."""

    def __init__(self, error: GenderlineError) -> None:
        super().__init__(str(error))
        self.code = status_of(error)
        self.reason = HTTPStatus(self.code).phrase
        self._headers = [("Content-Type", "application/json")]
        if self.code == HTTPStatus.UNAUTHORIZED:
            self._headers.append(("WWW-Authenticate", "Bearer"))
        if isinstance(error, TooManyAttempts):
            self._headers.append(("Retry-After", str(error.wait_s)))
        self._content = json.dumps({"error": error.as_dict()}).encode()

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Returns status, headers and body; waitress names itself as `ident`."""
        del ident
        return f"{self.code} {self.reason}", self._headers, self._content


def serve(
    app: Flask, settings: Settings, *, host: str, port: int, threads: int, max_body_bytes: int, staging: Path
) -> Any:
    """Returns a waitress server for the app, bound and not yet running; large bodies are received in `staging`.

    `settings` say whose word on a client's address counts, as for the app.

    Raises:
        OSError: the address cannot be bound to.
    """
    dispatchers: dict[int, Any] = {}
    server = create_server(
        app,
        map=dispatchers,
        host=host,
        port=port,
        threads=threads,
        connection_limit=CONNECTIONS,
        clear_untrusted_proxy_headers=False,  # `BehindProxies` decides whose headers count
        asyncore_use_poll=True,  # `select` takes no descriptor above 1023
        # So that a stream is told when its reader is gone.
        channel_request_lookahead=1,
        max_request_body_size=max_body_bytes,
        ident="genderline",
    )
    channel = _guarded_channel(_make_guard(app, settings), staging)
    for dispatcher in dispatchers.values():  # `localhost` may be two addresses, with a server each
        if hasattr(dispatcher, "channel_class"):
            dispatcher.channel_class = channel
    return server


def _make_guard(app: Flask, settings: Settings) -> Guard:
    """Returns a function that tells why a request is refused, from its headers alone."""

    def guard(parsed: HTTPRequestParser, address: str) -> GenderlineError | None:
        headers = {name.replace("_", "-"): value for name, value in parsed.headers.items() if name != "CONTENT_LENGTH"}
        environ = EnvironBuilder(method=parsed.command, path="/", headers=headers).get_environ()
        environ["REMOTE_ADDR"] = address
        undo_proxies(environ, settings)
        with app.request_context(environ):
            return refusal_by_headers()

    return guard


class _Body:
    """The buffer of a large body, as waitress wants one: a file in the staging folder.

    Args:
        folder: of the store.
        hashed: whether its SHA-256 will be asked for.
    """

    def __init__(self, folder: Path, *, hashed: bool) -> None:
        self.staged = StagedFile(folder, hashed=hashed)
        self._reader = self.staged.path.open("rb")

    def __len__(self) -> int:
        return self.staged.size_bytes

    def append(self, data: bytes) -> None:
        self.staged.write(data)

    def getfile(self) -> IO[bytes]:
        return self._reader

    def close(self) -> None:
        self._reader.close()
        self.staged.discard()


def _guarded_channel(guard: Guard, staging: Path) -> type[HTTPChannel]:
    """Returns a channel class whose connections are bounded, and whose large bodies are let in by `guard`."""

    class Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
        error: Error | None

        def __init__(self, adjustments: Any, *, address: str) -> None:
            super().__init__(adjustments)
            self._address = address
            self.started = time.monotonic()
            self.is_let_in = False  # with a large body, which takes as long as its line does

        @property
        def is_late(self) -> bool:
            """Whether its headers, or its small body, should have come by now."""
            return time.monotonic() - self.started > (SMALL_BODY_S if self.headers_finished else HEADER_S)

        def received(self, data: bytes) -> int:
            """Takes a piece of the request; returns how many of its bytes belong to it."""
            in_body = self.headers_finished
            try:
                consumed: int = super().received(data)
                large = self.chunked or self.content_length > SMALL_BODY_BYTES
                if in_body or not self.headers_finished or self.error is not None or not large:
                    return consumed
                if (refusal := guard(self, self._address)) is None:
                    self.body_rcv.buf = _Body(staging, hashed=self.path.endswith("/datasets"))
                    self.is_let_in = True
                    return consumed
            except OSError as error:
                refusal = Retryable(f"the upload cannot be stored: {error.strerror or error}")
            self.error = _Refusal(refusal)
            self.completed = True
            self.expect_continue = False
            return len(data)  # what came of the body is dropped

    class Task(WSGITask):  # type: ignore[misc]  # waitress has no types
        def get_environment(self) -> dict[str, Any]:
            """Adds the file of a large body."""
            environment: dict[str, Any] = super().get_environment()
            body = self.request.body_rcv and self.request.body_rcv.getbuf()
            if isinstance(body, _Body):
                environment[RECEIVED_BODY] = body.staged
            return environment

    class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
        task_class = Task

        def __init__(self, server: Any, *args: Any, **options: Any) -> None:
            super().__init__(server, *args, **options)
            self.parser_class = functools.partial(Parser, address=self.addr[0])
            waiting = [channel for channel in server.active_channels.values() if channel.is_waiting]
            if len(waiting) > WAITING_CONNECTIONS:
                min(waiting, key=lambda channel: channel.last_activity).will_close = True

        @property
        def is_waiting(self) -> bool:
            """Whether the server may close this connection: it is idle, or its headers or small body are incomplete."""
            is_let_in = self.request is not None and self.request.is_let_in
            return not is_let_in and not self.requests and not self.total_outbufs_len and not self.will_close

        def handle_close(self) -> None:
            """Removes what came of a body whose connection is lost."""
            if self.request is not None:
                self.request.close()
            super().handle_close()

        def readable(self) -> bool:
            """Asked every second: closes a connection that does not finish its headers or its small body."""
            if self.is_waiting and self.request is not None and self.request.is_late:
                self.will_close = True
            return bool(super().readable())

    return Channel

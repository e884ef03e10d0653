"""A proxy on loopback between a client and a server, which cuts connections and delays answers for real."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlsplit


class TcpProxy:
    """Passes on what each side sends. A context manager.

    Args:
        url: of the server, on 127.0.0.1.

    Attributes:
        url: for clients.
    """

    def __init__(self, url: str) -> None:
        port = urlsplit(url).port
        assert port is not None
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f":{port}/", f":{self._listener.getsockname()[1]}/")
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._passing = threading.Event()
        self._passing.set()
        self._holding = threading.Event()
        self._threads[0].start()

    def cut(self) -> None:
        """Cuts every connection; new ones are taken."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def answers_held(self) -> Iterator[threading.Event]:
        """Holds back what the server sends; gives an event that is set once there is something."""
        self._holding.clear()
        self._passing.clear()
        try:
            yield self._holding
        finally:
            self._passing.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._passing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()
        for end in (self._listener, *self._sockets):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._sockets += [client, server]
                for source, sink, held in ((client, server, False), (server, client, True)):
                    thread = threading.Thread(target=self._pass_on, args=(source, sink, held))
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, held: bool) -> None:
        with contextlib.suppress(OSError):  # one of the two ends is gone
            while data := source.recv(65536):
                if held and not self._passing.is_set():
                    self._holding.set()
                    self._passing.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

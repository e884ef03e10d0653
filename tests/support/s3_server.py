"""A real S3 server on this machine, whose conditional writes hold, as those of S3 do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


@contextmanager
def serve_s3() -> Iterator[str]:
    """Yields the server's address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, _one_at_a_time(), threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _one_at_a_time() -> Callable[[Any, Any], Any]:
    """Returns the application, which handles one request at a time.

    moto looks whether an object exists and then writes it: of two requests side by side both would win.
    """
    handle = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def application(environ: Any, start_response: Any) -> Any:
        with lock:
            return handle(environ, start_response)

    return application

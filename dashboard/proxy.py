"""What reverse proxies change, undone: the client's address, HTTPS, and the path prefix."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from shared.runtime.settings import URL_PREFIX, Network, Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FORWARDED: Final = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_PREFIX")


class BehindProxies:
    """WSGI middleware: the app sees what the browser asked for, whatever proxies stand between.

    `X-Forwarded-For`, `-Proto` and `-Prefix` count only from a trusted proxy: anybody else could claim any address.

    Args:
        app: the dashboard.
        settings: `url_prefix` is where browsers find the dashboard, and `trusted_proxies` whose headers count.
    """

    def __init__(self, app: WSGIApplication, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answers a request."""
        undo_proxies(environ, self._settings)
        return self._app(environ, start_response)


def undo_proxies(environ: WSGIEnvironment, settings: Settings) -> None:
    """Makes `environ` say what the browser asked for, and from which address; see `BehindProxies`."""
    prefix, trusted = settings.url_prefix, settings.trusted_proxies
    if _is_in(environ.get("REMOTE_ADDR", ""), trusted):
        forwarded_for, proto, forwarded_prefix = (environ.get(name, "") for name in _FORWARDED)
        if address := _client(forwarded_for, trusted):
            environ["REMOTE_ADDR"] = address
        if (scheme := proto.rpartition(",")[2].strip().lower()) in {"http", "https"}:
            environ["wsgi.url_scheme"] = scheme
        if re.fullmatch(URL_PREFIX, forwarded_prefix.rstrip("/")):
            prefix = prefix or forwarded_prefix.rstrip("/")
    if prefix:
        environ["SCRIPT_NAME"] = prefix
        # Whether the proxy takes the prefix off or leaves it on.
        path = environ.get("PATH_INFO", "")
        if path == prefix or path.startswith(f"{prefix}/"):
            environ["PATH_INFO"] = path[len(prefix) :] or "/"


def _client(forwarded_for: str, trusted: Iterable[Network]) -> str | None:
    """Returns the address that the outermost trusted proxy saw: each adds the one it saw at the end."""
    found = None
    for address in reversed([part.strip() for part in forwarded_for.split(",")]):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            break
        found = address
        if not _is_in(address, trusted):
            break
    return found


def _is_in(address: str, networks: Iterable[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)

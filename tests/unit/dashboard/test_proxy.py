"""What the app sees of a request that came through reverse proxies."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard.proxy import BehindProxies
from shared.runtime.settings import Settings

PROXY = "10.0.0.9"


def seen(settings: dict[str, Any], path: str = "/runs", peer: str = PROXY, **headers: str) -> tuple[str, str, str, str]:
    """Returns the client's address, the scheme, the prefix and the path as the app sees them."""
    environ: dict[str, Any] = {
        "REMOTE_ADDR": peer,
        "wsgi.url_scheme": "http",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        **{f"HTTP_X_FORWARDED_{name}": value for name, value in headers.items()},
    }
    BehindProxies(lambda _environ, _start: [], Settings(**settings))(environ, lambda *_: lambda _: None)
    return environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["SCRIPT_NAME"], environ["PATH_INFO"]


TRUSTING = {"trusted_proxies": "10.0.0.0/8, 127.0.0.1, ::1"}


def test_without_settings_nothing_that_is_forwarded_counts() -> None:
    assert seen({}, FOR="1.2.3.4", PROTO="https", PREFIX="/x") == (PROXY, "http", "", "/runs")


def test_a_stranger_cannot_claim_an_address() -> None:
    assert seen(TRUSTING, peer="203.0.113.1", FOR="1.2.3.4", PROTO="https")[:2] == ("203.0.113.1", "http")


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        ("203.0.113.1", "203.0.113.1"),
        ("6.6.6.6, 203.0.113.1, 10.1.1.1", "203.0.113.1"),  # the first was claimed by the client
        ("2001:db8::7", "2001:db8::7"),
        ("10.1.1.1", "10.1.1.1"),  # a client inside
        ("", PROXY),
        ("unknown", PROXY),
        ("203.0.113.1, nonsense", PROXY),
    ],
)
def test_of_a_chain_the_address_that_the_outermost_trusted_proxy_saw_counts(chain: str, client: str) -> None:
    assert seen(TRUSTING, FOR=chain)[0] == client


@pytest.mark.parametrize(("proto", "scheme"), [("https", "https"), ("HTTPS", "https"), ("ftp", "http"), ("", "http")])
def test_https_at_the_proxy_is_https(proto: str, scheme: str) -> None:
    assert seen(TRUSTING, PROTO=proto)[1] == scheme


@pytest.mark.parametrize("path", ["/faces/runs", "/runs"])
def test_a_prefix_is_known_whether_the_proxy_takes_it_off_or_not(path: str) -> None:
    assert seen({"url_prefix": "/faces"}, path)[2:] == ("/faces", "/runs")


def test_the_prefix_alone_is_the_overview() -> None:
    assert seen({"url_prefix": "/faces"}, "/faces")[2:] == ("/faces", "/")
    assert seen({"url_prefix": "/faces"}, "/facesandmore")[2:] == ("/faces", "/facesandmore")


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("/faces/", "/faces"),
        ("/a/b", "/a/b"),
        ("//evil.example", ""),
        ("/x\r\nY: 1", ""),
        ("https://evil", ""),
        ("", ""),
    ],
)
def test_a_trusted_proxy_may_tell_the_prefix(given: str, prefix: str) -> None:
    assert seen(TRUSTING, PREFIX=given)[2] == prefix
    assert seen({}, PREFIX=given)[2] == ""

"""The HTTP server: what it decides by the headers alone, and who gets a connection when many are half open."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dashboard import http_server
from dashboard.http_server import SMALL_BODY_BYTES, serve
from dashboard.login_throttle import ADDRESS_BURST
from tests.support.builders.archives import zipped
from tests.support.dashboard_app import Site, error_of, open_site, running

TOKEN = "correct horse"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, token=TOKEN) as site:
        yield site


@contextlib.contextmanager
def serving(site: Site) -> Iterator[int]:
    """Serves the site; gives its port."""
    server = serve(
        site.app,
        site.parts.settings,
        host="127.0.0.1",
        port=0,
        threads=4,
        max_body_bytes=2 * 10**9,
        staging=site.store.staging_folder(),
    )
    with running(server):
        yield server.effective_port


@pytest.fixture
def port(site: Site) -> Iterator[int]:
    with serving(site) as port:
        yield port


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds that nobody announces."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def answer_to(port: int, head: str, body: bytes = b"") -> tuple[int, bytes]:
    """Sends a request's headers, and only `body` of what they announce; returns (status, body) of the answer."""
    with connect(port) as client:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        received = b""
        while piece := client.recv(65536):
            received += piece
    headers, _, content = received.partition(b"\r\n\r\n")
    return int(headers.split()[1]), content


POST = "POST /api/v1/datasets HTTP/1.1\nHost: localhost\nContent-Type: application/zip\n"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("Content-Length: 1000000000\n", 401),
        ("Content-Length: 1000000000\nExpect: 100-continue\n", 401),
        ("Transfer-Encoding: chunked\n", 401),
        ("Content-Length: 1000000000\nAuthorization: Bearer wrong horse\n", 401),
        ("Content-Length: 1000000000\nSec-Fetch-Site: cross-site\n", 403),
        ("Content-Length: 1000000000\nCookie: CSRF=x\n", 403),
    ],
)
def test_a_large_body_is_refused_before_it_is_taken_in(port: int, site: Site, more: str, status: int) -> None:
    found, body = answer_to(port, POST + more.replace("CSRF", site.app.config["GENDERLINE_CSRF_COOKIE"]))

    assert found == status
    assert json.loads(body)["error"]["code"] == "unauthorized"
    assert site.store.children("datasets") == []


def test_guessing_with_large_bodies_is_slowed_down_too_and_counts_for_the_clients_true_address(tmp_path: Path) -> None:
    with open_site(tmp_path, token=TOKEN, trusted_proxies="127.0.0.1") as site, serving(site) as port:
        guess = f"{POST}Content-Length: 1000000000\nAuthorization: Bearer guess\n"
        answers = [answer_to(port, f"{guess}X-Forwarded-For: 203.0.113.1\n") for _ in range(ADDRESS_BURST + 1)]

        assert [status for status, _ in answers] == [401] * ADDRESS_BURST + [429]
        assert error_of(answers[-1][1])[0] == "too_many_attempts"
        assert answer_to(port, f"{guess}X-Forwarded-For: 203.0.113.2\n")[0] == 401
        small = {"Authorization": "Bearer guess", "X-Forwarded-For": "203.0.113.1"}
        assert site.web.get("/api/v1/runs", headers=small).status_code == 429


def test_a_large_body_of_somebody_who_may_only_read_is_refused_before_it_is_taken_in(tmp_path: Path) -> None:
    with open_site(tmp_path, token=TOKEN, tokens="guest:read:only looking") as site, serving(site) as port:
        status, body = answer_to(port, f"{POST}Content-Length: 1000000000\nAuthorization: Bearer only looking\n")

        assert (status, staged(site)) == (403, [])
        assert "may only read" in error_of(body)[1]


def test_a_large_body_with_the_token_is_taken(port: int, site: Site) -> None:
    body = zipped([("30_1_0.jpg", bytes(SMALL_BODY_BYTES))])
    head = f"{POST}Content-Length: {len(body)}\nAuthorization: Bearer {TOKEN}\nConnection: close\n"

    assert answer_to(port, head, body)[0] == 202
    assert len(site.store.children("datasets")) == 1


def test_a_small_body_gets_the_apps_own_answer(port: int) -> None:
    assert answer_to(port, f"{POST}Content-Length: 2\nConnection: close\n", b"PK")[0] == 401


HALF_OPEN = pytest.mark.parametrize(
    "half",
    [b"GET / HTTP/1.1\r\nHost: local", b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\na"],
    ids=["headers", "small body"],
)


@HALF_OPEN
def test_connections_that_finish_no_request_leave_room_for_others(
    port: int, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    monkeypatch.setattr(http_server, "WAITING_CONNECTIONS", 20)
    half_open = []
    try:
        for _ in range(60):
            half_open.append(connect(port))
            half_open[-1].sendall(half)

        assert answer_to(port, "GET /healthz HTTP/1.1\nHost: localhost\nConnection: close\n")[0] == 200
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            assert half_open[0].recv(1) == b""  # the oldest was closed
    finally:
        for client in half_open:
            client.close()


@HALF_OPEN
def test_a_request_that_does_not_come_to_an_end_closes_the_connection(
    port: int, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    for limit in ("HEADER_S", "SMALL_BODY_S"):
        monkeypatch.setattr(http_server, limit, 0.2)
    with connect(port) as client:
        client.sendall(half)

        assert client.recv(1) == b""


def test_a_large_body_with_the_token_may_take_longer_than_a_small_one_and_is_not_closed_for_others(
    port: int, site: Site, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    for limit in ("HEADER_S", "SMALL_BODY_S"):
        monkeypatch.setattr(http_server, limit, 0.2)
    monkeypatch.setattr(http_server, "WAITING_CONNECTIONS", 1)
    body = zipped([("30_1_0.jpg", bytes(SMALL_BODY_BYTES))])
    head = f"{POST}Content-Length: {len(body)}\nAuthorization: Bearer {TOKEN}\nConnection: close\n"
    with connect(port) as upload:
        upload.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body[:-10])
        eventually(lambda: len(staged(site)) == 1)
        for _ in range(2):
            with connect(port) as stranger:
                stranger.sendall(b"POST /login HTTP/1.1\r\nContent-Length: 2\r\n\r\na")
                assert stranger.recv(1) == b"", "its time is over, and so would be the upload's"
        upload.sendall(body[-10:])

        assert b" 202 " in upload.recv(65536).splitlines()[0]


def staged(site: Site) -> list[Path]:
    return sorted(site.store.staging_folder().iterdir())


def test_a_large_body_lies_in_the_store_s_staging_folder_while_it_comes_in(
    port: int, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    (no_room := tmp_path / "tmp").mkdir(mode=0o500)
    monkeypatch.setattr(tempfile, "tempdir", str(no_room / "nowhere"))  # nothing can be written there
    body = zipped([("30_1_0.jpg", random.Random(1).randbytes(10**6))])
    head = f"{POST}Content-Length: {len(body)}\nAuthorization: Bearer {TOKEN}\nConnection: close\n"
    with connect(port) as client:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body[:-10])
        eventually(lambda: [path.stat().st_size for path in staged(site)] == [len(body) - 10])
        inode = staged(site)[0].stat().st_ino
        client.sendall(body[-10:])
        answer = client.recv(65536)

    assert b" 202 " in answer.splitlines()[0]
    (dataset,) = site.store.children("datasets")
    archive = site.store.path(f"datasets/{dataset}/archive.zip")
    assert dataset == hashlib.sha256(body).hexdigest()
    assert archive.stat().st_ino == inode, "it was moved, not copied"
    eventually(lambda: staged(site) == [])


@pytest.mark.parametrize("kind", ["datasets", "jobs"])
def test_an_archive_in_a_form_needs_no_temporary_folder_either(
    port: int, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None], kind: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    archive = zipped([("30_1_0.jpg", random.Random(1).randbytes(10**6))])
    field = b'--X\r\nContent-Disposition: form-data; name="file"; filename="faces.zip"\r\n\r\n'
    body = field + archive + b"\r\n--X--\r\n"
    head = (
        f"POST /api/v1/{kind} HTTP/1.1\nHost: localhost\nContent-Type: multipart/form-data; boundary=X\n"
        f"Content-Length: {len(body)}\nAuthorization: Bearer {TOKEN}\nConnection: close\n"
    )
    assert answer_to(port, head, body)[0] == 202
    (stored,) = site.store.children(kind)
    assert site.store.get(f"{kind}/{stored}/archive.zip") == archive
    eventually(lambda: staged(site) == [])


def test_what_came_of_a_body_whose_connection_broke_is_removed(
    port: int, site: Site, eventually: Callable[..., None]
) -> None:
    head = f"{POST}Content-Length: 1000000\nAuthorization: Bearer {TOKEN}\n"
    with connect(port) as client:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + bytes(200_000))
        eventually(lambda: len(staged(site)) == 1)
    eventually(lambda: staged(site) == [])


def test_a_disk_that_takes_no_upload_is_told_and_ends_no_server(port: int, site: Site) -> None:
    head = f"{POST}Content-Length: 1000000\nAuthorization: Bearer {TOKEN}\n"
    site.store.staging_folder().rmdir()
    status, answer = answer_to(port, head)
    assert (status, error_of(answer)[0]) == (503, "unavailable")
    assert answer_to(port, "GET /healthz HTTP/1.1\nHost: localhost\nConnection: close\n")[0] == 200

"""The dashboard behind a real nginx, as companies set it up: as it comes, with TLS, and below a path."""

from __future__ import annotations

import http.client
import http.cookiejar
import os
import re
import shutil
import ssl
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.faces.synthetic import draw_sample
from tests.support.brokers.rabbitmq_node import free_port
from tests.support.services import Installation, Service, eventually

TOKEN = "correct horse"

# What each configuration adds to the server, and to the location, of nginx; and to the dashboard's settings.
CONFIGURATIONS: dict[str, tuple[str, str, dict[str, str]]] = {
    "proxy_pass alone": ("", "location / { proxy_pass http://UPSTREAM; }", {}),
    "TLS and forwarded headers": (
        "ssl_certificate CERTIFICATE; ssl_certificate_key KEY;",
        "location / { proxy_pass http://UPSTREAM; proxy_set_header Host $http_host; "
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }",
        {"GENDERLINE_TRUSTED_PROXIES": "127.0.0.1"},
    ),
    "a prefix, taken off": (
        "",
        "location /faces/ { proxy_pass http://UPSTREAM/; }",
        {"GENDERLINE_URL_PREFIX": "/faces"},
    ),
    "a prefix, left on": (
        "",
        "location /faces/ { proxy_pass http://UPSTREAM; }",
        {"GENDERLINE_URL_PREFIX": "/faces"},
    ),
}
CONFIG = """
daemon off; USER worker_processes 1; pid FOLDER/nginx.pid; error_log stderr warn;
events { worker_connections 64; }
http {
  access_log off; client_max_body_size 0;
  client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/fastcgi;
  uwsgi_temp_path FOLDER/uwsgi; scgi_temp_path FOLDER/scgi;
  server { listen 127.0.0.1:PORT SSL; SERVER LOCATION }
}
"""


@dataclass
class Browser:
    """What a browser sends and keeps, on a dashboard behind a proxy."""

    origin: str
    prefix: str
    certificate: Path

    def __post_init__(self) -> None:
        self.cookies = http.cookiejar.CookieJar()
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPCookieProcessor(self.cookies)]
        if self.origin.startswith("https"):
            handlers.append(
                urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.certificate)))
            )
        self.open = urllib.request.build_opener(*handlers).open

    def get(self, path: str) -> tuple[str, str]:
        """Returns the address that a path below the prefix leads to, and the text found there."""
        with self.open(f"{self.origin}{self.prefix}{path}", timeout=20) as answer:
            return str(answer.url), answer.read().decode()

    def post(self, path: str, body: bytes, **headers: str) -> http.client.HTTPResponse:
        """Sends what a page's form or script would, with the headers that browsers add."""
        added = {"Sec-Fetch-Site": "same-origin", "Origin": self.origin, "Accept": "text/html"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.origin}{self.prefix}{path}", body, added | named)
        found = self.open(request, timeout=30)
        assert isinstance(found, http.client.HTTPResponse)
        return found

    def csrf(self, text: str) -> str:
        found = re.search(r'name="csrf-token" content="([^"]+)"', text)
        assert found, text
        return found[1]

    def log_in(self) -> str:
        """Logs in as a person does, led to the login by the overview; returns the address where that ends."""
        address, text = self.get("/")
        assert urllib.parse.urlsplit(address).path == f"{self.prefix}/login"
        form = urllib.parse.urlencode({"csrf": self.csrf(text), "token": TOKEN, "next": "/datasets"})
        with self.post("/login", form.encode()) as answer:
            return str(answer.url)


@pytest.fixture(scope="module")
def nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        missing = "no nginx on this machine; on Debian: apt-get install nginx-light"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {folder}/key.pem -out {folder}/cert.pem".split(),
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem"


@pytest.fixture(params=CONFIGURATIONS)
def browser(
    request: pytest.FixtureRequest, nginx: str, certificate: Path, tmp_path: Path
) -> Iterator[tuple[Browser, Service]]:
    """A browser before nginx before a dashboard."""
    server, location, settings = CONFIGURATIONS[request.param]
    installation = Installation(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}", extra=settings)
    dashboard = installation.start("dashboard", GENDERLINE_TOKEN=TOKEN)
    port = free_port()
    names = {
        "UPSTREAM": f"127.0.0.1:{dashboard.port}",
        "CERTIFICATE": str(certificate),
        "KEY": str(certificate.with_name("key.pem")),
        "FOLDER": str(tmp_path),
        "PORT": str(port),
        "USER": "user root;" if os.geteuid() == 0 else "",  # or its workers could not write below the test's folder
        "SSL": "ssl" if server else "",
    }
    text = CONFIG.replace("SERVER", server).replace("LOCATION", location)
    for name, value in names.items():
        text = re.sub(rf"\b{name}\b", value, text)
    (tmp_path / "nginx.conf").write_text(text)
    with subprocess.Popen([nginx, "-p", tmp_path, "-c", tmp_path / "nginx.conf"]) as process:
        try:
            origin = f"{'https' if server else 'http'}://127.0.0.1:{port}"
            found = Browser(origin, settings.get("GENDERLINE_URL_PREFIX", ""), certificate)
            eventually(lambda: answers(found), 20, "nginx answers")
            yield found, dashboard
        finally:
            process.terminate()
            installation.close()


def answers(browser: Browser) -> bool:
    try:
        return "alive" in browser.get("/healthz")[1]
    except OSError:
        return False


def test_login_pages_streams_and_uploads_work_behind_nginx(browser: tuple[Browser, Service], tmp_path: Path) -> None:
    person, _ = browser
    assert person.log_in() == f"{person.origin}{person.prefix}/datasets"
    secure = {cookie.secure for cookie in person.cookies}
    assert secure == {person.origin.startswith("https")}

    _, page = person.get("/datasets")
    for target in re.findall(r'\b(?:href|src|action|data-url|data-page|data-events)="(/[^"]*)"', page):
        assert target.startswith(f"{person.prefix}/"), target
    style = re.search(r'href="([^"]+style\.css[^"]*)"', page)
    assert style
    assert "body" in person.get(style[1].removeprefix(person.prefix))[1]

    draw_sample(tmp_path / "faces.zip", 20, seed=1)
    with person.post(
        "/api/v1/datasets?name=faces",
        (tmp_path / "faces.zip").read_bytes(),
        Content_Type="application/zip",
        X_CSRF_Token=person.csrf(page),
    ) as answer:
        assert answer.status == 202
        where = answer.headers["Location"]
    assert where.startswith(f"{person.prefix}/api/v1/runs/run-")
    assert '"queued"' in person.get(where.removeprefix(person.prefix))[1]

    with person.open(f"{person.origin}{person.prefix}/api/v1/events?topics=worker.heartbeat", timeout=20) as stream:
        assert any(line.startswith(b"event: worker.heartbeat") for line in stream)

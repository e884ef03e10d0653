"""The token, the login, and what keeps other sites out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from flask.testing import FlaskClient

from dashboard import auth
from dashboard.login_throttle import ADDRESS_BURST, ADDRESS_EVERY_S
from shared.records.registry import Registry
from tests.support.dashboard_app import Site, error_of, open_site

TOKEN = "correct horse"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, token=TOKEN) as site:
        yield site


@pytest.fixture
def free(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def csrf_of(web: FlaskClient, path: str = "/") -> str:
    found = re.search(r'name="csrf-token" content="([^"]+)"', web.get(path).text)
    assert found is not None
    return found[1]


def log_in(web: FlaskClient, token: str = TOKEN, target: str = "/") -> int:
    csrf = csrf_of(web, "/login")
    return web.post("/login", data={"token": token, "csrf": csrf, "next": target}).status_code


def session_cookie(site: Site) -> str:
    return str(site.app.config["SESSION_COOKIE_NAME"])


def csrf_cookie(site: Site) -> str:
    with site.app.app_context():
        return auth.csrf_cookie()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/static/style.css", "/login"])
def test_health_and_the_login_stay_open(guarded: Site, path: str) -> None:
    # Not ready, as it was not started, but nobody is sent to the login.
    assert guarded.web.get(path, buffered=True).status_code == (503 if path == "/readyz" else 200)


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/events", "/api/v1/openapi.json", "/metrics"])
def test_programs_are_told_what_is_missing(guarded: Site, path: str) -> None:
    answer = guarded.web.get(path)

    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert error_of(answer.data)[0] == "unauthorized"


def test_a_script_whose_login_has_ended_is_told_so(guarded: Site) -> None:
    answer = guarded.web.post("/predict/image", data=b"x", headers={"Accept": "application/json"})

    assert (answer.status_code, error_of(answer.data)[0]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("referrer", "page"),
    [
        ("http://localhost/faces/models/1?threshold=0.7#promote", "/models/1?threshold=0.7"),
        ("http://localhost/faces/", "/"),
        ("http://localhost/facesandmore", "/"),
        ("http://localhost/elsewhere", "/"),
        ("http://localhost/faces//evil.example", "/"),
        ("http://localhost/faces/\\evil.example", "/"),
        ("https://evil.example/faces/models/1", "/"),
        ("http://[", "/"),
        ("no address", "/"),
        (None, "/"),
    ],
)
def test_a_form_that_is_posted_after_the_login_has_ended_leads_back_to_its_page(
    tmp_path: Path, referrer: str | None, page: str
) -> None:
    with open_site(tmp_path, token=TOKEN, url_prefix="/faces") as site:
        site.builder.model(site.builder.dataset(30), "run-a")
        web = site.web
        csrf = csrf_of(web, "/faces/login")
        headers = {"Referer": referrer} if referrer else {}
        ended = web.post("/faces/models/1/promote", data={"csrf": csrf, "reason": "x"}, headers=headers)
        form = web.get(ended.headers["Location"]).text
        following = re.search(r'name="next" value="([^"]*)"', form)
        assert following is not None
        back = web.post("/faces/login", data={"token": TOKEN, "csrf": csrf, "next": following[1]})
        shown = web.get(back.headers["Location"])

        assert (ended.status_code, following[1]) == (303, page)
        assert back.headers["Location"] == f"/faces{page}"
        assert (shown.status_code, "so nothing was changed" in shown.text) == (200, True)
        assert "so nothing was changed" not in web.get("/faces/").text
        assert site.builder.registry.aliases().champion is None


def test_the_page_of_a_form_is_known_behind_a_proxy_that_changes_the_host(guarded: Site) -> None:
    csrf = csrf_of(guarded.web, "/login")
    headers = {"Referer": "https://faces.example/models", "Sec-Fetch-Site": "same-origin"}
    ended = guarded.web.post("/models/rollback", data={"csrf": csrf}, headers=headers)
    assert unquote(ended.headers["Location"]) == "/login?next=/models"


@pytest.mark.parametrize("path", ["/", "/nope"])
def test_people_are_led_to_the_login_and_back(guarded: Site, path: str) -> None:
    answer = guarded.web.get(f"{path}?a=1")

    assert answer.status_code == 303
    assert unquote(answer.headers["Location"]) == f"/login?next={path}?a=1"


@pytest.mark.parametrize("path", ["/", "/api/v1/runs", "/metrics"])
def test_the_token_opens_everything(guarded: Site, path: str) -> None:
    assert guarded.web.get(path, headers=BEARER).status_code == 200


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer ", "Basic Y29ycmVjdA==", "", "Bearer correct horsé"])
def test_a_wrong_token_opens_nothing(guarded: Site, header: str) -> None:
    answer = guarded.web.get("/api/v1/runs", headers={"Authorization": header.encode().decode("latin-1")})

    assert answer.status_code == 401


def test_logging_in_with_the_token_opens_the_pages_until_logging_out(guarded: Site) -> None:
    web = guarded.web
    assert log_in(web) == 303
    assert web.get("/").status_code == 200
    assert web.get("/api/v1/runs").status_code == 200

    web.post("/logout", data={"csrf": csrf_of(web)})

    assert web.get("/").status_code == 303


def test_a_wrong_token_gives_the_form_again_with_a_sentence(guarded: Site) -> None:
    web = guarded.web
    csrf = csrf_of(web, "/login")

    answer = web.post("/login", data={"token": "guess", "csrf": csrf})

    assert answer.status_code == 401
    assert "Wrong token. Check it and try again." in answer.text
    assert web.get("/").status_code == 303


def test_guessing_at_the_login_is_slowed_down_and_the_right_token_still_opens(guarded: Site) -> None:
    web = guarded.web
    csrf = csrf_of(web, "/login")
    guesses = [web.post("/login", data={"token": f"guess {i}", "csrf": csrf}) for i in range(ADDRESS_BURST + 1)]

    assert [answer.status_code for answer in guesses] == [401] * ADDRESS_BURST + [429]
    assert 0 < int(guesses[-1].headers["Retry-After"]) <= ADDRESS_EVERY_S
    assert "too many wrong tokens from your address" in guesses[-1].text
    assert web.post("/login", data={"token": TOKEN, "csrf": csrf}).status_code == 303


def test_guessing_in_a_header_is_slowed_down_too_and_the_right_token_still_opens(guarded: Site) -> None:
    web = guarded.web
    wrong = {"Authorization": "Bearer guess"}
    answers = [web.get("/api/v1/runs", headers=wrong) for _ in range(ADDRESS_BURST + 1)]

    assert [answer.status_code for answer in answers] == [401] * ADDRESS_BURST + [429]
    assert error_of(answers[-1].data)[0] == "too_many_attempts"
    assert 0 < int(answers[-1].headers["Retry-After"]) <= ADDRESS_EVERY_S
    assert web.get("/api/v1/runs", headers=BEARER).status_code == 200
    log_in(web)
    assert web.get("/", headers={"Authorization": "Basic a proxy's"}).status_code == 200


def test_a_login_is_not_refused_for_the_bearer_of_a_proxy(guarded: Site) -> None:
    web = guarded.web
    log_in(web)
    of_proxy = {"Authorization": "Bearer a proxy's"}
    csrf = csrf_of(web)
    for _ in range(ADDRESS_BURST + 1):
        assert web.get("/", headers=of_proxy).status_code == 200
    assert web.post("/api/v1/models/rollback", headers={**of_proxy, "X-CSRF-Token": csrf}).status_code == 409
    assert web.post("/api/v1/models/rollback", headers=of_proxy).status_code == 403, "the bearer is no proof"
    assert guarded.web.get("/api/v1/runs", headers=of_proxy).status_code == 401, "the login's were not counted"


@pytest.mark.parametrize("more", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}])
def test_a_guess_is_counted_also_where_something_else_is_wrong_that_the_right_token_passes(
    guarded: Site, more: dict[str, str]
) -> None:
    web = guarded.web
    wrong = {"Authorization": "Bearer guess", **more}
    states = [web.post("/api/v1/models/rollback", headers=wrong).status_code for _ in range(ADDRESS_BURST + 1)]

    assert states == [403] * ADDRESS_BURST + [429]
    assert web.post("/api/v1/models/rollback", headers={**BEARER, **more}).status_code == 409


def test_a_script_logs_in_again_and_gets_no_page(guarded: Site) -> None:
    web = guarded.web
    csrf = csrf_of(web, "/login")
    expired = web.post("/predict/image", data=b"x", headers={"Accept": "application/json", "X-CSRF-Token": csrf})
    wrong, right = (
        web.post("/login", data={"token": token}, headers={"Accept": "application/json", "X-CSRF-Token": csrf})
        for token in ("guess guess", TOKEN)
    )

    assert (expired.status_code, error_of(expired.data)[1]) == (401, "Your login has expired. Log in again.")
    assert (wrong.status_code, error_of(wrong.data)[1]) == (401, "Wrong token. Check it and try again.")
    assert right.status_code == 204
    assert web.get("/").status_code == 200


@pytest.fixture
def shared_site(tmp_path: Path) -> Iterator[Site]:
    """A site with an admin, a person with a name, and one that may only read."""
    with open_site(tmp_path, token=TOKEN, tokens="alice:full:battery staple,guest:read:only looking") as site:
        yield site


def test_a_read_only_token_sees_everything_and_changes_nothing(shared_site: Site) -> None:
    shared_site.builder.model(shared_site.builder.dataset(30), "run-a")
    reader = {"Authorization": "Bearer only looking"}
    web = shared_site.web
    for path in ("/", "/models/1", "/api/v1/runs", "/metrics"):
        assert web.get(path, headers=reader).status_code == 200
    refused = web.post("/api/v1/models/1/promote", headers=reader)

    assert (refused.status_code, error_of(refused.data)[0]) == (403, "unauthorized")
    assert "may only read" in error_of(refused.data)[1]
    assert Registry(shared_site.store).aliases().champion is None


def test_a_reader_who_logs_in_gets_pages_without_what_changes_something_and_can_log_out(shared_site: Site) -> None:
    web = shared_site.web
    assert log_in(web, "only looking") == 303
    page = web.get("/").text

    assert 'class="read-only"' in page
    assert "guest (read only)" in " ".join(page.split())
    assert web.post("/samples", data={"csrf": csrf_of(web)}).status_code == 403
    assert web.post("/logout", data={"csrf": csrf_of(web)}).status_code == 303


def test_a_login_outlasts_a_restart_and_ends_with_the_token(tmp_path: Path) -> None:
    with open_site(tmp_path, token=TOKEN) as site:
        web = site.web
        log_in(web)
        cookie = web.get_cookie(session_cookie(site))
    assert cookie is not None
    states = []
    for token in (TOKEN, "another token"):
        with open_site(tmp_path, token=token) as site:
            web = site.web
            web.set_cookie(cookie.key, cookie.value)
            states.append(web.get("/").status_code)

    assert states == [200, 303]


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_the_login_leads_nowhere_else(guarded: Site, target: str) -> None:
    web = guarded.web
    csrf = csrf_of(web, "/login")

    answer = web.post("/login", data={"token": TOKEN, "csrf": csrf, "next": target})

    assert answer.headers["Location"] == "/"


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(guarded: Site) -> None:
    web = guarded.web
    log_in(web)
    for name in (session_cookie(guarded), csrf_cookie(guarded)):
        cookie = web.get_cookie(name)
        assert cookie is not None
        assert cookie.http_only
        assert cookie.same_site == "Strict"
        assert not cookie.secure


def test_over_https_cookies_stay_on_https(guarded: Site) -> None:
    web = guarded.web
    csrf = csrf_of(web, "/login")
    answer = web.post("/login", data={"token": TOKEN, "csrf": csrf}, base_url="https://faces.example")
    assert "Secure" in answer.headers["Set-Cookie"]


def test_two_dashboards_on_one_host_have_cookies_of_their_own(guarded: Site, tmp_path: Path) -> None:
    with open_site(tmp_path / "other", token=TOKEN) as other:
        assert session_cookie(guarded) != session_cookie(other)
        assert csrf_cookie(guarded) != csrf_cookie(other)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//["])
def test_an_origin_that_is_no_address_is_refused(free: Site, origin: str) -> None:
    assert free.web.post("/api/v1/models/rollback", headers={"Origin": origin}).status_code == 403


def test_behind_a_proxy_that_changes_the_host_our_own_pages_pass(guarded: Site) -> None:
    web = guarded.web
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": "https://faces.example", "Host": "127.0.0.1:8080"}
    csrf = csrf_of(web, "/login")

    assert web.post("/login", data={"token": TOKEN, "csrf": csrf}, headers=headers).status_code == 303


def test_a_program_without_cookies_needs_no_csrf_token(free: Site) -> None:
    assert free.web.post("/api/v1/models/rollback").status_code == 409


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "http://["},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "none"},
    ],
)
def test_another_site_can_change_nothing_even_without_cookies(free: Site, headers: dict[str, str]) -> None:
    free.builder.model(free.builder.dataset(30), "run-a")

    answer = free.web.post("/api/v1/models/1/promote", headers=headers)

    assert answer.status_code == 403
    assert Registry(free.store).aliases().champion is None


@pytest.mark.parametrize("origin", ["http://localhost", "https://what-the-browser-calls.example:8443"])
def test_our_own_pages_pass(free: Site, origin: str) -> None:
    web = free.web
    csrf = csrf_of(web)
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": origin, "X-CSRF-Token": csrf}

    assert web.post("/api/v1/models/rollback", headers=headers).status_code == 409


@pytest.mark.parametrize("given", ["", "wrong", "é"])
def test_a_cookie_without_its_csrf_token_is_refused(free: Site, given: str) -> None:
    web = free.web
    csrf_of(web)

    answer = web.post("/api/v1/models/rollback", data={"csrf": given})

    assert answer.status_code == 403
    assert "reload the page" in error_of(answer.data)[1]


def test_a_login_cookie_alone_changes_nothing(guarded: Site) -> None:
    web = guarded.web
    log_in(web)
    web.delete_cookie(csrf_cookie(guarded))

    assert web.post("/api/v1/models/rollback").status_code == 403


def test_the_token_in_a_header_needs_no_csrf_token(guarded: Site) -> None:
    web = guarded.web
    log_in(web)

    assert web.post("/api/v1/models/rollback", headers=BEARER).status_code == 409


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "10.0.0.1"])
def test_a_foreign_name_that_leads_to_loopback_reads_nothing(free: Site, host: str) -> None:
    assert free.web.get("/api/v1/runs", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080"])
def test_loopback_names_are_served(free: Site, host: str) -> None:
    assert free.web.get("/api/v1/runs", headers={"Host": host}).status_code == 200


def test_with_a_token_any_name_is_served(guarded: Site) -> None:
    assert guarded.web.get("/api/v1/runs", headers={"Host": "faces.example", **BEARER}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/nope", "/api/v1/runs", "/healthz", "/static/style.css"])
def test_every_answer_carries_the_security_headers(free: Site, path: str) -> None:
    headers = free.web.get(path, buffered=True).headers

    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_pages_hold_no_inline_script_or_style(free: Site) -> None:
    free.builder.model(free.builder.dataset(30), "run-a")

    text = free.web.get("/").text

    assert not re.search(r"<script(?![^>]*\ssrc=)", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def test_a_mistyped_address_gets_a_page_with_a_next_step(free: Site) -> None:
    answer = free.web.get("/nope")

    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "Back to the overview" in answer.text


def test_a_wrong_method_is_answered_in_the_apis_form(free: Site) -> None:
    answer = free.web.delete("/api/v1/runs")

    assert (answer.status_code, error_of(answer.data)[0]) == (405, "invalid_message")

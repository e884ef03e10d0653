"""Who may: the token, the login cookie, and proof that a request comes from a page of ours.

A browser attaches cookies, and reaches loopback, on behalf of any site it has open. So a request that changes
something is refused where the browser says that it comes from elsewhere (`Sec-Fetch-Site` or, without that, `Origin`),
and where it carries a cookie of ours without the matching CSRF token. A program sends `Authorization: Bearer`, which
no site can make a browser send, or nothing at all where no token is set. Without a token the `Host` must be a loopback
name too, or a site could point its own name at 127.0.0.1 and read everything.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, current_app, g, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.errors import Forbidden, TooManyAttempts, reads_json
from dashboard.login_throttle import LoginThrottle
from shared.errors import GenderlineError
from shared.runtime.settings import LOOPBACK, Settings
from shared.telemetry.token import authorised

CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "X-CSRF-Token"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN: Final = frozenset({"/healthz", "/readyz", "/login"})
_LOGIN_LASTS: Final = timedelta(days=30)

blueprint = Blueprint("auth", __name__)


def register_auth(app: Flask, settings: Settings, throttle: LoginThrottle | None = None) -> None:
    """Guards every request of `app`; `throttle` counts wrong tokens, by default from none on."""
    app.config.update(
        SECRET_KEY=_session_key(settings.token),
        SESSION_COOKIE_NAME=f"genderline_session_{_installation(settings)}",
        GENDERLINE_CSRF_COOKIE=f"genderline_csrf_{_installation(settings)}",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        PERMANENT_SESSION_LIFETIME=_LOGIN_LASTS,
        GENDERLINE_TOKEN=settings.token,
        GENDERLINE_LOGIN_THROTTLE=throttle or LoginThrottle(),
    )
    app.session_interface = _SessionCookie()
    app.register_blueprint(blueprint)
    app.before_request(_guard)
    app.after_request(_with_headers)
    app.context_processor(lambda: {"csrf_token": csrf_token, "logged_in": bool(session.get("in"))})
    app.context_processor(lambda: {"csp_nonce": csp_nonce})


class _SessionCookie(SecureCookieSessionInterface):
    """Flask's login cookie, which a browser sends over HTTPS alone where it came over HTTPS."""

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - the base class's argument
        return request.is_secure


def _installation(settings: Settings) -> str:
    """Returns what tells this installation's cookies from another's: browsers share them among a host's ports."""
    own = f"{settings.broker_url} {settings.queue_prefix} {settings.store_url} {settings.url_prefix}"
    return hashlib.sha256(own.encode()).hexdigest()[:8]


def csrf_cookie() -> str:
    """Returns the name of the cookie that goes with `csrf_token`."""
    return str(current_app.config["GENDERLINE_CSRF_COOKIE"])


def csrf_token() -> str:
    """Returns the token that forms and scripts of this page send back; sets its cookie with the answer."""
    if "csrf" not in g:
        g.csrf = request.cookies.get(csrf_cookie()) or secrets.token_urlsafe(32)
    return str(g.csrf)


def csp_nonce() -> str:
    """Returns the nonce under which this answer's plots may add style elements, which Bokeh does."""
    if "csp_nonce" not in g:
        g.csp_nonce = secrets.token_urlsafe(16)
    return str(g.csp_nonce)


def _session_key(token: str | None) -> bytes:
    """Derives the key that signs login cookies, so that they outlast a restart and end with the token.

    Slow on purpose: whoever has a cookie could otherwise guess short tokens at leisure.
    """
    if token is None:
        return secrets.token_bytes(32)  # nobody logs in
    return hashlib.scrypt(token.encode(), salt=b"genderline login cookie", n=2**14, r=8, p=1, dklen=32)


def _guard() -> WsgiResponse | None:
    token: str | None = current_app.config["GENDERLINE_TOKEN"]
    header = request.headers.get("Authorization")
    bearer = token is not None and header is not None and _is_token(header, token)
    if token is None and _host_name(f"//{request.host}") not in LOOPBACK:
        raise Forbidden(f"found the host name {request.host!r}, expected a loopback name such as localhost")
    if request.method not in _SAFE and not bearer:
        _refuse_foreign()
    if token is None or bearer or session.get("in") or request.path in _OPEN or request.endpoint == "static":
        return None
    if reads_json():
        raise GenderlineError("expected Authorization: Bearer TOKEN, or a login", code="unauthorized")
    return redirect(url_for("auth.login", next=request.full_path.rstrip("?")), 303)


def _is_token(header: str, token: str) -> bool:
    """Returns whether a program's `Authorization` header carries the token.

    Strangers elsewhere cannot shut programs out: of all wrong guesses only those from the same address count here.

    Raises:
        TooManyAttempts: that address was wrong too often, so this was not even looked at.
    """
    if not header.lower().startswith("bearer"):
        return False  # some proxy's own, and no guess
    throttle: LoginThrottle = current_app.config["GENDERLINE_LOGIN_THROTTLE"]
    if wait_s := math.ceil(throttle.wait_s(request.remote_addr, alone=True)):
        raise TooManyAttempts(f"too many wrong tokens; the next one is looked at in {wait_s} seconds", wait_s=wait_s)
    if authorised(header, token):
        return True
    throttle.record_failure(request.remote_addr)
    return False


def _refuse_foreign() -> None:
    """Raises `Forbidden` for a request that another site made the browser send."""
    site = request.headers.get("Sec-Fetch-Site")
    if site not in {None, "same-origin", "none"}:
        raise Forbidden(f"found a request from another site (Sec-Fetch-Site: {site}), expected one of our own pages")
    origin = request.headers.get("Origin")
    # A browser that says "same-origin" has compared the address that it knows; a proxy may have changed ours.
    if site != "same-origin" and origin is not None and _host(origin) != request.host:
        raise Forbidden(
            f"found a request from a page of {origin}, expected one of http://{request.host}. Behind a reverse proxy, "
            "let it pass on the header Host, or use HTTPS: docs/proxy.md"
        )
    cookie = request.cookies.get(csrf_cookie())
    if cookie is None and not session:
        return  # no browser of ours: nothing that could be borrowed
    # The form is looked at last: reading it would take in a whole upload.
    given = request.headers.get(CSRF_HEADER) or request.form.get(CSRF_FIELD, "")
    if cookie is None or not hmac.compare_digest(cookie.encode(), given.encode()):
        raise Forbidden("the page's CSRF token is missing or old; reload the page and try again")


def _host(url: str) -> str | None:
    """Returns host and port of a URL; None where it is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _with_headers(response: Response) -> Response:
    nonce = f" 'nonce-{g.csp_nonce}'" if "csp_nonce" in g else ""
    response.headers["Content-Security-Policy"] = (
        "default-src 'self'; img-src 'self' blob: data:; "
        f"style-src 'self'{nonce}; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    if "csrf" in g and request.cookies.get(csrf_cookie()) != g.csrf:
        response.set_cookie(
            csrf_cookie(), g.csrf, max_age=_LOGIN_LASTS, httponly=True, samesite="Strict", secure=request.is_secure
        )
    return response


@blueprint.get("/login")
def login() -> str | WsgiResponse:
    """The page that asks for the token."""
    if current_app.config["GENDERLINE_TOKEN"] is None or session.get("in"):
        return redirect(request.script_root + _own_page(request.args.get("next")), 303)
    return render_template("login.html", next=_own_page(request.args.get("next")))


@blueprint.post("/login")
def log_in() -> tuple[str, int, dict[str, str]] | WsgiResponse:
    """Takes the token and gives a cookie for it."""
    given = request.form.get("token", "")
    target = _own_page(request.form.get("next"))
    throttle: LoginThrottle = current_app.config["GENDERLINE_LOGIN_THROTTLE"]
    if wait_s := math.ceil(throttle.wait_s(request.remote_addr)):
        page = render_template("login.html", next=target, wait_s=wait_s)
        return page, 429, {"Retry-After": str(wait_s)}
    if not authorised(f"Bearer {given}", current_app.config["GENDERLINE_TOKEN"]):
        throttle.record_failure(request.remote_addr)
        return render_template("login.html", next=target, wrong=True), 401, {}
    session.clear()
    session.permanent = True
    session["in"] = True
    return redirect(request.script_root + target, 303)


@blueprint.post("/logout")
def log_out() -> WsgiResponse:
    """Forgets the login of this browser."""
    session.clear()
    return redirect(url_for("auth.login"), 303)


def _own_page(target: str | None) -> str:
    """Returns `target` where it is a path of ours, below any prefix; else the overview: no link can lead elsewhere."""
    if not target or not target.startswith("/") or target.startswith(("//", "/\\")) or not target.isprintable():
        return "/"
    return target

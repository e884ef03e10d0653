"""Who may: the access tokens, the login cookie, and proof that a request comes from one of our pages.

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
from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    Response,
    current_app,
    flash,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSessionInterface
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.errors import Forbidden, TooManyAttempts, reads_json
from dashboard.login_throttle import LoginThrottle
from shared.access import AccessToken, find_token
from shared.errors import GenderlineError
from shared.runtime.settings import LOOPBACK, Settings

CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "X-CSRF-Token"
_TOKENS: Final = "GENDERLINE_TOKENS"
_THROTTLE: Final = "GENDERLINE_LOGIN_THROTTLE"
_UNDONE: Final = "undone"
"""In a session: a form was posted after the login had ended."""
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN: Final = frozenset({"/healthz", "/readyz", "/login"})
_LOGIN_LASTS: Final = timedelta(days=30)

blueprint = Blueprint("auth", __name__)


def register_auth(app: Flask, settings: Settings, throttle: LoginThrottle | None = None) -> None:
    """Guards every request of `app`; `throttle` counts wrong tokens, by default from none on."""
    app.config.update(
        SECRET_KEY=_derive_session_key(settings.access_tokens),
        SESSION_COOKIE_NAME=f"genderline_session_{_installation(settings)}",
        GENDERLINE_CSRF_COOKIE=f"genderline_csrf_{_installation(settings)}",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        PERMANENT_SESSION_LIFETIME=_LOGIN_LASTS,
    )
    app.config[_TOKENS] = settings.access_tokens
    app.config[_THROTTLE] = throttle or LoginThrottle()
    app.session_interface = _SessionCookie()
    app.register_blueprint(blueprint)
    app.before_request(_guard)
    app.after_request(_add_headers)
    app.context_processor(_describe_visitor)


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


def current_user() -> str | None:
    """Returns the name of the token that this request came with; None where nothing is guarded."""
    token = _current_token()
    return token.name if token else None


def refusal_by_headers() -> GenderlineError | None:
    """Returns why this request will be refused, as far as its headers say; None where it may be answered.

    The server asks this before it takes in a large body. A wrong token is counted.
    """
    try:
        token = _bearer()
        if token is None:
            _count_wrong_token()
        _check_origin()
        if request.method not in _SAFE and token is None:
            _check_csrf(request.headers.get(CSRF_HEADER, ""))
        if not _is_admitted():
            return _login_needed()
        _check_role()
    except GenderlineError as error:
        return error
    return None


def _describe_visitor() -> dict[str, object]:
    """Returns what every page knows of who looks at it."""
    token = _current_token()
    return {
        "csrf_token": csrf_token,
        "csp_nonce": csp_nonce,
        "guarded": bool(_all_tokens()),
        "logged_in": bool(session.get("name")),
        "may_change": token is None or token.may_change,
        "user": token.name if token and len(_all_tokens()) > 1 else None,
    }


def _derive_session_key(tokens: Sequence[AccessToken]) -> bytes:
    """Derives the key that signs login cookies, so that they outlast a restart and end with the tokens.

    Slow on purpose: the holder of a cookie could otherwise guess short tokens at leisure.
    """
    if not tokens:
        return secrets.token_bytes(32)  # nobody logs in
    text = "\n".join(f"{token.name}:{token.role}:{token.secret}" for token in tokens)
    return hashlib.scrypt(text.encode(), salt=b"genderline login cookie", n=2**14, r=8, p=1, dklen=32)


def _all_tokens() -> tuple[AccessToken, ...]:
    tokens: tuple[AccessToken, ...] = current_app.config[_TOKENS]
    return tokens


def _bearer() -> AccessToken | None:
    """Returns the token in the `Authorization` header, if it is a right one."""
    return find_token(request.headers.get("Authorization"), _all_tokens())


def _current_token() -> AccessToken | None:
    """Returns the token in the header, or the one that this browser has logged in with."""
    name = session.get("name")
    return _bearer() or next((token for token in _all_tokens() if token.name == name), None)


def _guard() -> WsgiResponse | None:
    token = _bearer()
    if token is None:
        _count_wrong_token()  # before all that a right token passes, which would tell it from wrong ones
    _check_origin()
    if request.method not in _SAFE and token is None:
        # The form is looked at last: reading it takes in a whole upload.
        _check_csrf(request.headers.get(CSRF_HEADER) or (request.form.get(CSRF_FIELD, "") if _has_cookies() else ""))
    if not _is_admitted():
        if reads_json():
            raise _login_needed()
        if request.method not in _SAFE and request.endpoint not in _OWN_LOGIN:
            session[_UNDONE] = True
        return redirect(url_for("auth.login", next=_page_asked_for()), 303)
    if request.endpoint not in _OWN_LOGIN:
        _check_role()
    return None


def _check_role() -> None:
    """Raises `Forbidden` for a change with a read-only token."""
    visitor = _current_token()
    if visitor and not visitor.may_change and request.method not in _SAFE:
        raise Forbidden(f"the token {visitor.name!r} may only read; log in with one that may make changes")


def _is_admitted() -> bool:
    return not _all_tokens() or _current_token() is not None or request.path in _OPEN or request.endpoint == "static"


def _login_needed() -> GenderlineError:
    if _has_cookies() or "Sec-Fetch-Site" in request.headers:
        return GenderlineError("Your login has expired. Log in again.", code="unauthorized")
    return GenderlineError("expected Authorization: Bearer TOKEN, or a login", code="unauthorized")


def _count_wrong_token() -> None:
    """Counts a wrong `Authorization: Bearer` header; a right one never comes here, so it is never locked out.

    Raises:
        TooManyAttempts: this address was wrong too often.
    """
    is_bearer = request.headers.get("Authorization", "").lower().startswith("bearer")
    if not _all_tokens() or not is_bearer or _current_token() is not None:
        return  # some proxy's own, and no guess: it is none either beside a login
    throttle: LoginThrottle = current_app.config[_THROTTLE]
    if wait_s := math.ceil(throttle.wait_s(request.remote_addr, alone=True)):
        raise TooManyAttempts(f"wrong token, and too many before it; wait {wait_s} seconds", wait_s=wait_s)
    throttle.record_failure(request.remote_addr)


def _check_origin() -> None:
    """Raises `Forbidden` for a request that another site made the browser send, or that came by a foreign name."""
    if not _all_tokens() and _host_name(f"//{request.host}") not in LOOPBACK:
        raise Forbidden(f"found the host name {request.host!r}, expected a loopback name such as localhost")
    if request.method in _SAFE or _bearer() is not None:
        return
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


def _has_cookies() -> bool:
    return csrf_cookie() in request.cookies or bool(session)


def _check_csrf(given: str) -> None:
    """Raises `Forbidden` where a browser of ours sends the cookie without the matching token."""
    if not _has_cookies():
        return  # nothing that could be borrowed
    cookie = request.cookies.get(csrf_cookie())
    if cookie is None or not hmac.compare_digest(cookie.encode(), given.encode()):
        raise Forbidden("the page's CSRF token is missing or old; reload the page and try again")


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _host(url: str) -> str | None:
    """Returns host and port of a URL; None where it is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None


def _add_headers(response: Response) -> Response:
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
    """Shows the page that asks for the token."""
    if not _all_tokens() or session.get("name"):
        return redirect(request.script_root + _own_page(request.args.get("next")), 303)
    return render_template("login.html", next=_own_page(request.args.get("next")))


@blueprint.post("/login")
def log_in() -> tuple[str, int, dict[str, str]] | WsgiResponse:
    """Takes the token and gives a cookie for it; a script gets JSON instead of a page."""
    target = _own_page(request.form.get("next"))
    token = find_token(f"Bearer {request.form.get('token', '')}", _all_tokens())
    if token is not None:
        undone = session.get(_UNDONE, False)
        session.clear()
        session.permanent = True
        session["name"] = token.name
        if undone and not reads_json():
            flash("Your login had ended when you pressed the button, so nothing was changed. Press it again.")
        return Response(status=204) if reads_json() else redirect(request.script_root + target, 303)
    throttle: LoginThrottle = current_app.config[_THROTTLE]
    if wait_s := math.ceil(throttle.wait_s(request.remote_addr)):
        if reads_json():
            raise TooManyAttempts(f"Wrong token, and too many before it. Wait {wait_s} seconds.", wait_s=wait_s)
        page = render_template("login.html", next=target, wait_s=wait_s)
        return page, 429, {"Retry-After": str(wait_s)}
    throttle.record_failure(request.remote_addr)
    if reads_json():
        raise GenderlineError("Wrong token. Check it and try again.", code="unauthorized")
    return render_template("login.html", next=target, wrong=True), 401, {}


@blueprint.post("/logout")
def log_out() -> WsgiResponse:
    """Forgets the login of this browser."""
    session.clear()
    return redirect(url_for("auth.login"), 303)


_OWN_LOGIN: Final = frozenset({"auth.log_in", "auth.log_out"})


def _page_asked_for() -> str:
    """Returns the page that the login leads to: the one asked for, or for a form the page that it stands on."""
    if request.method in _SAFE:
        return request.full_path.rstrip("?")
    page = request.referrer or ""
    if _host(page) != request.host and request.headers.get("Sec-Fetch-Site") != "same-origin":
        return "/"
    # `_host` has split it before, so that this cannot fail; the prefix is put back by the login.
    found = urlsplit(page)._replace(scheme="", netloc="", fragment="").geturl() if _host(page) else ""
    if not found.startswith(f"{request.script_root}/"):
        return "/"
    return _own_page(found.removeprefix(request.script_root))


def _own_page(target: str | None) -> str:
    """Returns `target` where it is a path of ours, below any prefix; else the overview: no link can lead elsewhere."""
    if not target or not target.startswith("/") or target.startswith(("//", "/\\")) or not target.isprintable():
        return "/"
    return target

"""The one place where an error becomes an HTTP status: JSON for programs and scripts, a page for people."""

from __future__ import annotations

import logging
from typing import Final

from flask import Flask, Response, jsonify, make_response, render_template, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Response as WsgiResponse

from shared.errors import CODES, GenderlineError, internal_error

STATUSES: Final[dict[str, int]] = {
    "unsupported_content_type": 415,
    "unsupported_schema": 400,
    "invalid_message": 400,
    "invalid_params": 400,
    "uri_not_allowed": 400,
    "uri_not_found": 400,
    "sha256_mismatch": 400,
    "invalid_archive": 400,
    "archive_too_large": 413,
    "too_few_faces": 400,
    "single_gender": 400,
    "training_diverged": 500,
    "invalid_image": 400,
    "killed_worker": 400,
    "image_too_large": 413,
    "unknown_model_version": 404,
    "invalid_model": 500,
    "expired": 504,
    "cancelled": 409,
    "damaged_record": 500,
    "conflict": 409,
    "not_found": 404,
    "unauthorized": 401,
    "too_many_attempts": 429,
    "too_large": 413,
    "timeout": 504,
    "unavailable": 503,
    "internal": 500,
}
"""The status of each of `shared.errors.CODES`."""

_CODE_OF_HTTP_STATUS: Final = {
    400: "invalid_message",
    401: "unauthorized",
    403: "unauthorized",
    404: "not_found",
    405: "invalid_message",
    413: "too_large",
    415: "unsupported_content_type",
}

_NEXT_STEPS: Final = {
    "not_found": "It may have been deleted, or the address is wrong. Start again from the overview.",
    "unauthorized": "Go back, reload the page and try again.",
    "too_many_attempts": "Wait a moment, then try again with the right token.",
    "damaged_record": "Put the file back from a backup, or delete it. All else works meanwhile.",
    "conflict": "Reload the page to see the present state.",
    "unavailable": "Wait a moment and reload. If it stays like this, check that the broker and the store are running.",
    "timeout": "Check on the overview that an inference service is running and that there is a model, then try again.",
    "too_large": "Send it in smaller parts, or put it where the services can read it and submit its address.",
    "internal": "Reloading may help. If it does not, look into the dashboard's log and report what it says.",
}
_TITLES: Final = {
    "not_found": "Not found",
    "unauthorized": "Not allowed",
    "too_many_attempts": "Too many attempts",
    "conflict": "Not possible now",
    "unavailable": "Not available now",
    "timeout": "No answer in time",
    "too_large": "Too large",
    "internal": "Internal error",
}
_LOG = logging.getLogger(__name__)


class Forbidden(GenderlineError):
    """The request is well-formed and perhaps authorised, but not one that a page of ours would send."""

    default_code = "unauthorized"


class TooManyAttempts(GenderlineError):
    """Somebody guesses tokens.

    Args:
        message: as for every error.
        code: likewise.
        wait_s: seconds until the next wrong token is answered as one.
    """

    default_code = "too_many_attempts"

    def __init__(self, message: str, *, code: str | None = None, wait_s: int = 0) -> None:
        super().__init__(message, code=code)
        self.wait_s = wait_s


def register_errors(app: Flask) -> None:
    """Makes every error of a view an answer in the form that its reader expects."""
    app.register_error_handler(GenderlineError, _answer_our_error)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_bug)


def status_of(error: GenderlineError) -> int:
    """Returns the HTTP status that fits an error."""
    return 403 if isinstance(error, Forbidden) else STATUSES[error.code]


def reads_json() -> bool:
    """Returns whether the request comes from a program, or from a script of one of our pages, and not from a person."""
    accepted = request.accept_mimetypes
    prefers_json = accepted["application/json"] > accepted["text/html"]
    return prefers_json or request.path.startswith("/api/") or request.path == "/metrics"


def _answer_our_error(error: GenderlineError) -> WsgiResponse:
    answer = make_response(_answer(error, status_of(error)))
    if isinstance(error, TooManyAttempts):
        answer.headers["Retry-After"] = str(error.wait_s)
    return answer


def _answer_http_error(error: HTTPException) -> WsgiResponse | tuple[Response | str, int]:
    status = error.code or 500
    if status < 400:
        return error.get_response()
    code = _CODE_OF_HTTP_STATUS.get(status, "invalid_message" if status < 500 else "internal")
    words = error.description or error.name
    if status == 404:
        words = f"Page {request.path} does not exist."
    elif isinstance(error, MethodNotAllowed):
        allowed = sorted({*(error.valid_methods or ())} - {"HEAD", "OPTIONS"})
        words = f"found the method {request.method}, expected {' or '.join(allowed)} for {request.path}"
    return _answer(GenderlineError(words, code=code), status)


def _answer_bug(error: Exception) -> tuple[Response | str, int]:
    _LOG.error("a bug, in %s %s", request.method, request.path, exc_info=error)
    return _answer(internal_error(), 500)


def _answer(error: GenderlineError, status: int) -> tuple[Response | str, int]:
    if reads_json():
        answer = jsonify({"error": error.as_dict()})
        if status == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        return answer, status
    next_step = _NEXT_STEPS.get(error.code, CODES[error.code])
    title = "Page not found" if status == 404 and request.endpoint is None else _TITLES.get(error.code, "Error")
    message = str(error)
    if message.partition(" ")[0].isalpha():  # a name of a file stays as it is
        message = message[:1].upper() + message[1:]
    message += "" if message.endswith((".", "…")) else "."
    return render_template("error.html", status=status, title=title, message=message, next_step=next_step), status

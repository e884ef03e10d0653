"""The one exception tree: its branches decide what happens to a message, its codes are what a client sees.

| branch            | the message                                        | the client sees          |
| ----------------- | -------------------------------------------------- | ------------------------ |
| `InvalidMessage`  | dead letter at once, never retried                 | an error reply           |
| `InvalidDataset`  | acknowledged: the run or job ends `rejected`       | why, in the last reply   |
| `InvalidImage`    | acknowledged with its neighbours                   | that image's error entry |
| `Retryable`       | waits, with growing pauses, as long as it takes    | nothing meanwhile        |
| another of these  | dead letter at once                                | an error reply           |
| anything else     | a bug: tried once more alone, then dead letter     | `internal`, no details   |

`shared.worker.retry` carries this out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

CODES: dict[str, str] = {
    "unsupported_content_type": "The message's content type is not one that its queue takes.",
    "unsupported_schema": "The body's `schema` is not a version this release knows.",
    "invalid_message": "The body or a header is malformed; the message names the field.",
    "invalid_params": "A training parameter is unknown or out of range; the message lists the valid ones.",
    "uri_not_allowed": "The `uri` lies outside the allowed roots, or its scheme is not supported.",
    "uri_not_found": "Nothing can be read at the `uri`.",
    "sha256_mismatch": "The archive's SHA-256 is not the one the message gave.",
    "invalid_archive": "The archive is no readable zip, tar or tar.gz, or empty, cut short, encrypted or crafted.",
    "archive_too_large": "The archive breaks a limit on members or bytes.",
    "too_few_faces": "Fewer usable faces than training needs.",
    "single_gender": "All usable faces carry the same gender.",
    "training_diverged": "The loss stopped being a finite number; the message names the learning rate.",
    "invalid_image": "The bytes cannot be decoded as a JPEG, PNG, WebP, BMP, AVIF or HEIC image.",
    "killed_worker": "Decoding the image killed the process that did it, twice.",
    "image_too_large": "The image breaks a limit on pixels or bytes.",
    "unknown_model_version": "`model_version` names a model that is not registered.",
    "invalid_model": "The registered model failed verification.",
    "expired": "The deadline had passed before the image was computed.",
    "cancelled": "Cancelled by a user.",
    "damaged_record": "A file in the store does not hold what it should; the message names it.",
    "conflict": "The request contradicts the present state.",
    "not_found": "No such run, model, job, dataset or dead letter.",
    "unauthorized": "The token is missing or wrong.",
    "too_many_attempts": "Too many wrong tokens; wait for as long as the header `Retry-After` says.",
    "too_large": "The request's body is over the limit.",
    "timeout": "No answer in time; the work goes on.",
    "unavailable": "The broker or the store is away, or the queue is full; try again later.",
    "internal": "Internal error: a bug of ours; the log has the traceback.",
}
"""Every error code there is, with its meaning; docs/reference.md is tested against it."""


class GenderlineError(Exception):
    """An error with a code for programs and a sentence for people.

    Args:
        message: what was found and what was expected, fit to be shown to the user who caused it.
        code: one of `CODES`; each branch has a default.
    """

    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        if self.code not in CODES:
            raise ValueError(f"unknown error code {self.code!r}; add it to shared.errors.CODES")

    def as_dict(self) -> dict[str, str]:
        """Returns `{"code", "message"}`, the form of every error in replies, events and HTTP answers."""
        return {"code": self.code, "message": str(self)}


class InvalidMessage(GenderlineError):
    """The message itself is at fault; trying it again cannot help."""

    default_code = "invalid_message"


class InvalidDataset(GenderlineError):
    """The archive that a message names is at fault."""

    default_code = "invalid_archive"


class InvalidImage(GenderlineError):
    """One image is at fault; its neighbours are not."""

    default_code = "invalid_image"


class InvalidModel(GenderlineError):
    """A model file that must not be served."""

    default_code = "invalid_model"


class NotFound(GenderlineError):
    """What was asked for does not exist."""

    default_code = "not_found"


class Cancelled(GenderlineError):
    """A user asked for the work to stop."""

    default_code = "cancelled"


class Conflict(GenderlineError):
    """The request contradicts the present state."""

    default_code = "conflict"


class Retryable(GenderlineError):
    """Store or broker away, or full: the same work may succeed later."""

    default_code = "unavailable"


def internal_error() -> GenderlineError:
    """Returns what a client is told of a bug: nothing but that there is one."""
    return GenderlineError("internal error; the service's log has the details", code="internal")


def short_repr(value: object) -> str:
    """Returns a value as error messages show what was found: on one line, its kind recognisable, cut short."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object of {len(value)}"
    # Cut before it is spelled out: a megabyte of bytes would become four of text.
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"

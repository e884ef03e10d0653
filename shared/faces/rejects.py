"""Why one image of a dataset or job is left out: the closed list of reasons, and the error that carries one."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import InvalidImage

REJECT_REASONS: dict[str, str] = {
    "no_label": "Neither the file name, nor a folder, nor a table in the archive gives the gender.",
    "invalid_label": "The file name has the form, but its age, gender or ethnicity is out of range.",
    "unsafe_name": "The name is empty, absolute, over 4,096 characters, leads out by `..`, or has control characters.",
    "link": "The entry is a symbolic link or another special file, not a plain one.",
    "encrypted": "The entry needs a password; its neighbours do not.",
    "unsupported_compression": "The entry is compressed in a way other than stored, deflate, bzip2 or LZMA.",
    "suspicious_ratio": "The entry claims to unpack to far more than images do.",
    "size_mismatch": "The entry unpacks to more or fewer bytes than the archive says.",
    "corrupt": "The entry is damaged: it does not unpack, or fails its checksum.",
    "image_too_large": "The image breaks a limit on bytes or pixels.",
    "invalid_image": "The bytes cannot be decoded as a JPEG, PNG, WebP, BMP, AVIF or HEIC image.",
    "killed_worker": "Decoding the image killed the process that did it, twice.",
    "internal": "Decoding the image failed with an internal error; the log has the traceback.",
    "superseded": "A later entry of the archive has the same name: it counts, as for whatever unpacks the archive.",
    "duplicate": "The same face is in the dataset already; the detail names the copy that was kept.",
    "contradiction": "The same face is there with another gender, so no copy can be trusted.",
}
"""Every reason there is, with its meaning; docs/reference.md and the metrics' label have the same."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Why an image is left out.

    Attributes:
        reason: a key of `REJECT_REASONS`.
        detail: what was found and what was expected, fit to be shown to the user.
    """

    reason: str
    detail: str

    def __post_init__(self) -> None:
        if self.reason not in REJECT_REASONS:
            raise ValueError(f"unknown reject reason {self.reason!r}; add it to shared.rejects.REJECT_REASONS")


class RejectError(InvalidImage):
    """One image is left out, for a reason finer than an error code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail, code="image_too_large" if reason == "image_too_large" else None)
        self.reject = Reject(reason, detail)


def clipped(text: str, length: int = 80) -> str:
    """Returns text from outside, such as a name, as a detail may hold it: names in archives go to 65,535 bytes."""
    return text if len(text) <= length else text[: length - 1] + "…"


def reject_for(error: InvalidImage) -> Reject:
    """Returns the reject that an image's error amounts to: its own, or its code, which is a reason too."""
    return error.reject if isinstance(error, RejectError) else Reject(error.code, str(error))

"""Which of the decoded faces become part of a dataset, and why the others do not."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from shared.faces.labels import GENDERS, Label
from shared.faces.rejects import Reject, clipped
from shared.records.dataset import RejectRow
from trainer.data.decode import DecodedFace

_NAME_LENGTH: Final = 300
"""Characters of a copy's name in a reject: enough to find it by, folders and all."""


class FaceEntry(NamedTuple):
    """A face of an archive.

    Attributes:
        entry: its index in the archive, and the row that it was written to.
        name: of its entry.
        label: of its entry.
    """

    entry: int
    name: str
    label: Label
    traits: DecodedFace


class Deduplicator:
    """Keeps the first of equal faces, none where equal faces contradict each other, and a note of all it rejects."""

    def __init__(self) -> None:
        self._first: dict[bytes, FaceEntry] = {}  # by digest, in archive order
        self._copies: dict[bytes, list[FaceEntry]] = {}  # the others of those that there are several of
        self._rejects: dict[int, RejectRow] = {}  # by the entry's index

    def reject(self, index: int, name: str, reject: Reject) -> None:
        """Notes why an entry is left out, in place of an earlier reason."""
        self._rejects[index] = RejectRow(name, reject.reason, reject.detail)

    def add(self, face: FaceEntry) -> None:
        """Keeps a face, unless it is there already."""
        digest = face.traits.digest
        first = self._first.setdefault(digest, face)
        if first is not face:
            self._copies.setdefault(digest, []).append(face)
            detail = f"found the same face as in {_quoted(first)}, expected it once"
            self.reject(face.entry, face.name, Reject("duplicate", detail))

    def unique_faces(self) -> list[FaceEntry]:
        """Drops the contradictions, which are known only now. Returns the faces to keep, in archive order."""
        for digest, others in self._copies.items():
            copies = [self._first[digest], *others]
            by_gender = {face.label.gender: face for face in reversed(copies)}
            if len(by_gender) > 1:
                described = " and ".join(
                    f"{GENDERS[gender]} in {_quoted(by_gender[gender])}" for gender in sorted(by_gender)
                )
                for face in copies:
                    detail = f"found the same face as {described}, expected one gender"
                    self.reject(face.entry, face.name, Reject("contradiction", detail))
        return [face for face in self._first.values() if face.entry not in self._rejects]

    def reject_rows(self) -> list[RejectRow]:
        """Returns the rejects in archive order."""
        return [row for _, row in sorted(self._rejects.items())]

    def counts(self) -> dict[str, int]:
        """Returns reason → how many, the most frequent first."""
        return dict(Counter(row.reason for row in self._rejects.values()).most_common())


def _quoted(face: FaceEntry) -> str:
    return repr(clipped(face.name, _NAME_LENGTH))

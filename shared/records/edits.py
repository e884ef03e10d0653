"""Corrections of a dataset's labels, beside its archive, which never changes: `edits.json`.

The file is the history of all edits, with who made each and when. What it says of a face is its newest edit that was
not undone. A run trains on a copy of that, kept under the copy's own hash as `edits/<sha256>.json`: so the run and the
card of its model name exactly the labels that were learned from, whatever is edited later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shared.clock import now_iso
from shared.errors import Conflict, InvalidMessage, NotFound, short_repr
from shared.records.dataset import ARCHIVE_LABELS, SUMMARY_JSON
from shared.records.record import StoredModel, Timestamp, change_record, find_record
from shared.store.base import Store, json_bytes

Correction = Literal["male", "female", "exclude"]
"""What an edit makes of a face: another label, or none: the face is left out of training and of every figure."""
Change = Literal["male", "female", "exclude", "restore"]
"""A correction, or the way back to the label of the archive."""
CORRECTIONS: Final[tuple[Correction, ...]] = get_args(Correction)
CHANGES: Final[tuple[Change, ...]] = get_args(Change)


class Edit(StoredModel):
    """One edit.

    Attributes:
        number: counted from 1.
        change: what it does.
        faces: indices of the faces.
        at: when it was made.
        user: who made it: the name of the token; None where tokens have no names.
        undone_at: when it was undone; None where it is in force.
        undone_by: who undid it.
    """

    number: int
    change: Change
    faces: tuple[int, ...]
    at: Timestamp
    user: str | None = None
    undone_at: Timestamp | None = None
    undone_by: str | None = None


class Corrections(StoredModel):
    """The corrected faces of a dataset, by what they became; their indices are sorted.

    Attributes:
        male: faces that are labelled male.
        female: faces that are labelled female.
        exclude: faces that are left out.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    male: tuple[int, ...] = ()
    female: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether no face is corrected."""
        return not (self.male or self.female or self.exclude)

    @property
    def sha256(self) -> str:
        """The hash that names them."""
        return hashlib.sha256(json_bytes(self.as_dict())).hexdigest()

    def apply(self, genders: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns labels as corrected, uint8 (N,); an excluded face keeps its own.

        Args:
            genders: uint8 (N,), indices into `shared.faces.labels.GENDERS`.
        """
        corrected = genders.copy()
        for gender, faces in enumerate((self.male, self.female)):
            corrected[list(faces)] = gender
        return corrected


class EditHistory(StoredModel):
    """`edits.json`: every edit of a dataset, in the order in which they were made."""

    schema_version: Literal[1] = Field(1, alias="schema")
    edits: tuple[Edit, ...] = ()

    @property
    def changes(self) -> int:
        """How often labels were changed so far: by edits, and by undoing them."""
        return len(self.edits) + sum(edit.undone_at is not None for edit in self.edits)

    def corrections(self, until: int | None = None) -> Corrections:
        """Returns what is in force, or what was after the first `until` changes."""
        state: dict[int, Change] = {}
        for edit in self._in_force(until):
            state.update(dict.fromkeys(edit.faces, edit.change))
        return Corrections.model_validate(
            {wanted: sorted(face for face, change in state.items() if change == wanted) for wanted in CORRECTIONS}
        )

    def _in_force(self, until: int | None) -> list[Edit]:
        if until is None:
            return [edit for edit in self.edits if edit.undone_at is None]
        at = accumulate((edit.at for edit in self.edits), max)  # in the order of their numbers, whatever clocks said
        made = [(time, False, edit.number) for time, edit in zip(at, self.edits, strict=True)]
        undone = [(edit.undone_at, True, edit.number) for edit in self.edits if edit.undone_at is not None]
        in_force: set[int] = set()
        for _, undoes, number in sorted([*made, *undone])[:until]:
            (in_force.discard if undoes else in_force.add)(number)
        return [edit for edit in self.edits if edit.number in in_force]

    def of_face(self, index: int) -> list[Edit]:
        """Returns the edits of one face, newest first."""
        return [edit for edit in reversed(self.edits) if index in edit.faces]


class Edits:
    """The edits of all datasets in a store.

    Args:
        store: where the datasets lie.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def history(self, dataset: str) -> EditHistory:
        """Returns a dataset's edits; none where nobody made any.

        Raises:
            NotFound: there is no such dataset, or it is not processed yet.
            DamagedRecord: the file cannot be read.
        """
        self._count_faces(dataset)
        return find_record(self._store, edits_key(dataset), EditHistory) or EditHistory()

    def add(self, dataset: str, change: object, faces: Iterable[int], *, user: str | None = None) -> EditHistory:
        """Makes an edit, in one atomic step, and returns all of them.

        Args:
            dataset: whose faces are edited.
            change: one of `CHANGES`.
            faces: their indices.
            user: who makes it.

        Raises:
            InvalidMessage: the change is unknown, or there is no such face.
            NotFound: there is no such dataset, or it is not processed yet.
        """
        count = self._count_faces(dataset)
        if change not in CHANGES:
            raise InvalidMessage(f"change is {short_repr(change)}; expected one of {', '.join(CHANGES)}")
        indices = tuple(sorted(set(faces)))
        if not indices:
            raise InvalidMessage("found no faces; expected the index of one or more")
        if indices[0] < 0 or indices[-1] >= count:
            wrong = indices[0] if indices[0] < 0 else indices[-1]
            raise InvalidMessage(f"found face {wrong}; expected faces from 0 to {count - 1}")

        def append(history: EditHistory | None) -> EditHistory:
            edits = history.edits if history else ()
            edit = Edit(number=len(edits) + 1, change=change, faces=indices, at=now_iso(), user=user)
            return EditHistory(edits=(*edits, edit))

        return change_record(self._store, edits_key(dataset), EditHistory, append)

    def undo(self, dataset: str, number: int | None = None, *, user: str | None = None) -> tuple[EditHistory, Edit]:
        """Undoes an edit, in one atomic step; what was edited before is in force again.

        Args:
            dataset: whose edit.
            number: of the edit; by default the newest that is in force.
            user: who undoes it.

        Returns:
            (all edits, the one that is undone).

        Raises:
            Conflict: it is undone already, or there is nothing to undo.
            NotFound: there is no such edit or dataset.
        """
        self._count_faces(dataset)
        undone = 0

        def mark(history: EditHistory | None) -> EditHistory:
            nonlocal undone
            edits = list(history.edits if history else ())
            wanted = number
            if wanted is None:
                wanted = next((edit.number for edit in reversed(edits) if edit.undone_at is None), None)
                if wanted is None:
                    raise Conflict("there is no edit to undo")
            if not 1 <= wanted <= len(edits):
                raise NotFound(f"there is no edit {wanted} of dataset {dataset[:12]}")
            if edits[wanted - 1].undone_at is not None:
                raise Conflict(f"edit {wanted} is undone already")
            edits[wanted - 1] = edits[wanted - 1].changed(undone_at=now_iso(), undone_by=user)
            undone = wanted
            return EditHistory(edits=tuple(edits))

        history = change_record(self._store, edits_key(dataset), EditHistory, mark)
        return history, history.edits[undone - 1]

    def corrections(self, dataset: str, labels: str = "") -> Corrections:
        """Returns what makes the labels that are asked for out of those of the archive.

        Args:
            dataset: its hash.
            labels: the hash of the corrections that a run was given, or `ARCHIVE_LABELS`; empty for those in force now.

        Raises:
            NotFound: there is no such dataset, it is not processed yet, or it has no corrections of that hash.
            DamagedRecord: the file cannot be read.
        """
        if labels == ARCHIVE_LABELS:
            return Corrections()
        return self.frozen(dataset, labels) if labels else self.history(dataset).corrections()

    def freeze(self, dataset: str) -> str | None:
        """Keeps a copy of the corrections in force, for a run to train on. Returns its hash; None where there are none.

        Raises:
            NotFound: there is no such dataset, or it is not processed yet.
        """
        corrections = self.history(dataset).corrections()
        if corrections.is_empty:
            return None
        self._store.create(frozen_key(dataset, corrections.sha256), json_bytes(corrections.as_dict()))
        return corrections.sha256

    def frozen(self, dataset: str, sha256: str) -> Corrections:
        """Returns the corrections that a run was given.

        Raises:
            NotFound: there are none of that hash.
            DamagedRecord: the file cannot be read.
        """
        found = find_record(self._store, frozen_key(dataset, sha256), Corrections)
        if found is None or found.sha256 != sha256:
            raise NotFound(f"dataset {dataset[:12]} has no edits {sha256[:12]}")
        return found

    def _count_faces(self, dataset: str) -> int:
        summary: Mapping[str, Any] | None = self._store.find_json(f"datasets/{dataset}/{SUMMARY_JSON}")
        if summary is None:
            raise NotFound(f"dataset {dataset[:12]} does not exist, or is not processed yet")
        return int(summary["faces"])


def edits_key(dataset: str) -> str:
    """Returns the store key of a dataset's edits."""
    return f"datasets/{dataset}/edits.json"


def frozen_key(dataset: str, sha256: str) -> str:
    """Returns the store key of the corrections that a run was given."""
    return f"datasets/{dataset}/edits/{sha256}.json"

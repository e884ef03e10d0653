"""Names, notes and tags that people give to datasets, runs, models and jobs: one file for each kind, `annotations/`.

They lie beside the records and not in them: a record belongs to the service that works on it, and a final one never
changes again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Literal, TypedDict, TypeVar, Unpack

from pydantic import Field

from shared.clock import now_iso
from shared.errors import Conflict, InvalidMessage, short_repr
from shared.records.record import (
    DamagedRecord,
    Listing,
    Record,
    StoredModel,
    Timestamp,
    change_record,
    find_record,
)
from shared.store.base import Store

Kind = Literal["dataset", "run", "model", "job"]
KINDS: Final[tuple[Kind, ...]] = ("dataset", "run", "model", "job")

NAME_LENGTH: Final = 200
NOTE_LENGTH: Final = 2000
TAG_LENGTH: Final = 40
MOST_TAGS: Final = 20
_DELETIONS_KEPT: Final = 1000

R = TypeVar("R", bound=Record)


class Annotation(StoredModel):
    """What people say of one dataset, run, model or job.

    Attributes:
        name: what it is called instead of the name that it came with; None for that one.
        note: any text.
        tags: words to find it by, in alphabetical order.
        updated: when this was changed last.
        by: the name of the access token that changed it last; None where none was asked for.
    """

    name: str | None = None
    note: str = ""
    tags: tuple[str, ...] = ()
    updated: Timestamp | None = None
    by: str | None = None


class DeletionEntry(StoredModel):
    """Something that somebody has deleted.

    Attributes:
        which: its id.
        at: when.
        by: the name of the access token that deleted it; None where none was asked for.
    """

    which: str
    at: Timestamp
    by: str | None


class _AnnotationsFile(StoredModel):
    """`annotations/runs.json` and its like.

    Attributes:
        entries: by id; what nobody has annotated is not there.
        deleted: what was deleted, newest last.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    entries: dict[str, Annotation] = Field(default_factory=dict)
    deleted: tuple[DeletionEntry, ...] = ()


class AnnotationChange(TypedDict, total=False):
    """What is to change in an annotation; whatever is left out or None stays as it is."""

    name: str | None
    """The new name; an empty one for the name that it came with."""
    note: str | None
    """The new note, any text."""
    seen_name: str
    """The name that whoever gives the new one saw, empty for none; an equal new one changes nothing."""
    seen_note: str
    """Likewise."""
    tags: Collection[str] | None
    """In place of all tags that there are."""
    add_tags: Collection[str]
    remove_tags: Collection[str]


class Annotations:
    """All annotations in a store.

    Args:
        store: where they lie.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self, kind: Kind) -> dict[str, Annotation]:
        """Returns the annotations of one kind by id; none for what nobody has annotated.

        Raises:
            DamagedRecord: their file cannot be read.
        """
        found = find_record(self._store, annotations_key(kind), _AnnotationsFile)
        return found.entries if found else {}

    def find_all(self, kind: Kind) -> tuple[dict[str, Annotation], list[DamagedRecord]]:
        """Returns the annotations of one kind, and what is wrong with their file: then none is known."""
        try:
            return self.all(kind), []
        except DamagedRecord as error:
            return {}, [error]

    def deletions(self, kind: Kind) -> tuple[DeletionEntry, ...]:
        """Returns what was deleted of one kind, newest last, or raises `DamagedRecord`."""
        found = find_record(self._store, annotations_key(kind), _AnnotationsFile)
        return found.deleted if found else ()

    def change(
        self, kind: Kind, which: str, *, user: str | None = None, **change: Unpack[AnnotationChange]
    ) -> Annotation:
        """Changes an annotation, in one atomic step, and returns it.

        Args:
            kind: of what is annotated.
            which: its id; the caller knows that it exists.
            user: who changes it.
            change: see `AnnotationChange`.

        Raises:
            InvalidMessage: name, note or tags are too long, or hold characters that cannot be shown.
            Conflict: the name or note is another than was seen; nothing is changed.
            DamagedRecord: the file cannot be read.
        """
        name, note, tags = change.get("name"), change.get("note"), change.get("tags")
        name = None if name is None else _checked_line(name, "name", NAME_LENGTH)
        note = None if note is None else _checked_note(note)
        seen_name, seen_note = change.get("seen_name"), change.get("seen_note")
        if seen_note is not None:
            seen_note = _checked_note(seen_note)  # as browsers send it, with other ends of lines
        name = None if name == seen_name else name
        note = None if note == seen_note else note
        added, removed = checked_tags(change.get("add_tags", ())), set(checked_tags(change.get("remove_tags", ())))
        wanted = None if tags is None else checked_tags(tags)

        def apply(file: _AnnotationsFile | None) -> _AnnotationsFile:
            before = file or _AnnotationsFile()
            now = before.entries.get(which, Annotation())
            _check_seen("name", name, seen_name, now.name or "", now.by)
            _check_seen("note", note, seen_note, now.note, now.by)
            kept = now.tags if wanted is None else wanted
            annotation = Annotation(
                name=now.name if name is None else name or None,
                note=now.note if note is None else note,
                tags=checked_tags([tag for tag in (*kept, *added) if tag not in removed]),
                updated=now_iso(),
                by=user,
            )
            return before.changed(entries={**before.entries, which: annotation})

        return change_record(self._store, annotations_key(kind), _AnnotationsFile, apply).entries[which]

    def record_deletion(self, kind: Kind, which: str, user: str | None) -> None:
        """Drops the annotation of something that was deleted, and keeps who has deleted it."""

        def change(file: _AnnotationsFile | None) -> _AnnotationsFile:
            before = file or _AnnotationsFile()
            entry = DeletionEntry(which=which, at=now_iso(), by=user)
            return before.changed(
                entries={key: value for key, value in before.entries.items() if key != which},
                deleted=(*before.deleted, entry)[-_DELETIONS_KEPT:],
            )

        change_record(self._store, annotations_key(kind), _AnnotationsFile, change)


def annotations_key(kind: Kind) -> str:
    """Returns the store key of the annotations of one kind."""
    return f"annotations/{kind}s.json"


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Returns tags without duplicates, in alphabetical order.

    Raises:
        InvalidMessage: there are too many, or one is empty or too long or holds a comma, which separates them.
    """
    found = sorted({_checked_line(tag, "tag", TAG_LENGTH) for tag in tags})
    for tag in found:
        if not tag or "," in tag:
            raise InvalidMessage(f"tag is {short_repr(tag)}; expected a word without commas")
    if len(found) > MOST_TAGS:
        raise InvalidMessage(f"found {len(found)} tags; expected at most {MOST_TAGS}")
    return tuple(found)


def known_tags(annotations: Mapping[str, Annotation]) -> list[str]:
    """Returns every tag that is in use, in alphabetical order."""
    return sorted({tag for annotation in annotations.values() for tag in annotation.tags})


def with_name(record: R, annotation: Annotation | None) -> R:
    """Returns a run's or job's record under the name that people gave to it, if they did."""
    return record.changed(name=annotation.name) if annotation and annotation.name else record


def select_tagged(found: Listing[R], annotations: Mapping[str, Annotation], tag: str | None = None) -> Listing[R]:
    """Returns runs or jobs under the names that people gave to them.

    Args:
        found: the records.
        annotations: of their kind.
        tag: keeps only those that have it, and damaged ones.
    """
    records = [
        with_name(record, annotations.get(record.record_id))
        for record in found.records
        if tag is None or has_tag(annotations.get(record.record_id), tag)
    ]
    return Listing(records, found.damaged, len(records))


def has_tag(annotation: Annotation | None, tag: str) -> bool:
    """Returns whether something has a tag."""
    return annotation is not None and tag in annotation.tags


def _check_seen(what: str, wanted: str | None, seen: str | None, now: str, by: str | None) -> None:
    """Raises `Conflict` where somebody else has changed a text that is to be changed."""
    if wanted is None or seen is None or now in {seen, wanted}:
        return
    whom = f" by {by}" if by else ""
    raise Conflict(f"the {what} was changed{whom} meanwhile, to “{now}”. Yours was not saved: “{wanted}”")


def _checked_line(text: str, what: str, longest: int) -> str:
    text = text.strip()
    if len(text) > longest:
        raise InvalidMessage(f"{what} has {len(text)} characters; expected at most {longest}")
    if not text.isprintable():
        raise InvalidMessage(f"{what} is {short_repr(text)}; expected characters that can be shown, on one line")
    return text


def _checked_note(text: str) -> str:
    text = text.strip().replace("\r\n", "\n")
    if len(text) > NOTE_LENGTH:
        raise InvalidMessage(f"note has {len(text)} characters; expected at most {NOTE_LENGTH}")
    if not text.replace("\n", "").replace("\t", "").isprintable():
        raise InvalidMessage("note holds control characters; expected text")
    return text

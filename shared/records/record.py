"""What the records of runs and jobs have in common: a type, a file of JSON in the store, one way to change it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from shared.broker.base import HeaderValue
from shared.clock import now_iso
from shared.errors import Conflict, GenderlineError, InvalidMessage, NotFound, short_repr
from shared.records.index import RecordIndex
from shared.store.base import Store, json_bytes

Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""A time as `shared.clock` writes it."""
QUEUED: Final = "queued"
"""The state of a run or job whose message waits in its queue."""


class StoredModel(BaseModel):
    """A record in the store, or a part of one: immutable and checked."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        validate_by_name=True,
        serialize_by_alias=True,
        json_schema_serialization_defaults_required=True,
    )

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON types, under the names that its file has."""
        return self.model_dump(mode="json")

    def changed(self, **changes: Any) -> Self:
        """Returns a copy with other values, which are checked as those of a new one are."""
        fields = type(self).model_fields.keys()
        if unknown := changes.keys() - fields:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return type(self).model_validate({name: getattr(self, name) for name in fields} | changes)


class State(StrEnum):
    """Where a run or a job stands."""

    @property
    def is_final(self) -> bool:
        """Whether the record has ended."""
        raise NotImplementedError

    @property
    def is_retryable(self) -> bool:
        """Whether the record has ended in such a way that its message may be a dead letter, and can be sent back."""
        raise NotImplementedError


class Fault(StoredModel):
    """Why a run or a job ended without success.

    Attributes:
        code: one of `shared.errors.CODES`.
        message: for people.
    """

    code: str
    message: str

    @classmethod
    def of(cls, error: GenderlineError) -> Self:
        """Returns what a record keeps of an error."""
        return cls(code=error.code, message=str(error))


class ModelRef(StoredModel):
    """Names a registered model."""

    name: str = "gender"
    version: int


class Record(StoredModel):
    """What the records of runs and jobs have in common.

    Attributes:
        message_id: of the message that asked for the work.
        name: what its sender called it.
        state: where it stands.
        created: when the record was made, ISO 8601 in UTC.
        updated: when it changed last.
        model: the model that a run made, or that a job uses.
        error: why it ended without success.
        request_sha256: of the message that asked for the work; None where that is not known.
        retried_at: when its dead letter was sent back last, as the message's header says; None where it never was.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    message_id: str
    name: str
    state: State
    created: Timestamp
    updated: Timestamp
    model: ModelRef | None = None
    error: Fault | None = None
    request_sha256: str | None = None
    retried_at: str | int | float | bool | None = None

    @property
    def record_id(self) -> str:
        """The run's or job's id."""
        raise NotImplementedError

    def is_opened_by(self, retried_at: HeaderValue | None) -> bool:
        """Returns whether its message opens it again: a failed one that was sent back, once for each time.

        Args:
            retried_at: when the message was sent back, as its header says; None where it never was.
        """
        waits = self.state.is_retryable or self.state == QUEUED
        return waits and retried_at is not None and retried_at != self.retried_at

    def require_request(self, sha256: str) -> None:
        """Makes sure that a message that came later is the one that the record was made for, or says the same.

        Args:
            sha256: `request_digest` of that message.

        Raises:
            InvalidMessage: code `conflict`: it asks for something else under the same id.
        """
        if self.request_sha256 not in {None, sha256}:
            raise InvalidMessage(
                f"message_id {short_repr(self.message_id)} belongs to another message, of {self.created}; "
                "expected an id of its own",
                code="conflict",
            )


class DamagedRecord(GenderlineError):
    """A file in the store that does not hold what it should.

    Args:
        key: of the file in the store.
        found: what is wrong with it.
        remedy: what the user can do about it.
    """

    default_code = "damaged_record"

    def __init__(self, key: str, found: str, remedy: str = "Put it back from a backup, or delete it") -> None:
        super().__init__(f"{key} in the store is damaged: {found}. {remedy}")
        self.key = key

    @property
    def record_id(self) -> str:
        """The run, job or version that the file belongs to: the name of its folder."""
        return self.key.split("/")[-2]


class RecordEnded(Conflict):
    """The record is in a final state, and stays as it is."""


N = TypeVar("N")
T = TypeVar("T", bound=StoredModel)
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """Records of one kind: all, or a page of them.

    Attributes:
        records: those that can be read, newest first.
        damaged: what is wrong with the others.
        total: how many there are on all pages.
    """

    records: list[T]
    damaged: list[DamagedRecord]
    total: int


def parse_record(data: bytes, key: str, kind: type[T]) -> T:
    """Returns the record that a file holds.

    Args:
        data: the file's content.
        key: of the file in the store, to name it.
        kind: the record's type.

    Raises:
        DamagedRecord: the content is not such a record.
    """
    if not data.strip():
        raise DamagedRecord(key, f"found {len(data)} bytes without content, expected JSON")
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise DamagedRecord(key, describe_fault(error)) from None


def describe_fault(error: ValidationError) -> str:
    """Returns the first thing that is wrong: where, what was found, and what was expected."""
    fault = error.errors(include_url=False)[0]
    where = f"{'.'.join(map(str, fault['loc']))}: " if fault["loc"] else ""
    found = "" if fault["type"] in {"missing", "json_invalid"} else f"found {short_repr(fault['input'])}: "
    return f"{where}{found}{fault['msg']}"


def find_record(store: Store, key: str, kind: type[T]) -> T | None:
    """Returns the record under a key, or None where there is none; raises `DamagedRecord`."""
    try:
        data = store.get(key)
    except NotFound:
        return None
    return parse_record(data, key, kind)


class Records(Generic[R]):
    """All records of one kind in a store.

    A list reads no more records than it returns, by `RecordIndex`.

    Args:
        store: where they lie.
    """

    noun: ClassVar[str]
    """What a record is about: `run` or `job`. It names the folder, `runs/`, and the file, `run.json`."""

    def __init__(self, store: Store, kind: type[R]) -> None:
        self._store = store
        self._kind = kind
        self._index = RecordIndex(store, f"{self.noun}s")
        self._created: dict[str, str] = {}
        """When each record was made, by its id, as the last list found it."""

    def key(self, record_id: str) -> str:
        """Returns the store key of a record's file."""
        return f"{self.noun}s/{record_id}/{self.noun}.json"

    def find(self, record_id: str) -> R | None:
        """Returns the record, or None where there is none.

        Raises:
            DamagedRecord: its file cannot be read.
        """
        return find_record(self._store, self.key(record_id), self._kind)

    def get(self, record_id: str) -> R:
        """Returns the record.

        Raises:
            NotFound: there is none.
            DamagedRecord: its file cannot be read.
        """
        return self._known(self.find(record_id), record_id)

    def all(self) -> Listing[R]:
        """Returns every record, newest first, and what is wrong with those that cannot be read."""
        return self.page()

    def page(
        self,
        limit: int | None = None,
        offset: int = 0,
        find: Callable[[str], R | None] | None = None,
        only: Container[str] | None = None,
    ) -> Listing[R]:
        """Returns some records, newest first, and what is wrong with those that cannot be read.

        Args:
            limit: the most records; None for all.
            offset: how many newer ones to pass over.
            find: returns the record of an id, in place of `self.find`.
            only: the ids that count; None for all.
        """
        find = find or self.find
        ids, undated = self._newest_first(find)
        if only is not None:
            ids = [record_id for record_id in ids if record_id in only]
        found = list_records(ids[offset:][:limit], find)
        return Listing(found.records, undated + found.damaged, len(ids))

    def newest(self, find: Callable[[str], R | None] | None = None) -> Iterator[R]:
        """Yields the records that can be read, newest first, each read only when it is asked for."""
        find = find or self.find
        for record_id in self._newest_first(find)[0]:
            yield from list_records([record_id], find).records

    def open(self, find: Callable[[str], R | None] | None = None) -> Listing[R]:
        """Returns the records that have not ended, newest first, and what is wrong with those that cannot be read."""
        find = find or self.find
        self._newest_first(find)  # completes the index
        records: list[R] = []
        damaged: list[DamagedRecord] = []
        for record_id in self._index.open_ids():
            found = list_records([record_id], find)
            damaged += found.damaged
            still_open = [record for record in found.records if not record.state.is_final]
            records += still_open
            if not still_open and not found.damaged:
                self._index.set_open(record_id, is_open=False)
        records.sort(key=lambda record: record.created, reverse=True)
        return Listing(records, damaged, len(records))

    def delete(self, record_id: str) -> None:
        """Deletes the record and everything that lies with it."""
        self._store.delete(f"{self.noun}s/{record_id}")
        self._index.remove(record_id)

    def update(self, record_id: str, **changes: Any) -> R:
        """Changes some of the record's fields, in one atomic step, and returns the whole.

        Raises:
            NotFound: there is no such record.
            RecordEnded: it is in a final state.
            DamagedRecord: its file cannot be read.
        """

        def change(record: R) -> R:
            if record.state.is_final:
                raise RecordEnded(f"{self.noun} {record_id} has ended: it is {record.state}")
            return record.changed(**changes, updated=now_iso())

        return self._change(record_id, change)

    def request_cancel(self, record_id: str) -> None:
        """Asks the owner of the work, now or later, to stop.

        Raises:
            NotFound: there is no such record.
            Conflict: it has ended already.
        """
        state = self.get(record_id).state
        if state.is_final:
            raise Conflict(f"{self.noun} {record_id} has ended: it is {state}")
        self._store.create(f"{self.noun}s/{record_id}/cancel", b"")

    def mark_requeued(self, record_id: str, retried_at: float) -> R:
        """Makes a failed or rejected record queued again, in one atomic step, and returns it.

        Its message was sent back. A request to cancel is withdrawn. What the owner of the work opened meanwhile stays
        as it is.

        Args:
            record_id: of the run or job.
            retried_at: when its message was sent back.
        """
        if self.get(record_id).state.is_retryable:
            self._withdraw_cancel(record_id)

        def change(found: R) -> R | None:
            if not found.state.is_retryable or found.retried_at == retried_at:
                return None
            return self._reopened(found).changed(state=QUEUED, updated=now_iso())

        return self._change(record_id, change)

    def reopen(self, record_id: str, retried_at: HeaderValue) -> R:
        """Opens a failed or rejected record again, in one atomic step, and returns it; any other stays as it is.

        A request to cancel is withdrawn with it. One that `mark_requeued` has made queued again is opened as well.

        Args:
            record_id: of the run or job.
            retried_at: when somebody sent its dead letter back; it is opened once for each time.
        """
        if self.get(record_id).state.is_retryable:
            self._withdraw_cancel(record_id)

        def change(record: R) -> R | None:
            if not record.is_opened_by(retried_at):
                return None
            return self._reopened(record).changed(retried_at=retried_at, updated=now_iso())

        return self._change(record_id, change)

    def _reopened(self, record: R) -> R:
        """Returns a record as its work begins with once more."""
        raise NotImplementedError

    def _withdraw_cancel(self, record_id: str) -> None:
        self._store.delete(f"{self.noun}s/{record_id}/cancel")

    def cancel_requested(self, record_id: str) -> bool:
        """Returns whether somebody asked for the work to stop."""
        return self._store.exists(f"{self.noun}s/{record_id}/cancel")

    def _create(self, record_id: str, record: R) -> bool:
        """Writes a new record. Returns False, changing nothing, where there is one already."""
        created = self._store.create(self.key(record_id), json_bytes(record.as_dict()))
        if created:
            self._index.add(record_id, record.created, is_open=not record.state.is_final)
        return created

    def _newest_first(self, find: Callable[[str], R | None]) -> tuple[list[str], list[DamagedRecord]]:
        """Returns the ids of all records, newest first, and what is wrong with those of which no time is known."""
        ids = self._store.children(f"{self.noun}s")
        created = self._created
        if any(record_id not in created for record_id in ids):
            created = self._index.created()
        damaged: list[DamagedRecord] = []
        for record_id in (record_id for record_id in ids if record_id not in created):
            found = list_records([record_id], find)
            damaged += found.damaged
            for record in found.records:
                created[record_id] = record.created
                self._index.add(record_id, record.created, is_open=not record.state.is_final)
        known = {record_id: created[record_id] for record_id in ids if record_id in created}
        self._created = known
        return sorted(known, key=lambda record_id: (known[record_id], record_id), reverse=True), damaged

    def _change(self, record_id: str, change: Callable[[R], R | None]) -> R:
        """Replaces a record by what `change` makes of it, in one atomic step; None leaves it as it is."""
        was_final = False

        def change_known(found: R | None) -> R | None:
            nonlocal was_final
            record = self._known(found, record_id)
            was_final = record.state.is_final
            return change(record)

        record = change_record(self._store, self.key(record_id), self._kind, change_known)
        if record.state.is_final != was_final:
            self._index.set_open(record_id, is_open=was_final)
        return record

    def _known(self, record: R | None, record_id: str) -> R:
        if record is None:
            raise NotFound(f"there is no {self.noun} {record_id!r}")
        return record


def change_record(store: Store, key: str, kind: type[T], change: Callable[[T | None], T | None]) -> T:
    """Replaces a record by what `change` makes of it, in one atomic step, and returns what is there then.

    Args:
        store: where it lies.
        key: of its file.
        kind: its type.
        change: given the present record, None where there is none; returns the one to write, None to write nothing. It
            may be called more than once, where another process writes meanwhile.

    Raises:
        DamagedRecord: the present file cannot be read.
        NotFound: there is no file, and `change` makes none.
    """
    result: T | None = None

    def change_file(data: bytes | None) -> bytes | None:
        nonlocal result
        before = None if data is None else parse_record(data, key, kind)
        after = change(before)
        result = after or before
        return None if after is None else json_bytes(after.as_dict())

    store.update(key, change_file)
    if result is None:
        raise NotFound(f"there is no {key} in the store")
    return result


def list_records(names: Iterable[N], find: Callable[[N], T | None]) -> Listing[T]:
    """Returns the records of some names, in their order; what has no record is passed over."""
    records: list[T] = []
    damaged: list[DamagedRecord] = []
    for name in names:
        try:
            record = find(name)
        except DamagedRecord as error:
            damaged.append(error)
        except NotFound:  # deleted meanwhile
            continue
        else:
            if record is not None:
                records.append(record)
    return Listing(records, damaged, len(records))

"""An index of records, in the names of empty objects: so that a list reads no more records than it shows.

`index/runs/created/<time>_<run_id>` says when a run was made, `index/runs/open/<run_id>` that it has not ended. The
records themselves are the truth. An entry may be missing, as those of records that an older release made, or be one too
many, where a process died between two writes: whoever lists mends what it finds.
"""

from __future__ import annotations

import contextlib

from shared.errors import GenderlineError
from shared.store.base import Store


class RecordIndex:
    """The index of one kind of record.

    Args:
        store: where it lies.
        kind: `runs` or `jobs`.
    """

    def __init__(self, store: Store, kind: str) -> None:
        self._store = store
        self._created = f"index/{kind}/created"
        self._open = f"index/{kind}/open"

    def created(self) -> dict[str, str]:
        """Returns when each record was made, by its id."""
        entries = (name.partition("_") for name in self._store.children(self._created))
        return {record_id: created for created, _, record_id in entries}

    def open_ids(self) -> list[str]:
        """Returns the ids of the records that have not ended."""
        return self._store.children(self._open)

    def add(self, record_id: str, created: str, *, is_open: bool) -> None:
        """Adds a record."""
        # In this order: a record without a time is found by the next list, and both entries are written.
        self.set_open(record_id, is_open=is_open)
        with _skipped_on_failure():
            self._store.put(f"{self._created}/{created}_{record_id}", b"")

    def set_open(self, record_id: str, *, is_open: bool) -> None:
        """Notes whether a record has not ended."""
        with _skipped_on_failure():
            if is_open:
                self._store.put(f"{self._open}/{record_id}", b"")
            else:
                self._store.delete(f"{self._open}/{record_id}")

    def remove(self, record_id: str) -> None:
        """Removes a record."""
        self.set_open(record_id, is_open=False)
        for name in self._store.children(self._created):
            if name.partition("_")[2] == record_id:
                self._store.delete(f"{self._created}/{name}")


def _skipped_on_failure() -> contextlib.suppress:
    """Lets the caller go on where an entry cannot be written: whoever lists next mends it."""
    return contextlib.suppress(GenderlineError)

"""Failures that somebody has seen: they need no attention any more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from shared.errors import Conflict
from shared.records.jobs import Job
from shared.records.runs import Run
from shared.store.base import Store

_KEY: Final = "dashboard/dismissed.json"
_KEPT: Final = 1000


def failure_key(record: Run | Job) -> str:
    """Returns what names a record's newest failure."""
    return f"{record.run_id if isinstance(record, Run) else record.job_id} {record.updated}"


def dismissed_failures(store: Store) -> frozenset[str]:
    """Returns the keys of the failures that were dismissed."""
    return frozenset((store.find_json(_KEY) or {}).get("keys", []))


def dismiss_failures(store: Store, keys: Sequence[str]) -> None:
    """Keeps failures from being named again; a record that fails once more is named anew."""

    def change(content: bytes | None) -> bytes:
        known = json.loads(content)["keys"] if content else []
        return json.dumps({"keys": [*known, *(key for key in keys if key not in known)][-_KEPT:]}).encode()

    store.update(_KEY, change)


def dismiss_failure(store: Store, record: Run | Job) -> None:
    """Dismisses the failure of a run or job.

    Raises:
        Conflict: it has not failed.
    """
    if not record.state.is_retryable:
        name = failure_key(record).split()[0]
        raise Conflict(f"{name} is {record.state}; only what failed or was rejected can be dismissed")
    dismiss_failures(store, [failure_key(record)])

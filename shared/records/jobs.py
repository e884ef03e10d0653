"""A batch job's record and results in the store, `jobs/<job_id>/`: written by the workers, read by everybody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from shared.broker.base import RETRIED_AT, HeaderValue
from shared.clock import now_iso
from shared.errors import Conflict, NotFound
from shared.store.base import STORE_SCHEME, Store

QUEUED: Final = "queued"
ACCEPTED: Final = "accepted"
FINISHED: Final = "finished"
REJECTED: Final = "rejected"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
FINAL_STATES: Final = frozenset({FINISHED, REJECTED, FAILED, CANCELLED})
UNLUCKY_STATES: Final = frozenset({REJECTED, FAILED})
"""Those in which the job's message, or one of its shards, may be a dead letter."""

_LEAST_SHARD: Final = 64
_SHARE_OF_THE_REST: Final = 4

RESULT_COLUMNS: Final = (
    "name",
    "gender",
    "probability_female",
    "confidence",
    "true_gender",
    "correct",
    "error",
)


def shard_bounds(images: int, size: int) -> list[int]:
    """Cuts a job into shards, of `size` images but for the last few, which are ever smaller.

    So all workers end at about the same time, and none waits for another's large last shard.

    Args:
        images: in the job, 0 or more.
        size: the most in a shard.

    Returns:
        Where each shard starts, and last of all where the last one ends.
    """
    bounds = [0]
    least = min(size, _LEAST_SHARD)
    while (left := images - bounds[-1]) > 0:
        bounds.append(bounds[-1] + min(left, size, max(least, left // _SHARE_OF_THE_REST)))
    return bounds


class Jobs:
    """All jobs in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, job_id: str, *, message_id: str, name: str, state: str) -> bool:
        """Writes a new job's record. Returns False, changing nothing, where the job is known already."""
        record = {
            "schema": 1,
            "job_id": job_id,
            "message_id": message_id,
            "name": name,
            "state": state,
            "created": now_iso(),
            "updated": now_iso(),
            "reply_to": None,
            "correlation_id": None,
            "model": None,
            "accepted": None,
            "images": None,
            "shards": None,
            "shard_images": None,
            "counts": None,
            "accuracy": None,
            "results": None,
            "error": None,
            "handed_out": False,
            "told": False,
        }
        return self._store.create(f"jobs/{job_id}/job.json", json.dumps(record, indent=2).encode())

    def update(self, job_id: str, **changes: Any) -> dict[str, Any]:
        """Changes some of the record's fields, in one atomic step, and returns the whole."""

        def change(record: dict[str, Any]) -> dict[str, Any]:
            return {**_known(record, job_id), **changes, "updated": now_iso()}

        return self._store.update_json(f"jobs/{job_id}/job.json", change)

    def accept(self, job_id: str, **fields: Any) -> dict[str, Any]:
        """Makes a job accepted, in one atomic step, and returns its record.

        Of several callers the first one's fields hold, so that all of the job is one thing. What has ended stays so.
        """

        def change(record: dict[str, Any]) -> dict[str, Any]:
            if _known(record, job_id)["state"] in FINAL_STATES or record["accepted"] is not None:
                return record
            now = now_iso()
            return {**record, **fields, "state": ACCEPTED, "accepted": now, "updated": now}

        return self._store.update_json(f"jobs/{job_id}/job.json", change)

    def note(self, job_id: str, **confirmed: bool) -> None:
        """Notes what the broker has confirmed: the shards as `handed_out`, the final reply as `told`.

        Who comes again to a job without such a note says it once more: harmless, and nothing is lost. The job itself
        does not change, nor does the time of its last change.
        """
        self._store.update_json(f"jobs/{job_id}/job.json", lambda record: {**_known(record, job_id), **confirmed})

    def end(self, job_id: str, state: str, **changes: Any) -> dict[str, Any] | None:
        """Ends a job, in one atomic step, and returns its record; None where it had ended before."""
        ended_here = False

        def change(record: dict[str, Any]) -> dict[str, Any]:
            nonlocal ended_here
            ended_here = _known(record, job_id)["state"] not in FINAL_STATES
            return {**record, **changes, "state": state, "updated": now_iso()} if ended_here else record

        record = self._store.update_json(f"jobs/{job_id}/job.json", change)
        return record if ended_here else None

    def reopen(self, job_id: str, retried_at: HeaderValue) -> dict[str, Any]:
        """Opens a failed or rejected job again, in one atomic step, and returns its record; any other stays as it is.

        Where it had been accepted, it is so again, with the same model and shards: rows that are there still hold.

        Args:
            job_id: the job.
            retried_at: when somebody sent its dead letter back; the job is opened once for each time.
        """

        def change(record: dict[str, Any]) -> dict[str, Any]:
            if _known(record, job_id)["state"] not in UNLUCKY_STATES or record.get(RETRIED_AT) == retried_at:
                return record
            state = QUEUED if record["accepted"] is None else ACCEPTED
            anew = {"state": state, "error": None, "handed_out": False, "told": False, RETRIED_AT: retried_at}
            return {**record, **anew, "updated": now_iso()}

        return self._store.update_json(f"jobs/{job_id}/job.json", change)

    def get(self, job_id: str) -> dict[str, Any]:
        """Returns the record, or raises `NotFound`."""
        record = self._store.find_json(f"jobs/{job_id}/job.json")
        return _known(record, job_id)

    def find(self, job_id: str) -> dict[str, Any] | None:
        """Returns the record, or None."""
        return self._store.find_json(f"jobs/{job_id}/job.json")

    def all(self) -> list[dict[str, Any]]:
        """Returns every job's record, newest first."""
        records = (self.find(job_id) for job_id in self._store.children("jobs"))
        return sorted((record for record in records if record), key=lambda record: str(record["created"]), reverse=True)

    def request_cancel(self, job_id: str) -> None:
        """Asks the workers to leave the rest of the job.

        Raises:
            NotFound: there is no such job.
            Conflict: it has ended already.
        """
        state = self.get(job_id)["state"]
        if state in FINAL_STATES:
            raise Conflict(f"job {job_id} has ended: it is {state}")
        self._store.create(f"jobs/{job_id}/cancel", b"")

    def cancel_requested(self, job_id: str) -> bool:
        """Returns whether somebody asked for the job to stop."""
        return self._store.exists(f"jobs/{job_id}/cancel")

    @staticmethod
    def archive_key(job_id: str) -> str:
        """Returns the store key of the job's archive."""
        return f"jobs/{job_id}/archive.zip"

    @staticmethod
    def part_key(job_id: str, shard: int) -> str:
        """Returns the store key of one shard's rows."""
        return f"jobs/{job_id}/parts/{shard:06d}.csv"

    @staticmethod
    def results_key(job_id: str) -> str:
        """Returns the store key of the assembled results."""
        return f"jobs/{job_id}/results.csv"

    def parts(self, job_id: str) -> list[int]:
        """Returns the shards whose rows are written, in order."""
        return [int(name.removesuffix(".csv")) for name in self._store.children(f"jobs/{job_id}/parts")]

    def progress(self, record: Mapping[str, Any]) -> tuple[int, int]:
        """Returns (images done, images in all); (0, 0) before the job was accepted."""
        images, size = record["images"] or 0, record["shard_images"] or 0
        if record["state"] == FINISHED:
            return images, images
        bounds = shard_bounds(images, size) if size else []
        return sum(bounds[shard + 1] - bounds[shard] for shard in self.parts(record["job_id"])), images

    @staticmethod
    def reply(record: Mapping[str, Any], status: str | None = None) -> dict[str, Any]:
        """Returns the body of the reply and event that tell of the job's state."""
        body = {"job_id": record["job_id"], "status": status or record["state"], "name": record["name"]}
        if record["state"] == FINISHED:
            body |= {
                "results": f"{STORE_SCHEME}{Jobs.results_key(record['job_id'])}",
                "counts": record["counts"],
                "accuracy": record["accuracy"],
                "model": record["model"],
            }
        if record["error"]:
            body["error"] = record["error"]
        return body


def _known(record: dict[str, Any] | None, job_id: str) -> dict[str, Any]:
    if not record:
        raise NotFound(f"there is no job {job_id!r}")
    return record

"""What needs a person's attention: each thing once, and not again once somebody has dismissed it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flask import url_for

from dashboard.context import Dashboard
from dashboard.pages.filters import problem
from dashboard.workers import WorkerState
from shared.broker.base import Depth
from shared.records.dismissals import dismissed_failures, failure_key
from shared.records.jobs import Job
from shared.records.record import DamagedRecord
from shared.records.registry import Aliases
from shared.records.runs import Run

NEWEST: Final = 20
"""Runs, and jobs, that are looked at: what failed before them has been overtaken."""
_LETTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Issue:
    """Something that is wrong.

    Attributes:
        text: what.
        action: what to do, as the words of a link.
        href: where.
        keys: of the records behind it; none where it cannot be dismissed, as it ends by itself.
    """

    text: str
    action: str
    href: str
    keys: tuple[str, ...] = ()


def find_issues(
    parts: Dashboard,
    runs: Sequence[Run],
    jobs: Sequence[Job],
    open_runs: Sequence[Run],
    depths: dict[str, Depth] | None,
    damaged: Iterable[DamagedRecord],
    aliases: Aliases,
) -> list[Issue]:
    """Returns everything that needs attention, the most urgent first.

    Args:
        parts: of the dashboard.
        runs: the newest, `NEWEST` of them.
        jobs: the newest, `NEWEST` of them.
        open_runs: those that have not ended.
        depths: of the queues, by short name; None while the broker is away.
        damaged: records that cannot be read.
        aliases: which versions are in use.
    """
    overview = url_for("overview.overview")
    found: list[Issue] = []
    told = [parts.broker.trouble and parts.broker.trouble.text]
    told += [worker.state.get("broker_trouble") for worker in parts.workers.states() if worker.alive]
    if depths is None and not any(told):
        told.append("The broker does not answer")
    found += [Issue(f"{trouble}.", "Check the broker", overview) for trouble in dict.fromkeys(filter(None, told))]
    alive = {str(worker.state.get("service")) for worker in parts.workers.states() if worker.alive}
    for service, queue in (("trainer", "datasets"), ("inference", "predictions"), ("inference", "jobs")):
        if depths is not None and depths[queue].ready and service not in alive:
            words = f"Messages are waiting in the queue {queue}, but no {service} service is running."
            found.append(Issue(words, f"Start one: python -m {service}", overview))
    troubled = {str(worker.state["store_trouble"]) for worker in parts.workers.states() if _has_store_trouble(worker)}
    found += [
        Issue(f"A service cannot use the store: {trouble}.", "See the services", overview) for trouble in troubled
    ]
    in_use = [version for version in (aliases.champion, aliases.previous) if version is not None]
    for version, reason in parts.refusals(in_use).items():
        role = "champion" if version == aliases.champion else "previous champion"
        words = f"Workers refuse model {version}, the {role}: {reason}."
        found.append(Issue(words, "See the model", url_for("models.show_model", version=version)))
    for run in open_runs:
        if parts.workers.abandoned(run.run_id):
            words = f"The trainer of run {run.name[:60]} does not respond. Another one continues from the checkpoint."
            found.append(Issue(words, "See the run", url_for("runs.show_run", run_id=run.run_id)))
    for damage in damaged:
        page = damage.key.split("/")[0]
        found.append(Issue(f"{damage}.", "See the list", url_for(f"{page}.list_{page}")))
    failed_runs = [run for run in runs if run.state.is_retryable]
    failed_jobs = [job for job in jobs if job.state.is_retryable]
    if depths is not None and depths["dead"].ready:
        found += _failed_messages(parts, depths["dead"].ready, [*failed_runs, *failed_jobs])
    dismissed = dismissed_failures(parts.store)
    found += _failed("Run", failed_runs, dismissed)
    found += _failed("Job", failed_jobs, dismissed)
    return found


def _has_store_trouble(worker: WorkerState) -> bool:
    return worker.alive and bool(worker.state.get("store_trouble"))


def _failed_messages(parts: Dashboard, total: int, records: Iterable[Run | Job]) -> list[Issue]:
    """Returns an issue for the failed messages of which no failed run or job tells already."""
    told = {record.message_id for record in records}
    covered = sum(letter.message.message_id in told for letter in parts.broker.dead_letters(_LETTERS))
    if (count := total - covered) <= 0:
        return []
    words = "One message" if count == 1 else f"{count:,} messages"
    return [Issue(f"{words} could not be processed.", "Retry or delete", url_for("dead.list_dead"))]


def _failed(noun: str, records: Sequence[Any], dismissed: frozenset[str]) -> list[Issue]:
    """Returns an issue for the records of one name that failed for one reason."""
    alike: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for record in records:
        if failure_key(record) not in dismissed:
            alike[record.name, str(record.state), record.error.message if record.error else ""].append(record)
    found = []
    for (name, state, _), group in alike.items():
        verb = "failed" if state == "failed" else "was rejected"
        times = f" {len(group)} times" if len(group) > 1 else ""
        words = f"{noun} {name[:60]} {verb}{times}: {problem(group[0]) or 'no reason given'}"
        lower = noun.lower()
        ids: dict[str, Any] = {f"{lower}_id": _id(group[0])}
        href = url_for(f"{lower}s.show_{lower}", **ids)
        found.append(Issue(words, f"See the {lower}", href, tuple(failure_key(record) for record in group)))
    return found


def _id(record: Run | Job) -> str:
    return record.run_id if isinstance(record, Run) else record.job_id

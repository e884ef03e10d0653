"""The verdict on a ledger: what was lost, what went astray, and how long it took to recover."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.soak.ledger import Answer, JobEnd, Ledger, Sent, SentJob, expected_answer

_TOLERANCE: Final = 2e-4
"""Two answers to different levels, or of different versions, are ten times as far apart."""
_GROWTH: Final = 1.5
"""Times the memory or the descriptors of the first third that the last third may take."""


@dataclass
class Verdict:
    """What a check found.

    Attributes:
        lost: accepted and never answered.
        misrouted: answers that belong to another request, or came to another queue.
        wrong_model: answers of another version than they name.
        duplicates: answers to what was answered before.
        errors: images that were answered by an error, though none of them is at fault.
        unended: jobs and datasets that did not end, or not once, or with other results than theirs.
        recovery_s: for each kind of fault, the seconds until something sent after it was answered.
        half_s: likewise until a second in which half as many answers come as in a median one.
        grown: what takes more and more.
        left_over: temporary files that nobody has removed.
        examples: a few of the findings.
    """

    requests: int = 0
    images: int = 0
    lost: int = 0
    misrouted: int = 0
    wrong_model: int = 0
    duplicates: int = 0
    errors: int = 0
    jobs: int = 0
    datasets: int = 0
    unended: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    half_s: dict[str, list[float]] = field(default_factory=dict)
    grown: list[str] = field(default_factory=list)
    left_over: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept. A fault may have a request answered twice, besides one in a hundred."""
        broken = self.lost + self.misrouted + self.wrong_model + self.errors + self.unended + self.left_over
        return not broken and not self.grown and self.duplicates <= self.faults.total() + self.requests / 100

    def note(self, what: str) -> None:
        """Keeps an example of a finding."""
        if len(self.examples) < 20:
            self.examples.append(what)


def check(ledger: Ledger) -> Verdict:
    """Returns the verdict on a soak that is over."""
    accepted = {sent.request_id: sent for sent in ledger.sent if sent.accepted}
    verdict = Verdict(
        requests=len(accepted),
        images=sum(len(sent.levels) for sent in accepted.values()),
        jobs=len(ledger.jobs),
        datasets=len(ledger.datasets),
        faults=Counter(fault.kind for fault in ledger.faults),
        left_over=len(ledger.left_over),
    )
    answered = _check_answers(ledger, verdict)
    for request_id in accepted.keys() - answered.keys():
        verdict.lost += 1
        verdict.note(f"lost: {accepted[request_id]}")
    for job in ledger.jobs:
        if problem := _problem_of_job(job, ledger.job_ends.get(job.job_id)):
            verdict.unended += 1
            verdict.note(f"job {job.job_id}: {problem}")
    for run_id in ledger.datasets:
        if (end := ledger.runs.get(run_id)) != ("registered", 1):
            verdict.unended += 1
            verdict.note(f"run {run_id}: found {end}, expected it registered, once")
    verdict.recovery_s = _recovery(ledger, accepted, answered)
    verdict.half_s = _half_recovery(ledger, sorted(answered.values()))
    verdict.grown = list(_grown(ledger))
    for name in ledger.left_over:
        verdict.note(f"left over: {name}")
    return verdict


def _check_answers(ledger: Ledger, verdict: Verdict) -> dict[str, float]:
    """Looks at every answer. Returns when each request was answered first."""
    known = {sent.request_id: sent for sent in ledger.sent}
    answered: dict[str, float] = {}
    for answer in sorted(ledger.answers, key=lambda answer: answer.at):
        sent = known.get(answer.request_id)
        if sent is None or answer.reply_queue != sent.reply_queue:
            verdict.misrouted += 1
            verdict.note(f"misrouted: {answer} to {sent}")
            continue
        if answer.request_id in answered:
            verdict.duplicates += 1
        answered.setdefault(answer.request_id, answer.at)
        match _judge(sent, answer):
            case "error":
                verdict.errors += 1
                verdict.note(f"error: {answer}")
            case "wrong model":
                verdict.wrong_model += 1
                verdict.note(f"another model than named: {answer} to {sent}")
            case "misrouted":
                verdict.misrouted += 1
                verdict.note(f"misrouted: {answer} to {sent}")
    return answered


def _judge(sent: Sent, answer: Answer) -> str:
    entries = answer.body.get("predictions")
    if not entries or any("error" in entry for entry in entries):
        return "error"
    named = int(answer.body["model"]["version"])
    found = [float(entry["probability_female"]) for entry in entries]
    ids = [entry["id"] for entry in entries]
    if len(found) != len(sent.levels) or ids != (list(range(len(ids))) if len(ids) > 1 else [None]):
        return "misrouted"
    if _fits(found, sent.levels, named):
        return ""
    return "wrong model" if any(_fits(found, sent.levels, named + shift) for shift in (1, 2)) else "misrouted"


def _fits(found: list[float], levels: tuple[int, ...], version: int) -> bool:
    pairs = zip(found, levels, strict=True)
    return all(abs(probability - expected_answer(version, level)) < _TOLERANCE for probability, level in pairs)


def _problem_of_job(job: SentJob, end: JobEnd | None) -> str:
    if end is None or end.state != "finished" or end.version is None:
        return f"found {end and end.state}, expected it finished"
    rows = [row for row in end.rows if row is not None]
    if len(rows) != len(end.rows) or len(rows) != len(job.levels) or not _fits(rows, job.levels, end.version):
        return f"its {len(end.rows)} rows are not those of its {len(job.levels)} images by version {end.version}"
    return ""


def _recovery(ledger: Ledger, accepted: dict[str, Sent], answered: dict[str, float]) -> dict[str, list[float]]:
    """Returns how long it took after each fault until something was answered that was sent after it."""
    times = sorted((accepted[key].at, at) for key, at in answered.items() if key in accepted)
    earliest = list(itertools.accumulate((at for _, at in reversed(times)), min))[::-1]
    found: dict[str, list[float]] = {}
    for fault in ledger.faults:
        after = bisect.bisect_right(times, (fault.at, math.inf))
        if after < len(times):
            found.setdefault(fault.kind, []).append(earliest[after] - fault.at)
    return found


def _half_recovery(ledger: Ledger, times: list[float]) -> dict[str, list[float]]:
    """Returns how long it took after each fault until answers came half as fast as in a median second of the soak."""
    half = max(1, math.ceil(statistics.median(Counter(map(int, times)).values()) / 2)) if times else 1
    starts = [at for at, last in zip(times, times[half - 1 :], strict=False) if last - at <= 1]
    found: dict[str, list[float]] = {}
    for fault in ledger.faults:
        after = bisect.bisect_left(starts, fault.at)
        if after < len(starts):
            found.setdefault(fault.kind, []).append(starts[after] - fault.at)
    return found


def _grown(ledger: Ledger) -> Iterator[str]:
    """Yields what the last third of the samples takes more of than the first."""
    third = len(ledger.samples) // 3
    if third < 3:
        return
    for name in ("memory_bytes", "descriptors"):
        first = statistics.median(getattr(sample, name) for sample in ledger.samples[third // 2 : third // 2 + third])
        last = statistics.median(getattr(sample, name) for sample in ledger.samples[-third:])
        if last > first * _GROWTH:
            yield f"{name}: {first:,.0f} → {last:,.0f}"

"""What a soak writes down: everything that was sent and accepted, every answer, and every fault."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

STEEPNESS: Final = 4.0
LEVELS: Final = tuple(range(0, 256, 4))
"""Gray levels of the images: no two give answers that are alike."""


def threshold_of(version: int) -> float:
    """Returns a version's threshold; of three in a row, no two answer alike to any level."""
    return 127.5 + 1.3 * (version % 3)


def expected_answer(version: int, level: int) -> float:
    """Returns what a version answers to an image of one gray level: both show in it."""
    return 1 / (1 + math.exp(-STEEPNESS * (level - threshold_of(version)) / 255))


@dataclass(frozen=True)
class Sent:
    """A request for predictions.

    Attributes:
        request_id: its `message_id`.
        reply_queue: where its answer belongs.
        levels: of its images, in order.
        accepted: whether the broker has confirmed it.
        at: when, in seconds of the soak.
    """

    request_id: str
    reply_queue: str
    levels: tuple[int, ...]
    accepted: bool
    at: float


@dataclass(frozen=True)
class Answer:
    """A reply, wherever it came.

    Attributes:
        request_id: the request that it says it answers.
        reply_queue: where it came.
        body: what it says.
        at: when, in seconds of the soak.
    """

    request_id: str
    reply_queue: str
    body: dict[str, Any]
    at: float


@dataclass(frozen=True)
class SentJob:
    """A job that the broker has confirmed; `levels` are those of its images, in order."""

    job_id: str
    levels: tuple[int, ...]


@dataclass(frozen=True)
class JobEnd:
    """What the store holds of a job in the end; `rows` are the probabilities in its results, None for an error."""

    state: str
    version: int | None
    rows: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Something that was done to the services, and when."""

    kind: str
    at: float


@dataclass(frozen=True)
class Sample:
    """What the inference service and its workers take at one moment."""

    at: float
    memory_bytes: int
    descriptors: int


@dataclass
class Ledger:
    """Everything that happened; written to by several threads.

    Attributes:
        runs: the state that each accepted dataset's run has in the end, and how many versions it registered.
        left_over: temporary files that were there once every service had ended.
    """

    sent: list[Sent] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    jobs: list[SentJob] = field(default_factory=list)
    job_ends: dict[str, JobEnd] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    runs: dict[str, tuple[str, int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _unanswered: set[str] = field(default_factory=set, repr=False)
    _answered: set[str] = field(default_factory=set, repr=False)
    _counted: tuple[int, int] = (0, 0)

    def waiting(self) -> int:
        """Returns how many accepted requests have no answer yet; looks only at what is new since the last call."""
        with self.lock:
            sent, answers = self._counted
            self._unanswered |= {
                request.request_id for request in self.sent[sent:] if request.accepted
            } - self._answered
            new = {answer.request_id for answer in self.answers[answers:]}
            self._unanswered -= new
            self._answered |= new
            self._counted = (len(self.sent), len(self.answers))
            return len(self._unanswered)

    def write(self, path: Path) -> None:
        """Writes it to a file, a JSON object a line, for whoever looks for the cause of a finding."""
        with self.lock, path.open("w", encoding="utf-8") as file:
            for name in ("sent", "answers", "jobs", "faults", "samples"):
                for entry in getattr(self, name):
                    file.write(json.dumps({"what": name, **asdict(entry)}) + "\n")
            ends = {key: asdict(end) for key, end in self.job_ends.items()}
            file.write(json.dumps({"what": "ends", "jobs": ends, "runs": self.runs, "left_over": self.left_over}))

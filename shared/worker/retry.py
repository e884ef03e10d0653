"""What an error means for its message, and how often is too often: decided here, and nowhere else."""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from shared.errors import GenderlineError, InvalidMessage, Retryable, internal_error

_LONGEST_PAUSE_S: Final = 30.0
_REMEMBERED: Final = 1000
"""Messages of which it is known how often they have waited: more than ever wait at the same time for their own sake."""
_SCARCE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS}
)
"""What a machine says when it has no room, or its disk fails: no bug of ours, and perhaps otherwise in a while."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wait:
    """The message comes again after a pause; that does not count as a try."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Requeue:
    """The message comes again after a pause, and that counts."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Bury:
    """The message becomes a dead letter for this reason, and its sender is told the error."""

    reason: str
    error: GenderlineError


class TooOften(GenderlineError):
    """A message, or a run, was begun so often that it is not begun again."""


class RetryPolicy:
    """Decides about messages whose work failed.

    Args:
        delivery_limit: deliveries of a message before it is a dead letter. None is no limit: for work that counts by
            itself how often it was begun since it last got on, as a training run does.
        dead_letters: counts the buried, by reason.
        first_pause_s: before a message comes again for the first time.
    """

    def __init__(self, delivery_limit: int | None, dead_letters: Counter, *, first_pause_s: float = 1.0) -> None:
        self._delivery_limit = delivery_limit
        self._first_pause_s = first_pause_s
        self._dead_letters = dead_letters
        self._waits: OrderedDict[str, int] = OrderedDict()

    def check(self, delivery_count: int) -> None:
        """Raises TooOften where a message was delivered so often that no process seems to survive it."""
        if self._delivery_limit is not None:
            refuse_too_often(delivery_count, self._delivery_limit)

    def decide(self, error: Exception, message_id: str, delivery_count: int) -> Wait | Requeue | Bury:
        """Returns what becomes of a message whose work raised `error`, and says it in the log.

        Args:
            error: what was raised; to be called while it is being handled.
            message_id: the message.
            delivery_count: how often it had been delivered before.
        """
        error = as_retryable(error)
        match error:
            case Retryable():  # as long as it takes
                pause_s = self._next_pause(message_id)
                _LOG.warning("%s; trying again in %g s", error, pause_s)
                return Wait(pause_s)
            case TooOften():
                _LOG.error("%s", error)
                return Bury("delivery_limit", error)
            case InvalidMessage():
                return Bury(error.code, error)
            case GenderlineError():
                _LOG.error("%s: %s", error.code, error)
                return Bury(error.code, error)
        _LOG.error("a bug, at delivery %d of the message", delivery_count + 1, exc_info=error)
        return Requeue(self._first_pause_s) if delivery_count == 0 else Bury("internal", internal_error())

    def note_buried(self, queue: str, reason: str) -> None:
        """Counts a dead letter."""
        _LOG.warning("dead letter from %s: %s", queue, reason)
        self._dead_letters.labels(reason).inc()

    def _next_pause(self, message_id: str) -> float:
        """Returns how long a message waits: twice as long each time, up to a bound."""
        waits = self._waits.pop(message_id, 0)
        self._waits[message_id] = waits + 1
        if len(self._waits) > _REMEMBERED:
            self._waits.popitem(last=False)
        return min(_LONGEST_PAUSE_S, self._first_pause_s * 2.0 ** min(waits, 10))


def refuse_too_often(count: int, limit: int) -> None:
    """Raises TooOften where something was begun `limit` times or more without getting on."""
    if count >= limit:
        raise TooOften(f"given up after {count} deliveries", code="internal")


def as_retryable(error: Exception) -> Exception:
    """Returns the error, or a retryable one in the place of what is no bug of ours."""
    if isinstance(error, OSError) and error.errno in _SCARCE:
        return Retryable(f"this machine cannot go on: {error.strerror}")
    return error

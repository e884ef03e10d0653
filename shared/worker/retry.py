"""What becomes of a message whose work failed: the one place where the error tree turns into acts."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from prometheus_client import Counter

from shared.broker.base import Consumer, Delivery, Outgoing
from shared.errors import GenderlineError, InvalidMessage, Retryable
from shared.worker.attempts import UNRECORDED, Attempts

_LONGEST_PAUSE_S: Final = 30.0
_NO_RECORD_PAUSE_S: Final = 5.0
"""Before a message comes again whose attempt, or whose end, could not be recorded."""
_SCARCE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS}
)
"""What a machine says when it has no room, or its disk fails: no bug of ours, and perhaps otherwise in a while."""
_LOG = logging.getLogger(__name__)


class FailurePolicy:
    """Buries, retries or gives up a delivery as its error demands.

    Args:
        delivery_limit: deliveries of one message before it is a dead letter.
        dead_letters: counts the buried, by code.
        attempts: where attempts are recorded; None where delivery counts are attempts: where messages come one at a
            time, and are worked on at once.
    """

    def __init__(self, delivery_limit: int, dead_letters: Counter, attempts: Attempts | None = None) -> None:
        self._delivery_limit = delivery_limit
        self._dead_letters = dead_letters
        self._attempts = attempts
        # That it came before is no proof that it was tried: with a record, the last attempt is always a recorded one.
        self._too_often = delivery_limit if attempts is None else max(delivery_limit, UNRECORDED + 1)

    def begin(self, consumer: Consumer, delivery: Delivery) -> Delivery | None:
        """Notes that a delivery that came before is about to be worked on, alone.

        Returns:
            The delivery, its count now how often it was worked on before; None where that cannot be known for now, and
            the message, which nobody has tried, will come again later.
        """
        if self._attempts is None or not delivery.delivery_count:
            return delivery
        try:
            return replace(delivery, delivery_count=self._attempts.begin(delivery))
        except Retryable as error:
            _LOG.warning("%s; trying again in %g s", error, _NO_RECORD_PAUSE_S)
            consumer.defer(delivery, _NO_RECORD_PAUSE_S)
            return None

    def end(self, delivery: Delivery) -> None:
        """Notes that the work on a delivery is over, and that nobody died of it."""
        if self._attempts is not None:
            self._attempts.end(delivery)

    def exhausted(self, delivery: Delivery) -> bool:
        """Returns whether a message came so often that it must not be worked on again: it may kill its worker."""
        return delivery.delivery_count >= self._too_often

    def bury_exhausted(
        self, consumer: Consumer, delivery: Delivery, replies: Callable[[GenderlineError], Sequence[Outgoing]]
    ) -> None:
        """Buries a message that was delivered too often without being settled; later, where `handle` would wait."""
        error = Retryable(f"given up after {delivery.delivery_count} deliveries", code="internal")
        self._bury(consumer, delivery, "delivery_limit", error, replies)

    def handle(
        self,
        consumer: Consumer,
        delivery: Delivery,
        error: Exception,
        replies: Callable[[GenderlineError], Sequence[Outgoing]],
    ) -> bool:
        """Decides about a delivery whose work raised `error`, which is being handled right now.

        Args:
            consumer: where the delivery came from.
            delivery: the message.
            error: what its work raised.
            replies: records the end and makes the error replies; called only where this is the end of the message.
                Where that fails, of a damaged record for one, it is logged, and there are none; where the store is
                away, the end has to wait for it.

        Returns:
            Whether it was the end: False where the message will be delivered again.
        """
        error = _judged(error)
        if isinstance(error, Retryable):
            if delivery.delivery_count + 1 < self._delivery_limit:
                pause_s = min(_LONGEST_PAUSE_S, 2.0**delivery.delivery_count)
                _LOG.warning("%s; trying again in %g s", error, pause_s)
                consumer.requeue(delivery, pause_s)
                return False
            return self._bury(consumer, delivery, "delivery_limit", error, replies)
        if isinstance(error, GenderlineError):
            if not isinstance(error, InvalidMessage):
                _LOG.error("%s: %s", error.code, error)
            return self._bury(consumer, delivery, error.code, error, replies)
        _LOG.error("a bug, at delivery %d of the message", delivery.delivery_count + 1, exc_info=error)
        if delivery.delivery_count == 0:
            consumer.requeue(delivery, 1.0)
            return False
        return self._bury(consumer, delivery, "internal", internal_error(), replies)

    def _bury(
        self,
        consumer: Consumer,
        delivery: Delivery,
        reason: str,
        error: GenderlineError,
        replies: Callable[[GenderlineError], Sequence[Outgoing]],
    ) -> bool:
        """Buries a delivery with its error replies. Returns False where it has to wait for that."""
        try:
            outgoing = _made(replies, error)
        except Retryable as away:
            _LOG.warning("how it ended cannot be recorded: %s; trying again in %g s", away, _NO_RECORD_PAUSE_S)
            consumer.defer(delivery, _NO_RECORD_PAUSE_S)
            return False
        _LOG.warning("dead letter from %s: %s", delivery.queue, reason)
        self._dead_letters.labels(reason).inc()
        consumer.dead_letter(delivery, reason, outgoing)
        self.end(delivery)
        return True


def _judged(error: Exception) -> Exception:
    """Returns the error, or a retryable one in the place of what is no bug of ours."""
    if isinstance(error, OSError) and error.errno in _SCARCE:
        return Retryable(f"this machine cannot go on: {error.strerror}")
    return error


def _made(replies: Callable[[GenderlineError], Sequence[Outgoing]], error: GenderlineError) -> Sequence[Outgoing]:
    """Returns the error replies; none where they cannot be made: that must not keep a message from its end."""
    try:
        return replies(error)
    except Exception as failure:
        judged = _judged(failure)
        if isinstance(judged, Retryable):
            raise judged from failure
        _LOG.exception("what is buried now gets no reply")
        return ()


def internal_error() -> GenderlineError:
    """Returns what a client is told of a bug: nothing but that there is one."""
    return GenderlineError("internal error; the service's log has the details", code="internal")

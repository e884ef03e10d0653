"""The interactive loop: messages of the predictions queue in, replies out."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inference.model.champion import Models
from inference.model.loader import ServedModel
from inference.model.predictor import Outcome, Predictor, grouped
from inference.monitoring.recent_predictions import RecentPredictions
from inference.monitoring.throughput import ThroughputMeter
from inference.turns import Turns
from shared.broker.base import Broker, BrokerError, Consumer, Delivery, Outgoing
from shared.errors import GenderlineError, Retryable
from shared.messages import (
    PredictionRequest,
    json_reply,
    parse_prediction,
    prediction,
    prediction_error,
    prediction_reply,
)
from shared.telemetry.metrics import InferenceMetrics
from shared.worker.retry import FailurePolicy

_LOG = logging.getLogger(__name__)
_WAIT_S = 0.5
_LATELY_S = 1.0
"""For so long after an answer, more messages are expected."""
_TRIALS_S = 1.0
"""For so long after a message that came before, more of them are expected: what was held comes again together, though
among what is new, and not each of them shall wait for another shard to end."""
_AT_ONCE_S = 0.001
"""A `receive` that returns sooner has found messages waiting: they come faster than they are answered."""


@dataclass(frozen=True, slots=True)
class _Taken:
    delivery: Delivery
    request: PredictionRequest
    taken_at: float  # monotonic clock


class InteractiveLoop:
    """Serves predictions until told to stop, and then what it holds.

    What one `receive` gives is one batch or a few. Where it finds some single images waiting, but no full batch, and
    messages cost the broker less together than one by one, the loop lets a few more come: whatever waits is then
    answered sooner. An image that comes alone is answered at once.

    Args:
        broker: where messages come from.
        models: which model to use.
        predictor: decodes and predicts.
        policy: what becomes of messages that fail.
        metrics: told of waits and latencies.
        throughput: told of images and latencies, for the heartbeat.
        recent_predictions: told of answers, likewise.
        turns: keeps work on jobs away from messages that came before.
        prefetch: messages held at once.
        batch_size: images handled together.
        batch_delay_s: how long it lets more come.
        on_idle: told when the loop begins and when it ends to wait for messages.
    """

    def __init__(
        self,
        broker: Broker,
        models: Models,
        predictor: Predictor,
        policy: FailurePolicy,
        metrics: InferenceMetrics,
        throughput: ThroughputMeter,
        recent_predictions: RecentPredictions,
        turns: Turns,
        *,
        prefetch: int,
        batch_size: int,
        batch_delay_s: float,
        on_idle: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._models = models
        self._predictor = predictor
        self._policy = policy
        self._metrics = metrics
        self._throughput = throughput
        self._recent_predictions = recent_predictions
        self._turns = turns
        self._prefetch = prefetch
        self._batch_size = batch_size
        self._batch_delay_s = batch_delay_s
        self._on_idle = on_idle
        self._answered_at = -math.inf  # monotonic clock
        self._tried_at = -math.inf  # likewise

    @property
    def lately(self) -> bool:
        """Whether it has answered anything within the last second."""
        return time.monotonic() - self._answered_at < _LATELY_S

    def run(self, stop: threading.Event) -> None:
        """Takes nothing before there is a model: messages wait in the broker, where any worker can have them."""
        while not stop.is_set() and not self._models.wait_for_champion(_WAIT_S):
            pass
        while not stop.is_set():
            # What a failing broker left unsettled is given back by closing the consumer, and comes again.
            try:
                with self._broker.consume([self._broker.topology.predictions], self._prefetch) as consumer:
                    careful = False
                    while not stop.is_set():
                        careful = self._handle(consumer, self._take(consumer, careful=careful))
                    consumer.flush()
            except Retryable as error:
                _LOG.warning("what is at hand will come again: %s", error)
                stop.wait(_WAIT_S)
            finally:
                self._turns.end_trials()

    def _take(self, consumer: Consumer, *, careful: bool) -> list[Delivery]:
        self._on_idle(True)
        asked = time.monotonic()
        deliveries = consumer.receive(1 if careful else self._batch_size, _WAIT_S)
        waiting = time.monotonic() - asked < _AT_ONCE_S
        self._on_idle(False)
        may_gather = self._broker.prefers_batches and waiting and not careful
        if not may_gather or not 1 < len(deliveries) < self._batch_size or _any_pack(deliveries):
            return deliveries
        time.sleep(self._batch_delay_s)  # and not in `receive`, which every message that comes would wake
        return deliveries + consumer.receive(self._batch_size - len(deliveries), 0)

    def _handle(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> bool:
        """Answers messages. Returns whether the next ones are better taken one by one.

        A message that came before goes alone, with nothing else at hand: if it is what kills workers, no other is
        counted as tried again, and in the end buried, with it.
        """
        for delivery in deliveries:
            if (waited := delivery.waited_s()) is not None:
                self._metrics.queue_wait.observe(waited)
        suspects = [delivery for delivery in deliveries if delivery.delivery_count]
        others = [delivery for delivery in deliveries if not delivery.delivery_count]
        taken = self._parsed(consumer, others)
        self._answer_all(consumer, grouped(taken, lambda t: len(t.request.images), self._batch_size))
        if suspects:
            # The last of them is tried: what came before it is acknowledged together.
            *others_alike, suspect = suspects
            for delivery in others_alike:
                consumer.defer(delivery, 0)
            consumer.flush()
            self._turns.begin_trials()
            self._handle_alone(consumer, suspect)
            self._tried_at = time.monotonic()
        elif time.monotonic() - self._tried_at > _TRIALS_S:
            self._turns.end_trials()
        return bool(suspects)

    def _handle_alone(self, consumer: Consumer, suspect: Delivery) -> None:
        """Answers a message that came before."""
        delivery = self._policy.begin(consumer, suspect)
        if delivery is None:
            return
        if self._policy.exhausted(delivery):
            self._policy.bury_exhausted(consumer, delivery, _error_reply(delivery))
            return
        self._answer_all(consumer, [[item] for item in self._parsed(consumer, [delivery])])

    def _parsed(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> list[_Taken]:
        """Returns the deliveries that can be read; the others are dealt with."""
        taken: list[_Taken] = []
        now = time.monotonic()
        for delivery in deliveries:
            try:
                taken.append(_Taken(delivery, parse_prediction(delivery.message), now))
            except Exception as error:
                self._policy.handle(consumer, delivery, error, _error_reply(delivery))
        return taken

    def _answer_all(self, consumer: Consumer, groups: Iterable[list[_Taken]]) -> None:
        for group in groups:
            try:
                self._answer(consumer, group)
            except BrokerError:
                raise
            except Exception as error:
                if len(group) == 1:
                    self._fail(consumer, group[0], error)
                    continue
                # One of them is at fault; which one shows when each is on its own.
                for item in group:
                    try:
                        self._answer(consumer, [item])
                    except BrokerError:
                        raise
                    except Exception as own_error:
                        self._fail(consumer, item, own_error)

    def _fail(self, consumer: Consumer, item: _Taken, error: Exception) -> None:
        if self._policy.handle(consumer, item.delivery, error, _error_reply(item.delivery)):
            self._metrics.predictions.labels("failed").inc(len(item.request.images))

    def _answer(self, consumer: Consumer, group: Sequence[_Taken]) -> None:
        """Predicts a group of messages and settles them together."""
        champion = self._models.champion
        assert champion is not None  # noqa: S101 - the loop starts with a champion and none is ever taken away
        replies: list[Outgoing] = []
        answered: list[tuple[int, list[dict[str, Any]]]] = []
        expired = 0
        alike: dict[tuple[int, bool], list[_Taken]] = {}
        loaded: dict[int, ServedModel] = {champion.version: champion}
        for item in group:
            if item.request.deadline is not None and item.request.deadline < time.time():
                replies += _expired_reply(item, champion)
                expired += len(item.request.ids)
                continue
            version = champion.version if item.request.model_version is None else item.request.model_version
            if version not in loaded:
                loaded[version] = self._models.get(version)
            alike.setdefault((version, item.request.probe), []).append(item)
        for (version, probe), items in alike.items():
            model = loaded[version]
            identity = model.identity
            images = [data for item in items for data in item.request.images]
            outcomes = iter(self._predictor.predict(model, images, probe=probe))
            for item in items:
                entries = [_entry(key, next(outcomes)) for key in item.request.ids]
                replies += prediction_reply(item.delivery, identity, entries)
                if not probe:
                    answered.append((version, entries))
        consumer.settle([item.delivery for item in group], replies)
        if group[0].delivery.delivery_count:  # then it is alone, and has outlived its work
            self._policy.end(group[0].delivery)
        if expired:
            self._metrics.predictions.labels("expired").inc(expired)
        done = self._answered_at = time.monotonic()
        for item in group:
            self._metrics.latency.observe(done - item.taken_at)
            self._throughput.add(len(item.request.images), done - item.taken_at)
        for version, entries in answered:
            self._recent_predictions.add(version, entries)


def _any_pack(deliveries: Sequence[Delivery]) -> bool:
    return any(not delivery.message.content_type.startswith("image/") for delivery in deliveries)


def _expired_reply(item: _Taken, champion: ServedModel) -> list[Outgoing]:
    error = GenderlineError("the deadline had passed before the image was computed", code="expired")
    entries = [prediction_error(key, error) for key in item.request.ids]
    return prediction_reply(item.delivery, champion.identity, entries)


def _entry(key: str | int | None, outcome: Outcome) -> dict[str, Any]:
    return prediction(key, outcome) if isinstance(outcome, float) else prediction_error(key, outcome)


def _error_reply(delivery: Delivery) -> Callable[[GenderlineError], list[Outgoing]]:
    """Returns what makes the error reply, should this be the end of the message."""
    return lambda error: json_reply(delivery, {"error": error.as_dict()})

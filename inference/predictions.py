"""The predictions queue: images in, replies out."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from inference.model.champion import Models
from inference.model.loader import ServedModel
from inference.model.predictor import Predictor, Result
from inference.monitoring.recent_predictions import RecentPredictions
from inference.monitoring.throughput import ThroughputMeter
from shared.broker.base import Message, Outgoing
from shared.errors import GenderlineError, InvalidMessage
from shared.messages import (
    PredictionRequest,
    json_reply,
    parse_prediction,
    prediction,
    prediction_error,
    prediction_reply,
)
from shared.telemetry.metrics import InferenceMetrics
from shared.worker.loop import Context, Done, Handler

_RECENTLY_S = 1.0
"""For so long after an answer, more messages are expected."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and what its reply needs to know of its message."""

    message: Message
    request: PredictionRequest
    parsed_at: float  # monotonic clock


class PredictionHandler(Handler[_Asked]):
    """Answers requests for predictions, of several messages in one run of the model.

    Args:
        models: which model to use; there is a champion before anything is handled.
        predictor: decodes and predicts.
        metrics: told of latencies and of what failed or expired.
        throughput: told of images and latencies, for the heartbeat.
        recent_predictions: told of answers, for the heartbeat.
    """

    def __init__(
        self,
        models: Models,
        predictor: Predictor,
        metrics: InferenceMetrics,
        throughput: ThroughputMeter,
        recent_predictions: RecentPredictions,
    ) -> None:
        self._models = models
        self._predictor = predictor
        self._metrics = metrics
        self._throughput = throughput
        self._recent_predictions = recent_predictions
        self._answered_at = -math.inf  # monotonic clock

    @property
    def active_recently(self) -> bool:
        """Whether it has answered anything within the last second."""
        return time.monotonic() - self._answered_at < _RECENTLY_S

    def parse(self, message: Message) -> _Asked:
        return _Asked(message, parse_prediction(message), time.monotonic())

    def size_of(self, request: _Asked) -> int:
        return len(request.request.images)

    def handle(self, requests: Sequence[_Asked], context: Context) -> Sequence[Done]:  # noqa: ARG002
        champion = self._models.champion
        assert champion is not None  # noqa: S101 - none is ever taken away
        now = time.time()
        replies: dict[int, list[Outgoing]] = {}
        together: dict[tuple[int, bool], list[int]] = {}
        models = {champion.version: champion}
        for index, asked in enumerate(requests):
            request = asked.request
            if request.deadline is not None and request.deadline < now:
                replies[index] = _expired(asked, champion)
                self._metrics.predictions.labels("expired").inc(len(request.ids))
                continue
            version = champion.version if request.model_version is None else request.model_version
            if version not in models:
                models[version] = self._models.get(version)
            together.setdefault((version, request.probe), []).append(index)
        for (version, probe), indices in together.items():
            images = [image for index in indices for image in requests[index].request.images]
            owners = [index for index in indices for _ in requests[index].request.images]
            results = iter(self._predictor.predict(models[version], images, owners, probe=probe))
            for index in indices:
                asked = requests[index]
                entries = list(_entries(asked, results))
                replies[index] = prediction_reply(asked.message, models[version].identity, entries)
                if not probe:
                    self._recent_predictions.add(version, entries)
        self._answered_at = time.monotonic()
        for asked in requests:
            latency_s = self._answered_at - asked.parsed_at
            self._metrics.latency.observe(latency_s)
            self._throughput.add(len(asked.request.images), latency_s)
        return [Done(replies[index]) for index in range(len(requests))]

    def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
        with contextlib.suppress(InvalidMessage):
            self._metrics.predictions.labels("failed").inc(len(parse_prediction(message).images))
        return json_reply(message, {"error": error.as_dict()})


def _entries(asked: _Asked, results: Iterator[Result]) -> Iterator[dict[str, Any]]:
    """Yields the entries of a reply, of the next results."""
    for key in asked.request.ids:
        result = next(results)
        yield prediction(key, result) if isinstance(result, float) else prediction_error(key, result)


def _expired(asked: _Asked, champion: ServedModel) -> list[Outgoing]:
    error = GenderlineError("the deadline had passed before the image was computed", code="expired")
    entries = [prediction_error(key, error) for key in asked.request.ids]
    return prediction_reply(asked.message, champion.identity, entries)

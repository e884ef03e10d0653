"""The predictions queue: images in, replies out."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
from shared.worker.loop import Context, Defer, Done, Handler, Outcome

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
        self._is_loading_put_off = False

    @property
    def active_recently(self) -> bool:
        """Whether it has answered anything within the last second."""
        return time.monotonic() - self._answered_at < _RECENTLY_S

    def parse(self, message: Message) -> _Asked:
        return _Asked(message, parse_prediction(message), time.monotonic())

    def size_of(self, request: _Asked) -> int:
        return len(request.request.images)

    def handle(self, requests: Sequence[_Asked], context: Context) -> Sequence[Outcome]:  # noqa: ARG002
        champion = self._models.champion
        assert champion is not None  # noqa: S101 - none is ever taken away
        models = self._load(requests, champion)
        now = time.time()  # not before: loading takes a while
        outcomes: dict[int, Outcome] = {}
        together: dict[tuple[int, bool], list[int]] = {}
        for index, asked in enumerate(requests):
            version = _version(asked, champion)
            if _is_expired(asked, now):
                outcomes[index] = Done(_expired(asked, champion))
            elif version in models:
                together.setdefault((version, asked.request.probe), []).append(index)
            else:
                outcomes[index] = Defer(0)
        answers: dict[int, list[Result]] = {}
        for (version, probe), indices in together.items():
            images = [image for index in indices for image in requests[index].request.images]
            owners = [index for index in indices for _ in requests[index].request.images]
            results = iter(self._predictor.predict(models[version], images, owners, probe=probe))
            for index in indices:
                answers[index] = list(itertools.islice(results, len(requests[index].request.images)))
        self._answered_at = time.monotonic()
        for index, asked in enumerate(requests):  # only now, since after an error each is handled again by itself
            if index in answers:
                outcomes[index] = Done(self._answer(asked, models[_version(asked, champion)], answers[index]))
            elif isinstance(outcomes[index], Done) and not asked.request.probe:
                self._metrics.predictions.labels("expired").inc(len(asked.request.ids))
        return [outcomes[index] for index in range(len(requests))]

    def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
        with contextlib.suppress(InvalidMessage):
            request = parse_prediction(message)
            if not request.probe:
                self._metrics.predictions.labels("failed").inc(len(request.images))
        return json_reply(message, {"error": error.as_dict()})

    def _load(self, requests: Sequence[_Asked], champion: ServedModel) -> dict[int, ServedModel]:
        """Returns models by version: all that requests are for, or at first only those that are loaded.

        A load may take long, above all while the store is away, and no request is answered meanwhile. So requests for
        loaded models come first. Every other batch loads the missing models too, so that their requests do not starve.
        """
        now = time.time()
        wanted = {_version(asked, champion) for asked in requests if not _is_expired(asked, now)}
        found = {version: self._models.loaded(version) for version in wanted - {champion.version}}
        models = {champion.version: champion} | {version: model for version, model in found.items() if model}
        missing = wanted - models.keys()
        if not missing:
            return models
        self._is_loading_put_off = len(missing) < len(wanted) and not self._is_loading_put_off
        if not self._is_loading_put_off:
            models |= {version: self._models.get(version) for version in missing}
        return models

    def _answer(self, asked: _Asked, model: ServedModel, results: Sequence[Result]) -> list[Outgoing]:
        """Returns the reply, and counts it unless its images only test the model."""
        entries = [
            prediction(key, result) if isinstance(result, float) else prediction_error(key, result)
            for key, result in zip(asked.request.ids, results, strict=True)
        ]
        if not asked.request.probe:
            latency_s = self._answered_at - asked.parsed_at
            self._predictor.count(results)
            self._metrics.latency.observe(latency_s)
            self._throughput.add(len(results), latency_s)
            self._recent_predictions.add(model.version, entries)
        return prediction_reply(asked.message, model.identity, entries)


def _version(asked: _Asked, champion: ServedModel) -> int:
    """Returns the version that a request is for."""
    pinned = asked.request.model_version
    return champion.version if pinned is None else pinned


def _is_expired(asked: _Asked, now: float) -> bool:
    deadline = asked.request.deadline
    return deadline is not None and deadline < now


def _expired(asked: _Asked, champion: ServedModel) -> list[Outgoing]:
    error = GenderlineError("the deadline had passed before the image was computed", code="expired")
    entries = [prediction_error(key, error) for key in asked.request.ids]
    return prediction_reply(asked.message, champion.identity, entries)

"""From requests to batches and back: arrays and bytes in, predictions out; no broker here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.model.loader import ServedModel
from shared.errors import GenderlineError, InvalidImage, InvalidModel
from shared.faces.decode import SIZE, ImageLimits, decode_face
from shared.telemetry.metrics import InferenceMetrics

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
Outcome = float | GenderlineError
"""One image's probability of *female*, or why it has none."""


def grouped(items: Iterable[T], size_of: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yields consecutive items in groups whose sizes add up to `limit` at the most; a larger item stands alone."""
    group: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


Observer = Callable[[ServedModel, NDArray[np.uint8], Sequence[float]], None]
"""Told of each run of a model: the model, the faces, uint8 (N, 128, 128), and their probabilities of *female*."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """Decodes images and runs the model on them, batch by batch.

    Args:
        limits: bounds on each image.
        batch_size: the most images in one run.
        metrics: told of times, sizes and outcomes.
        pool: decodes in parallel; None decodes in the calling thread, which is best where every core has a process
            of its own.
        observers: told of each run, before there is a reply: they must not take long.
    """

    limits: ImageLimits
    batch_size: int
    metrics: InferenceMetrics
    pool: Executor | None = None
    observers: Sequence[Observer] = ()

    def predict(self, model: ServedModel, images: Sequence[bytes], *, probe: bool = False) -> list[Outcome]:
        """Returns an outcome an image, in order; a broken image costs only its own.

        Args:
            model: the model, the same for all of them.
            images: encoded images.
            probe: whether they are a test of the model, of which no observer is told, nor the counts of genders.
        """
        outcomes: list[Outcome] = []
        for start in range(0, len(images), self.batch_size):
            outcomes += self._batch(model, images[start : start + self.batch_size], probe=probe)
        self._count(outcomes, probe=probe)
        return outcomes

    def _batch(self, model: ServedModel, images: Sequence[bytes], *, probe: bool) -> list[Outcome]:
        started = time.perf_counter()
        faces = np.empty((len(images), SIZE, SIZE), np.uint8)
        decode = self.pool.map if self.pool is not None and len(images) > 1 else map
        outcomes: list[Outcome] = []
        good: list[int] = []
        for index, decoded in enumerate(decode(self._decoded, images)):
            if isinstance(decoded, InvalidImage):
                outcomes.append(decoded)
            else:
                faces[len(good)] = decoded
                good.append(index)
                outcomes.append(0.0)
        self.metrics.decode.observe(time.perf_counter() - started)
        if good:
            started = time.perf_counter()
            faces = faces[: len(good)]
            probabilities = model.predict(faces).tolist()
            self.metrics.model_run.observe(time.perf_counter() - started)
            self.metrics.batch_size.observe(len(good))
            for index, probability in zip(good, probabilities, strict=True):
                outcomes[index] = probability if math.isfinite(probability) else _no_number(model)
            if not probe:
                self._tell(model, faces, probabilities)
        return outcomes

    def _tell(self, model: ServedModel, faces: NDArray[np.uint8], probabilities: Sequence[float]) -> None:
        for observe in self.observers:
            try:
                observe(model, faces, probabilities)
            except Exception:  # replies never suffer from who watches
                _LOG.exception("an observer of the predictions failed")

    def _decoded(self, data: bytes) -> NDArray[np.uint8] | InvalidImage:
        try:
            return decode_face(data, self.limits).pixels
        except InvalidImage as error:
            return error

    def _count(self, outcomes: Sequence[Outcome], *, probe: bool) -> None:
        probabilities = [outcome for outcome in outcomes if isinstance(outcome, float)]
        female = sum(probability >= 0.5 for probability in probabilities)
        for gender, count in (("female", female), ("male", len(probabilities) - female)):
            if count and not probe:
                self.metrics.predicted_gender.labels(gender).inc(count)
        invalid = sum(isinstance(outcome, InvalidImage) for outcome in outcomes)
        failed = len(outcomes) - len(probabilities) - invalid
        for outcome, count in (("ok", len(probabilities)), ("invalid", invalid), ("failed", failed)):
            if count:
                self.metrics.predictions.labels(outcome).inc(count)


def _no_number(model: ServedModel) -> InvalidModel:
    return InvalidModel(f"version {model.version} found no probability for this image")

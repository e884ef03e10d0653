"""From encoded images to probabilities, batch by batch; the one image that a model fails on is found out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.model.decoder import Decoder
from inference.model.loader import ServedModel
from shared.errors import GenderlineError, InvalidImage, InvalidModel, internal_error
from shared.faces.decode import SIZE
from shared.telemetry.metrics import InferenceMetrics

_LOG = logging.getLogger(__name__)
Result = float | GenderlineError
"""One image's probability of *female*, or why it has none."""


Observer = Callable[[ServedModel, NDArray[np.uint8], Sequence[float]], None]
"""Told of each run of a model: the model, the faces, uint8 (N, 128, 128), and their probabilities of *female*."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """Decodes images and runs the model on them, batch by batch.

    Args:
        decoder: decodes the images.
        batch_size: the most images in one run.
        metrics: told of times, sizes and outcomes.
        observers: told of each run, before there is a reply: they must not take long.
    """

    decoder: Decoder
    batch_size: int
    metrics: InferenceMetrics
    observers: Sequence[Observer] = ()

    def predict(
        self,
        model: ServedModel,
        images: Sequence[bytes],
        owners: Sequence[int] | None = None,
        *,
        probe: bool = False,
    ) -> list[Result]:
        """Returns a result an image, in order; an image that is broken, or that we fail on, costs only its own.

        Args:
            model: the model, the same for all of them.
            images: encoded images.
            owners: as for `Decoder.decode`.
            probe: whether they are a test of the model, of which no observer is told.

        Raises:
            Exception: the model fails on any image.
        """
        results: list[Result] = []
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            results += self._batch(model, images[batch], owners and owners[batch], probe=probe)
        return results

    def count(self, results: Sequence[Result]) -> None:
        """Counts outcomes and genders, once it is certain that the results are answered and not computed anew."""
        probabilities = [result for result in results if isinstance(result, float)]
        female = sum(probability >= 0.5 for probability in probabilities)
        for gender, count in (("female", female), ("male", len(probabilities) - female)):
            if count:
                self.metrics.predicted_gender.labels(gender).inc(count)
        invalid = sum(isinstance(result, InvalidImage) for result in results)
        failed = len(results) - len(probabilities) - invalid
        for outcome, count in (("ok", len(probabilities)), ("invalid", invalid), ("failed", failed)):
            if count:
                self.metrics.predictions.labels(outcome).inc(count)

    def _batch(
        self, model: ServedModel, images: Sequence[bytes], owners: Sequence[int] | None, *, probe: bool
    ) -> list[Result]:
        started = time.perf_counter()
        decoded = self.decoder.decode(images, owners)
        self.metrics.decode.observe(time.perf_counter() - started)
        faces = np.empty((len(images), SIZE, SIZE), np.uint8)
        good = 0
        for face in decoded:
            if isinstance(face, np.ndarray):
                faces[good] = face
                good += 1
        answers = iter(self._run(model, faces[:good], probe=probe) if good else ())
        return [next(answers) if isinstance(face, np.ndarray) else face for face in decoded]

    def _run(self, model: ServedModel, faces: NDArray[np.uint8], *, probe: bool) -> list[Result]:
        started = time.perf_counter()
        try:
            probabilities: list[float] = model.predict(faces).tolist()
        except Exception:
            return _run_singly(model, faces)
        self.metrics.model_run.observe(time.perf_counter() - started)
        self.metrics.batch_size.observe(len(faces))
        if not probe:
            self._tell(model, faces, probabilities)
        return [_checked(model, probability) for probability in probabilities]

    def _tell(self, model: ServedModel, faces: NDArray[np.uint8], probabilities: Sequence[float]) -> None:
        for observe in self.observers:
            try:
                observe(model, faces, probabilities)
            except Exception:  # replies never suffer from who watches
                _LOG.exception("an observer of the predictions failed")


def _run_singly(model: ServedModel, faces: NDArray[np.uint8]) -> list[Result]:
    """Returns a result a face, where the model has failed on all of them together.

    Raises:
        Exception: the model fails on a plain gray face too: none of these is at fault.
    """
    model.predict(np.full((1, SIZE, SIZE), 128, np.uint8))
    results: list[Result] = []
    for face in faces:
        try:
            results.append(_checked(model, float(model.predict(face[None])[0])))
        except Exception:
            _LOG.exception("a bug: version %d fails on one face", model.version)
            results.append(internal_error())
    return results


def _checked(model: ServedModel, probability: float) -> Result:
    if math.isfinite(probability):
        return probability
    return InvalidModel(f"version {model.version} found no probability for this image")

"""Drift: whether the images that come, and what the model says to them, still look like those it was made from.

The measure is the population stability index (N. Siddiqi, *Credit Risk Scorecards*, Wiley 2006, chapter 6): with the
shares p of the training data and q of the present in the same bins, the sum of (q - p) ln(q / p). By convention below
0.1 is no drift to speak of, 0.1 to 0.25 is some, and more wants a look. Chance alone adds about (bins - 1) (1/n + 1/m)
for n images of the training data and m in the window (B. Yurdakul, *Statistical Properties of Population Stability
Index*, 2018), which is why there is no score before both are large enough.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from inference.model.loader import ServedModel
from shared.faces.decode import luma_stats
from shared.records.model_card import CONTRAST_RANGE, LUMA_RANGE, ModelCard
from shared.telemetry.metrics import InferenceMetrics

BLOCK_IMAGES: Final = 256
"""The window slides by this many images: scores are worked out once in so many, not with every batch."""
WINDOW_BLOCKS: Final = 16
MIN_IMAGES: Final = 2 * BLOCK_IMAGES
MIN_REFERENCE: Final = 100
"""Fewer faces of the training data are nothing to hold a stream against."""
_GROUPS: Final = 10
_ONE_IN: Final = 4
"""Of a batch, once the window is full: of all that is done beside decoding and the model, measuring takes longest."""


def stability_index(expected: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Returns the population stability index of two histograms over the same bins.

    Half a count is added to each bin, so that an empty one gives a large number and not infinity.

    Args:
        expected: counts, int64 (bins,).
        found: counts, int64 (bins,).
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())


class Drift:
    """Compares the last `WINDOW_BLOCKS * BLOCK_IMAGES` images that it measured with the champion's card. Thread-safe.

    Measured are those that the champion answered: all of them until there are so many, then one in four of each batch.

    The signals are `luma` and `contrast` (mean and standard deviation of an image's luma), held against the training
    faces, and `predicted_female` and `confidence`, held against the held-out ones. A model that takes over starts with
    an empty window, as its answers are held against its own card.

    Args:
        metrics: told of the scores.
        champion: returns the model that serves; answers of others are left out.
    """

    def __init__(self, metrics: InferenceMetrics, champion: Callable[[], ServedModel | None]) -> None:
        self._metrics = metrics
        self._champion = champion
        self._lock = threading.Lock()
        self._version: int | None = None
        self._signals: dict[str, _Signal] = {}
        self._light: list[tuple[float, float]] = []
        self._probabilities: list[float] = []
        self._scores: dict[str, float] = {}
        self._images = 0

    def observe(self, model: ServedModel, faces: NDArray[np.uint8], probabilities: Sequence[float]) -> None:
        """Takes note of a batch; some 2 µs a measured image.

        Args:
            model: who answered.
            faces: uint8 (N, 128, 128), luma.
            probabilities: of *female*, one a face.
        """
        if model is not self._champion():
            return
        step = _ONE_IN if self._images >= WINDOW_BLOCKS * BLOCK_IMAGES else 1
        measured = [luma_stats(face) for face in faces[::step]]
        with self._lock:
            if model.version != self._version:
                self._start(model)
            self._light += measured
            self._probabilities += probabilities[::step]
            if len(self._probabilities) >= BLOCK_IMAGES:
                self._close_block()

    def summary(self) -> dict[str, Any]:
        """Returns, for the heartbeat, the images in the window and each signal's score, where there is one yet."""
        champion = self._champion()
        with self._lock:
            if champion is not None and champion.version != self._version:  # and no image has come since it took over
                self._start(champion)
            return {"images": self._images, "scores": {name: round(score, 4) for name, score in self._scores.items()}}

    def _start(self, model: ServedModel) -> None:
        self._version = model.version
        self._signals = _signals(model.card)
        self._light, self._probabilities, self._images = [], [], 0
        for name in self._scores:
            self._metrics.drift.labels(name).set(0)
        self._scores = {}
        self._metrics.drift_images.set(0)

    def _close_block(self) -> None:
        luma, contrast = np.array(self._light).T
        probability = np.array(self._probabilities)
        probability = probability[np.isfinite(probability)]
        values = {
            "luma": luma,
            "contrast": contrast,
            "predicted_female": probability,
            "confidence": np.maximum(probability, 1 - probability),
        }
        self._light, self._probabilities = [], []
        for name, signal in self._signals.items():
            signal.add(values[name])
            self._images = signal.images
            if signal.images >= MIN_IMAGES:
                self._scores[name] = score = signal.score()
                self._metrics.drift.labels(name).set(score)
        self._metrics.drift_images.set(self._images)


@dataclass(frozen=True, slots=True)
class _Signal:
    """A histogram of the training data, and the same of the window.

    Attributes:
        edges: of the bins, float64 (bins + 1,); what lies beyond counts in the outer ones.
        expected: counts of the training data, int64 (bins,).
        window: counts of each block, int64 (bins,), and its images.
    """

    edges: NDArray[np.float64]
    expected: NDArray[np.int64]
    window: deque[tuple[NDArray[np.int64], int]]

    @classmethod
    def of(cls, histogram: Sequence[int], low: float, high: float) -> Self | None:
        """Returns the signal for a histogram of equal bins over a range; None where it has too little to say.

        Neighbouring bins are joined to at most ten of about equal counts: bins that hardly a face was in would make the
        index jump at a few images.
        """
        counts = np.array(histogram, np.int64)
        if counts.sum() < MIN_REFERENCE:
            return None
        middle = (np.cumsum(counts) - counts / 2) / counts.sum()
        group = np.minimum((middle * _GROUPS).astype(np.int64), _GROUPS - 1)
        first = np.flatnonzero(np.diff(group, prepend=-1))
        if len(first) < 2:
            return None
        edges = np.append(np.linspace(low, high, len(counts) + 1)[first], high)
        return cls(edges, np.add.reduceat(counts, first), deque(maxlen=WINDOW_BLOCKS))

    @property
    def images(self) -> int:
        return sum(count for _, count in self.window)

    def add(self, values: NDArray[np.float64]) -> None:
        bins = np.searchsorted(self.edges[1:-1], values, side="right")
        self.window.append((np.bincount(bins, minlength=len(self.expected)), len(values)))

    def score(self) -> float:
        return stability_index(self.expected, np.sum([counts for counts, _ in self.window], axis=0))


def _signals(card: ModelCard) -> dict[str, _Signal]:
    """Returns the signals that a card has the data for."""
    histogram = card.evaluation.histogram
    half = len(histogram) // 2
    male, female = histogram[:half], histogram[half:]
    found = {
        "luma": _Signal.of(card.inputs.luma_histogram, *LUMA_RANGE),
        "contrast": _Signal.of(card.inputs.contrast_histogram, *CONTRAST_RANGE),
        "predicted_female": _Signal.of([sum(male), sum(female)], 0, 1),
        "confidence": _Signal.of([m + f for m, f in zip(reversed(male), female, strict=True)], 0.5, 1),
    }
    return {name: signal for name, signal in found.items() if signal is not None}

"""What more faces would be worth: the balanced accuracy of a classifier that has learned from ever more of them.

Both genders count alike, as they do for the promotion gate.
"""

from __future__ import annotations

import math
import statistics
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.records.evaluation import LearningCurve, LearningPoint
from trainer.release.features import build_classifier

PARTS: Final = (8, 4, 2, 1)
"""The training faces are cut into so many parts, each of which is learned from by itself."""
LEAST_FACES: Final = 40
"""Of a part; from fewer, chance says more than the faces."""
MOST_FACES: Final = 20_000
"""What is looked at of many training faces: there the curve is flat, and more would only take longer."""


def measure_learning_curve(
    features: NDArray[np.float32], labels: NDArray[np.uint8], train: NDArray[np.intp], test: NDArray[np.intp]
) -> LearningCurve | None:
    """Measures the balanced accuracy on held-out faces by the number of faces that a classifier has learned from.

    The network itself would have to be trained once more for each point, so it is a logistic regression on the
    starter's features that learns here. The gain is the slope of the least-squares line through the points, over the
    logarithm of the faces.

    Args:
        features: of all faces, float32 (N, width), from `embed_faces`.
        labels: of all faces, (N,), 1 for female.
        train: indices of the training faces.
        test: indices of the held-out faces, 1 or more.

    Returns:
        None where there are too few training faces for two points.
    """
    shuffled = np.random.default_rng(0).permutation(train)[:MOST_FACES]
    points = []
    for parts in PARTS:
        if len(shuffled) // parts < LEAST_FACES:
            continue
        accuracies = [
            _balanced_accuracy(
                labels[test], build_classifier(labels[train]).fit(features[part], labels[part]).predict(features[test])
            )
            for part in np.array_split(shuffled, parts)
            if len(np.unique(labels[part])) > 1
        ]
        if accuracies:
            points.append(LearningPoint(faces=len(shuffled) // parts, accuracy=statistics.mean(accuracies)))
    if len(points) < 2:
        return None
    line = statistics.linear_regression(
        [math.log2(point.faces) for point in points], [point.accuracy for point in points]
    )
    return LearningCurve(points=tuple(points), gain=line.slope)


def _balanced_accuracy(labels: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> float:
    return statistics.mean(float(np.mean(predicted[labels == gender] == gender)) for gender in np.unique(labels))

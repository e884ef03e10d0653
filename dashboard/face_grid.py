"""Faces of a dataset: choosing some of them, and what a page says of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from werkzeug.datastructures import MultiDict

from dashboard.store_cache import Dataset
from shared.faces.labels import ETHNICITIES, GENDERS, UNKNOWN
from shared.records.dataset import AGE_BANDS, SPLITS

SORTS: Final = {
    "order": "In archive order",
    "wrong": "Most wrong first",
    "unsure": "Least sure first",
    "sure": "Surest first",
    "age": "Youngest first",
}


@dataclass(frozen=True, slots=True)
class FaceFilter:
    """Which faces to show; an empty text or None leaves that open.

    Attributes:
        gender: the true label.
        predicted: what the model says.
        ethnicity: of `shared.faces.labels.ETHNICITIES`.
        age: of `shared.records.dataset.AGE_BANDS`.
        split: of `shared.records.dataset.SPLITS`.
        result: `right` or `wrong`.
        low: lowest confidence.
        high: highest confidence.
        search: a part of the name, in any case.
        sort: a key of `SORTS`.
    """

    gender: str = ""
    predicted: str = ""
    ethnicity: str = ""
    age: str = ""
    split: str = ""
    result: str = ""
    low: float | None = None
    high: float | None = None
    search: str = ""
    sort: str = "order"

    @classmethod
    def from_query(cls, query: MultiDict[str, str]) -> FaceFilter:
        """Reads a page's query; what makes no sense is left open."""

        def one_of(name: str, known: tuple[str, ...]) -> str:
            value = query.get(name, "")
            return value if value in known else ""

        return cls(
            gender=one_of("gender", GENDERS),
            predicted=one_of("predicted", GENDERS),
            ethnicity=one_of("ethnicity", ETHNICITIES),
            age=one_of("age", AGE_BANDS),
            split=one_of("split", SPLITS),
            result=one_of("result", ("right", "wrong")),
            low=query.get("low", None, float),
            high=query.get("high", None, float),
            search=query.get("search", "").strip()[:200],
            sort=one_of("sort", tuple(SORTS)) or "order",
        )


def select_faces(data: Dataset, probabilities: NDArray[np.float32] | None, wanted: FaceFilter) -> NDArray[np.intp]:
    """Returns the indices of the faces that fit, in the wanted order.

    Args:
        data: the dataset.
        probabilities: float32 (N,), of female; without them, filters on predictions are passed over.
        wanted: which ones.
    """
    fits = np.ones(len(data), bool)
    if wanted.gender:
        fits &= data.gender == GENDERS.index(wanted.gender)
    if wanted.ethnicity:
        fits &= data.ethnicity == ETHNICITIES.index(wanted.ethnicity)
    if wanted.split:
        fits &= data.split == SPLITS.index(wanted.split)
    if wanted.age:
        band = AGE_BANDS.index(wanted.age)
        fits &= np.minimum(data.age // 10, len(AGE_BANDS) - 1) == band
    if wanted.search:
        needle = wanted.search.casefold()
        fits &= np.fromiter((needle in name.casefold() for name in data.names), bool, len(data))
    if probabilities is None:
        found = np.flatnonzero(fits)
        return found[np.argsort(data.age[found], kind="stable")] if wanted.sort == "age" else found
    female = probabilities >= 0.5
    confidence = np.where(female, probabilities, 1.0 - probabilities)
    right = female == (data.gender == 1)
    if wanted.predicted:
        fits &= female == bool(GENDERS.index(wanted.predicted))
    if wanted.result:
        fits &= right if wanted.result == "right" else ~right
    if wanted.low is not None:
        fits &= confidence >= wanted.low
    if wanted.high is not None:
        fits &= confidence <= wanted.high
    found = np.flatnonzero(fits)
    keys = {
        "wrong": np.where(right, confidence, -confidence),
        "unsure": confidence,
        "sure": -confidence,
        "age": data.age,
    }
    if wanted.sort in keys:
        found = found[np.argsort(keys[wanted.sort][found], kind="stable")]
    return found


def face_view(data: Dataset, probabilities: NDArray[np.float32] | None, index: int) -> dict[str, Any]:
    """Returns what a page says of one face."""
    view: dict[str, Any] = {
        "sha256": data.sha256,
        "index": index,
        "name": data.names[index],
        "age": int(data.age[index]) if data.age[index] != UNKNOWN else None,
        "gender": GENDERS[data.gender[index]],
        "ethnicity": ETHNICITIES[data.ethnicity[index]] if data.ethnicity[index] != UNKNOWN else None,
        "split": SPLITS[data.split[index]],
        "width": int(data.sizes[index][0]),
        "height": int(data.sizes[index][1]),
        "predicted": None,
    }
    if probabilities is not None:
        p = float(probabilities[index])
        view["predicted"] = GENDERS[p >= 0.5]
        view["probability_female"] = p
        view["confidence"] = max(p, 1 - p)
        view["right"] = view["predicted"] == view["gender"]
    return view


def encode_png(face: NDArray[np.uint8]) -> bytes:
    """Returns uint8 (H, W) as a PNG file: without loss, so that it can be predicted as it is."""
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(face), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return encoded.tobytes()

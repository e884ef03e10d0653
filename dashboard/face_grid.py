"""Faces of a dataset: selecting some of them, and what a page says of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from werkzeug.datastructures import MultiDict

from dashboard.store_cache import Dataset
from shared.faces.labels import ETHNICITIES, GENDERS, UNKNOWN
from shared.records.dataset import AGE_BANDS, SPLITS
from shared.records.predictions import THRESHOLD, predict_female

SORTS: Final = {
    "archive": "Archive order",
    "largest_error": "Largest error",
    "least_confident": "Least confident",
    "most_confident": "Most confident",
    "youngest": "Youngest",
}
RESULTS: Final = ("correct", "wrong")
AGREEMENTS: Final = {
    "both_correct": "both correct",
    "only_first": "only the first model correct",
    "only_second": "only the second model correct",
    "both_wrong": "both wrong",
}
"""The four cells of two models on the same faces: the filter's `version` is the first, its `other` the second."""


@dataclass(frozen=True, slots=True)
class FaceFilter:
    """Which faces to show; an empty text or None leaves that open. It stands in the address of every page with faces.

    Attributes:
        version: the model whose predictions count.
        other: a second model to compare it with.
        agreement: a key of `AGREEMENTS`: which of the two are correct.
        gender: the label.
        predicted: the model's prediction.
        ethnicity: of `shared.faces.labels.ETHNICITIES`.
        age: of `shared.records.dataset.AGE_BANDS`.
        split: of `shared.records.dataset.SPLITS`.
        result: `correct` or `wrong`.
        low: lowest confidence.
        high: highest confidence.
        threshold: the probability from which a face is predicted female.
        search: a part of the file name, in any case.
        sort: a key of `SORTS`.
    """

    version: int | None = None
    other: int | None = None
    agreement: str = ""
    gender: str = ""
    predicted: str = ""
    ethnicity: str = ""
    age: str = ""
    split: str = ""
    result: str = ""
    low: float | None = None
    high: float | None = None
    threshold: float = THRESHOLD
    search: str = ""
    sort: str = "archive"

    @classmethod
    def from_query(cls, query: MultiDict[str, str]) -> FaceFilter:
        """Reads a page's query; what makes no sense is left open."""

        def one_of(name: str, known: tuple[str, ...]) -> str:
            value = query.get(name, "")
            return value if value in known else ""

        return cls(
            version=query.get("version", None, int),
            other=query.get("other", None, int),
            agreement=one_of("agreement", tuple(AGREEMENTS)),
            gender=one_of("gender", GENDERS),
            predicted=one_of("predicted", GENDERS),
            ethnicity=one_of("ethnicity", ETHNICITIES),
            age=one_of("age", AGE_BANDS),
            split=one_of("split", SPLITS),
            result=one_of("result", RESULTS),
            low=query.get("low", None, float),
            high=query.get("high", None, float),
            threshold=read_threshold(query),
            search=query.get("search", "").strip()[:200],
            sort=one_of("sort", tuple(SORTS)) or "archive",
        )

    def with_version(self, version: int | None) -> FaceFilter:
        """Returns the same filter over another model's predictions."""
        return replace(self, version=version)

    def as_query(self) -> dict[str, Any]:
        """Returns the query of an address that shows the same faces: only what differs from the defaults."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}

    @property
    def is_open(self) -> bool:
        """Whether every face fits."""
        return not self.as_query().keys() - {"version", "other", "threshold", "sort"}


def read_threshold(query: MultiDict[str, str]) -> float:
    """Returns the decision threshold that an address names, from 0 to 1; 1/2 where it names none."""
    threshold = query.get("threshold", THRESHOLD, float)
    return threshold if 0 <= threshold <= 1 else THRESHOLD


def select_faces(
    data: Dataset,
    probabilities: NDArray[np.float32] | None,
    wanted: FaceFilter,
    others: NDArray[np.float32] | None = None,
) -> NDArray[np.intp]:
    """Returns the indices of the faces that fit, in the wanted order.

    Args:
        data: the dataset.
        probabilities: float32 (N,), of female; without them, filters on predictions are passed over.
        wanted: which ones.
        others: float32 (N,), of female by the filter's `other` model; without them, `agreement` is passed over.
    """
    fits = np.ones(len(data), bool)
    if wanted.gender:
        fits &= data.gender == GENDERS.index(wanted.gender)
    if wanted.ethnicity:
        fits &= data.ethnicity == ETHNICITIES.index(wanted.ethnicity)
    if wanted.split:
        fits &= data.split == SPLITS.index(wanted.split)
    if wanted.age:
        fits &= age_band_indices(data) == AGE_BANDS.index(wanted.age)
    if wanted.search:
        needle = wanted.search.casefold()
        fits &= np.fromiter((needle in name.casefold() for name in data.names), bool, len(data))
    if probabilities is None:
        found = np.flatnonzero(fits)
        return found[np.argsort(data.age[found], kind="stable")] if wanted.sort == "youngest" else found
    female = predict_female(probabilities, wanted.threshold)
    confidence = np.where(female, probabilities, 1.0 - probabilities)
    correct = female == (data.gender == 1)
    if wanted.predicted:
        fits &= female == bool(GENDERS.index(wanted.predicted))
    if wanted.result:
        fits &= correct if wanted.result == "correct" else ~correct
    if wanted.agreement and others is not None:
        other_correct = predict_female(others, wanted.threshold) == (data.gender == 1)
        fits &= correct == (wanted.agreement in {"both_correct", "only_first"})
        fits &= other_correct == (wanted.agreement in {"both_correct", "only_second"})
    if wanted.low is not None:
        fits &= confidence >= wanted.low
    if wanted.high is not None:
        fits &= confidence <= wanted.high
    found = np.flatnonzero(fits)
    keys = {
        "largest_error": np.where(correct, confidence, -confidence),
        "least_confident": confidence,
        "most_confident": -confidence,
        "youngest": data.age,
    }
    if wanted.sort in keys:
        found = found[np.argsort(keys[wanted.sort][found], kind="stable")]
    return found


def age_band_indices(data: Dataset) -> NDArray[np.intp]:
    """Returns (N,), each face's index into `shared.records.dataset.AGE_BANDS`."""
    return np.minimum(data.age // 10, len(AGE_BANDS) - 1).astype(np.intp)


def face_view(
    data: Dataset, probabilities: NDArray[np.float32] | None, index: int, threshold: float = THRESHOLD
) -> dict[str, Any]:
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
        female = bool(predict_female(probabilities[index : index + 1], threshold)[0])
        view["predicted"] = GENDERS[female]
        view["probability_female"] = p
        view["confidence"] = p if female else 1 - p
        view["correct"] = view["predicted"] == view["gender"]
    return view


def encode_png(face: NDArray[np.uint8]) -> bytes:
    """Returns uint8 (H, W) as a PNG file: without loss, so that it can be predicted as it is."""
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(face), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return encoded.tobytes()

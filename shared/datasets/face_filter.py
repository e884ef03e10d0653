"""Faces of a dataset: selecting some of them, and what a page says of each."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.datasets.columns import EDITED, EXCLUDED, Dataset
from shared.errors import InvalidMessage, short_repr
from shared.faces.labels import ETHNICITIES, GENDERS, UNKNOWN
from shared.measures.labels import ALL_FACES
from shared.records.dataset import AGE_BANDS, SPLITS
from shared.records.predictions import THRESHOLD, predict_female

SORTS: Final = {
    "archive": "Archive order",
    "suspects": "Suspected label errors",
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
MODELS: Final = ("agree", "disagree")
"""Whether these two models predict the same."""
CONFIDENCE_BANDS: Final = ("0-60", "60-70", "70-80", "80-90", "90-95", "95-100")
"""In percent; the upper end belongs to the next band."""
_BAND_EDGES: Final = np.array([0.6, 0.7, 0.8, 0.9, 0.95], np.float32)
DUPLICATES: Final = ("near-duplicates", "others")
_CHOICES: Final[Mapping[str, Collection[str]]] = {
    "agreement": AGREEMENTS,
    "models": MODELS,
    "gender": GENDERS,
    "predicted": GENDERS,
    "ethnicity": ETHNICITIES,
    "age": AGE_BANDS,
    "split": (*SPLITS, ALL_FACES),
    "result": RESULTS,
    "confidence": CONFIDENCE_BANDS,
    "duplicates": DUPLICATES,
    "edited": EDITED,
    "sort": SORTS,
}
"""The values of those fields of `FaceFilter` that take no others."""
_ABOUT_PREDICTIONS: Final = ("predicted", "result", "confidence", "low", "high")
_PLAIN_SORTS: Final = ("archive", "youngest")
"""Orders for which no model need have predicted the faces."""
_N = TypeVar("_N", int, float)


@dataclass(frozen=True, slots=True)
class FaceFilter:
    """Which faces to show; an empty text or None leaves that open. It stands in the address of every page with faces.

    Attributes:
        version: the model whose predictions count.
        other: a second model to compare it with.
        agreement: a key of `AGREEMENTS`: which of the two are correct.
        models: of `MODELS`: whether the two predict the same.
        gender: the label.
        predicted: the model's prediction.
        ethnicity: of `shared.faces.labels.ETHNICITIES`.
        age: of `shared.records.dataset.AGE_BANDS`.
        split: of `shared.records.dataset.SPLITS`, or `ALL_FACES` for those in any, which no edit left out.
        result: `correct` or `wrong`.
        confidence: of `CONFIDENCE_BANDS`.
        duplicates: of `DUPLICATES`: whether another face looks the same.
        edited: of `shared.datasets.columns.EDITED`.
        labels: `archive` for the labels of the archive, the hash of the edits that correct them, or empty for the edits
            that are in force.
        low: lowest confidence.
        high: highest confidence.
        threshold: the probability from which a face is predicted female.
        search: a part of the file name, in any case.
        sort: a key of `SORTS`.
    """

    version: int | None = None
    other: int | None = None
    agreement: str = ""
    models: str = ""
    gender: str = ""
    predicted: str = ""
    ethnicity: str = ""
    age: str = ""
    split: str = ""
    result: str = ""
    confidence: str = ""
    duplicates: str = ""
    edited: str = ""
    labels: str = ""
    low: float | None = None
    high: float | None = None
    threshold: float = THRESHOLD
    search: str = ""
    sort: str = "archive"

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> FaceFilter:
        """Reads a page's query; what makes no sense is left open."""
        values: dict[str, Any] = {name: query[name] for name, known in _CHOICES.items() if query.get(name) in known}
        values |= {name: _number(query.get(name, ""), int) for name in ("version", "other")}
        values |= {name: _number(query.get(name, ""), float) for name in ("low", "high")}
        return cls(
            **values,
            labels=query.get("labels", "")[:64],
            threshold=read_threshold(query),
            search=query.get("search", "").strip()[:200],
        )

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> FaceFilter:
        """Reads what a person wrote.

        Raises:
            InvalidMessage: there is no such property, or it does not take the value.
        """
        found = cls.from_query(given)
        for name, text in given.items():
            if name not in cls.__dataclass_fields__:
                raise InvalidMessage(f"found {short_repr(name)}; expected one of {', '.join(cls.__dataclass_fields__)}")
            if name in _CHOICES and text not in _CHOICES[name]:
                raise InvalidMessage(f"{name} is {short_repr(text)}; expected one of {', '.join(_CHOICES[name])}")
            if name in {"version", "other", "low", "high", "threshold"} and (
                _number(text, float) is None or getattr(found, name) != _number(text, float)
            ):
                raise InvalidMessage(f"{name} is {short_repr(text)}; expected a number that fits")
        return found

    def with_version(self, version: int | None) -> FaceFilter:
        """Returns the same filter over another model's predictions."""
        return replace(self, version=version)

    def as_query(self) -> dict[str, Any]:
        """Returns the query of an address that shows the same faces: only what differs from the defaults."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}

    def without(self, names: Iterable[str]) -> FaceFilter:
        """Returns the same filter with some of its fields as they are by default."""
        defaults = FaceFilter()
        return replace(self, **{name: getattr(defaults, name) for name in names})

    @property
    def about_predictions(self) -> list[str]:
        """The fields that ask for what a model says of a face."""
        asked = [name for name in _ABOUT_PREDICTIONS if getattr(self, name) not in ("", None)]
        return asked if self.sort in _PLAIN_SORTS else [*asked, "sort"]

    @property
    def about_two_models(self) -> list[str]:
        """The fields that ask for what two models say of a face."""
        return [name for name in ("agreement", "models") if getattr(self, name)]

    @property
    def is_open(self) -> bool:
        """Whether every face fits."""
        return not self.as_query().keys() - {"version", "other", "threshold", "sort", "labels"}


def read_threshold(query: Mapping[str, str]) -> float:
    """Returns the decision threshold that an address names, from 0 to 1; 1/2 where it names none."""
    threshold = _number(query.get("threshold", ""), float)
    return threshold if threshold is not None and 0 <= threshold <= 1 else THRESHOLD


def _number(text: str, kind: Callable[[str], _N]) -> _N | None:
    try:
        return kind(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Column:
    """A property of faces that a filter can choose by.

    Attributes:
        field: of `FaceFilter`.
        title: for people.
        values: that the field takes.
        codes: (N,), each face's index into `values`; any other number where it has none of them.
    """

    field: str
    title: str
    values: tuple[str, ...]
    codes: NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Facet:
    """A property of the faces that fit, and how many there are of each value.

    Attributes:
        field: of `FaceFilter`.
        title: for people.
        chosen: the value that the filter names; empty where it leaves that open.
        counts: by value: the faces that fit all of the filter but this field.
    """

    field: str
    title: str
    chosen: str
    counts: dict[str, int]


def select_faces(
    data: Dataset,
    probabilities: NDArray[np.float32] | None,
    wanted: FaceFilter,
    others: NDArray[np.float32] | None = None,
    out_of_fold: NDArray[np.float32] | None = None,
) -> NDArray[np.intp]:
    """Returns the indices of the faces that fit, in the wanted order.

    Args:
        data: the dataset.
        probabilities: float32 (N,), of female; without them, filters on predictions are passed over.
        wanted: which ones.
        others: float32 (N,), of female by the filter's `other` model; without them, `agreement` and `models` are passed
            over.
        out_of_fold: float32 (N,), as `probabilities`, but each by weights that have not learned from that face; without
            them, suspects are ranked by `probabilities`.
    """
    missed = np.zeros(len(data), np.uint8)
    columns = list_columns(data, probabilities, wanted, others)
    for fits in _conditions(data, probabilities, wanted, columns).values():
        missed += ~fits
    found = np.flatnonzero(missed == 0)
    keys: dict[str, Callable[[], NDArray[Any]]] = {
        "youngest": lambda: np.where(data.age == UNKNOWN, np.iinfo(data.age.dtype).max, data.age),  # those unknown last
    }
    if probabilities is not None:
        confidence, correct = _judge(data, probabilities, wanted.threshold)
        suspicion = probabilities if out_of_fold is None else out_of_fold
        keys |= {
            "largest_error": lambda: np.where(correct, confidence, -confidence),
            "least_confident": lambda: confidence,
            "most_confident": lambda: -confidence,
            # A face that somebody has looked at is none any more.
            "suspects": lambda: self_confidence(data.gender, suspicion) + (data.edits > 0),
        }
    if wanted.sort in keys:
        found = found[np.argsort(keys[wanted.sort]()[found], kind="stable")]
    return found


def count_facets(
    data: Dataset,
    probabilities: NDArray[np.float32] | None,
    wanted: FaceFilter,
    others: NDArray[np.float32] | None = None,
) -> list[Facet]:
    """Returns how many faces there would be of each value, were the filter to name it; arguments of `select_faces`."""
    columns = list_columns(data, probabilities, wanted, others)
    conditions = _conditions(data, probabilities, wanted, columns)
    missed = np.zeros(len(data), np.uint8)
    for fits in conditions.values():
        missed += ~fits
    facets = []
    for column in columns:
        own = conditions.get(column.field)
        fits = missed == 0 if own is None else missed == ~own
        codes = column.codes[fits]
        known = codes[(codes >= 0) & (codes < len(column.values))]
        counts = np.bincount(known, minlength=len(column.values)).tolist()
        chosen = getattr(wanted, column.field)
        by_value = dict(zip(column.values, counts, strict=True))
        if chosen == ALL_FACES:
            by_value[ALL_FACES] = sum(counts)
        facets.append(Facet(column.field, column.title, chosen, by_value))
    return facets


def list_columns(
    data: Dataset,
    probabilities: NDArray[np.float32] | None,
    wanted: FaceFilter,
    others: NDArray[np.float32] | None = None,
) -> list[Column]:
    """Returns what faces can be chosen by, in the order in which a page shows it; arguments of `select_faces`."""
    columns = [Column("gender", "Label", GENDERS, data.gender)]
    if probabilities is not None:
        confidence, correct = _judge(data, probabilities, wanted.threshold)
        female = predict_female(probabilities, wanted.threshold)
        columns += [
            Column("predicted", "Predicted", GENDERS, female.astype(np.uint8)),
            Column("result", "Correct?", RESULTS, (~correct).astype(np.uint8)),
            Column(
                "confidence", "Confidence (%)", CONFIDENCE_BANDS, np.searchsorted(_BAND_EDGES, confidence, side="right")
            ),
        ]
        if others is not None:
            other_female = predict_female(others, wanted.threshold)
            other_correct = other_female == (data.gender == 1)
            # In the order of `AGREEMENTS`: both correct, only the first, only the second, both wrong.
            cells = 2 * (~correct).astype(np.uint8) + (~other_correct).astype(np.uint8)
            title = f"Models {wanted.version} and {wanted.other}"
            columns += [
                Column("models", title, MODELS, (female != other_female).astype(np.uint8)),
                Column("agreement", f"{title}: correct?", tuple(AGREEMENTS), cells),
            ]
    return [
        *columns,
        Column("age", "Age", AGE_BANDS, age_band_indices(data)),
        Column("ethnicity", "Ethnicity", ETHNICITIES, data.ethnicity),
        Column("split", "Split", SPLITS, data.split),
        Column("duplicates", "Near-duplicates", DUPLICATES, (data.groups < 0).astype(np.uint8)),
        Column("edited", "Edits", EDITED, data.edits),
    ]


def self_confidence(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the probability that a model gives to each face's own label: the lower, the likelier the label is wrong.

    The score "self-confidence" of Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset
    Labels" (Journal of Artificial Intelligence Research 70, 2021); with two classes, its other score, the normalized
    margin, gives the same order. A model must not have learned from a face that it judges.

    Args:
        labels: uint8 (N,), indices into `GENDERS`.
        probabilities: float32 (N,), of female.
    """
    return np.where(labels == 1, probabilities, 1 - probabilities)


def _judge(
    data: Dataset, probabilities: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns (the probability of the gender that is predicted, whether that is the label), (N,) each."""
    female = predict_female(probabilities, threshold)
    return np.where(female, probabilities, 1 - probabilities), female == (data.gender == 1)


def _conditions(
    data: Dataset, probabilities: NDArray[np.float32] | None, wanted: FaceFilter, columns: Sequence[Column]
) -> dict[str, NDArray[np.bool_]]:
    """Returns, by the field that asks for it, which faces fit: bool (N,)."""
    found: dict[str, NDArray[np.bool_]] = {}
    for column in columns:
        value = getattr(wanted, column.field)
        if value == ALL_FACES:
            found[column.field] = column.codes < len(column.values)
        elif value:
            found[column.field] = column.codes == column.values.index(value)
    if wanted.search:
        needle = _folded(wanted.search)
        found["search"] = np.fromiter((needle in _folded(name) for name in data.names), bool, len(data))
    if probabilities is not None:
        confidence, _ = _judge(data, probabilities, wanted.threshold)
        if wanted.low is not None:
            found["low"] = confidence >= wanted.low
        if wanted.high is not None:
            found["high"] = confidence <= wanted.high
    return found


def age_band_indices(data: Dataset) -> NDArray[np.intp]:
    """Returns (N,), each face's index into `shared.records.dataset.AGE_BANDS`."""
    return np.minimum(data.age // 10, len(AGE_BANDS) - 1).astype(np.intp)


def _folded(text: str) -> str:
    """Returns text as names are searched: in any case, and with accents composed, which macOS takes apart."""
    return unicodedata.normalize("NFC", text).casefold()


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
        "split": "excluded" if data.split[index] == EXCLUDED else SPLITS[data.split[index]],
        "edited": EDITED[data.edits[index]],
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

"""What the API answers, as types: its description is made from them, and tests hold the answers against it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from dashboard.workers import Speed
from shared.broker.base import Depth
from shared.faces.labels import GENDERS
from shared.measures.comparison import Comparison
from shared.records.annotations import Annotation, Kind
from shared.records.dataset import DatasetSummary
from shared.records.edits import Corrections, Edit
from shared.records.evaluation import Evaluation
from shared.records.jobs import Job
from shared.records.model_card import CardDataset, CardFile, ModelCard
from shared.records.record import Fault, ModelRef, Timestamp
from shared.records.registry import Aliases
from shared.records.runs import HISTORY_COLUMNS, Run

Share = Annotated[float, Field(ge=0, le=1)]
Gender = Literal[GENDERS]  # type: ignore[valid-type]  # a tuple of texts is what Literal takes


class View(BaseModel):
    """An answer: all of its fields are always there, and no others."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class Error(View):
    """Every answer that is not a success."""

    error: Fault


class Damaged(View):
    """A record that cannot be read."""

    file: str
    error: Fault


class RunAccepted(View):
    """`ahead`: runs that wait in the queue before this one."""

    run_id: str
    ahead: int


class RunCancelled(View):
    """The run was asked to stop."""

    run_id: str


class JobAccepted(View):
    """The job's id."""

    job_id: str


class Count(View):
    """How many were changed."""

    count: int


class DatasetListed(View):
    """A dataset; `summary` is null until it is processed."""

    sha256: str
    name: str | None
    summary: DatasetSummary | None
    annotation: Annotation | None


class Datasets(View):
    """Datasets."""

    datasets: list[DatasetListed]
    total: int


class EditRecord(Edit):
    """An edit of a dataset's labels."""

    model_config = ConfigDict(extra="forbid")


class CorrectionsRecord(Corrections):
    """The corrected faces, by their new label."""

    model_config = ConfigDict(extra="forbid")


class EditList(View):
    """Every edit of a dataset, oldest first; `sha256` names the corrections, and is null where there are none."""

    edits: list[EditRecord]
    corrections: CorrectionsRecord
    sha256: str | None


class EditMade(View):
    """The edit that was made or undone; `sha256` names the corrections now, and is null where there are none."""

    edit: EditRecord
    sha256: str | None


class Face(View):
    """A face with its label, as edits have corrected it, and the prediction of the model that was asked for."""

    index: int
    name: str
    gender: Gender
    age: int | None
    ethnicity: str | None
    split: str
    predicted: Gender | None
    probability_female: Share | None
    confidence: Share | None
    correct: bool | None
    edited: str


class FacetCounts(View):
    """What the faces can be chosen by: `counts` says how many would be found by each value of that parameter."""

    field: str
    title: str
    chosen: str
    counts: dict[str, int]


class Faces(View):
    """Some faces; `version` predicted them, `edits` is the hash of the corrections of their labels."""

    total: int
    faces: list[Face]
    facets: list[FacetCounts]
    version: int | None
    edits: str | None


class FacePrediction(View):
    """One model's prediction for a face; `role` says whether it has learned from it."""

    version: int
    predicted: Gender
    probability_female: Share
    confidence: Share
    correct: bool
    role: str


class FaceDetails(View):
    """A face with every model's prediction, the faces that look the same, and its edits, newest first."""

    face: Face
    archive_gender: Gender
    predictions: list[FacePrediction]
    near_duplicates: list[int]
    edits: list[EditRecord]


class RunRecord(Run):
    """A run as the store keeps it, under the name that people gave to it."""

    model_config = ConfigDict(extra="forbid")

    annotation: Annotation | None


HistoryRow = create_model("HistoryRow", __base__=View, **dict.fromkeys(HISTORY_COLUMNS, (float, ...)))  # type: ignore[call-overload]


class RunDetails(RunRecord):
    """A run with its curves, a row an epoch, and its evaluation."""

    history: list[HistoryRow]
    evaluation: Evaluation | None


class Runs(View):
    """Runs."""

    runs: list[RunRecord]
    total: int
    damaged: list[Damaged]


class JobRecord(Job):
    """A job as the store keeps it, under the name that people gave to it."""

    model_config = ConfigDict(extra="forbid")

    annotation: Annotation | None


class Done(View):
    """How many of a job's images have a row."""

    done: int
    total: int


class JobDetails(JobRecord):
    """A job and how far it is."""

    progress: Done


class Jobs(View):
    """Jobs."""

    jobs: list[JobRecord]
    total: int
    damaged: list[Damaged]


class AliasesNow(View):
    """Which versions are in use now."""

    aliases: Aliases


class Shadow(View):
    """How the challenger does beside the champion."""

    images: int
    failed: int
    agreement: Share | None
    mean_difference: Share | None
    time_ratio: float | None


class ModelSummary(View):
    """What the list says of a version; its card says more."""

    name: str
    version: int
    run_id: str
    created: Timestamp
    dataset: CardDataset
    metrics: dict[str, float]
    params: dict[str, Any]
    file: CardFile
    annotation: Annotation | None
    refused: str | None


class ModelDetails(ModelCard):
    """A version's card, what people say of it, and why workers refuse it, if they do."""

    model_config = ConfigDict(extra="forbid")

    annotation: Annotation | None
    refused: str | None


class AnnotationChanged(View):
    """What people say of it now."""

    annotation: Annotation


class Dependent(View):
    """What stays, and what it has lost."""

    kind: Kind
    id: str
    loss: str


class Deleted(View):
    """What was deleted, and what depended on it."""

    deleted: str
    dependents: list[Dependent]


class ComparisonDetails(Comparison):
    """Two versions on the same faces.

    Attributes:
        versions: the first and the second.
        dataset: SHA-256 of the dataset.
        split: the part of it, or `all`.
        threshold: predicted female from here on, by both.
        labels: the hash of the edits that make the labels, or `archive`; empty for those in force now.
        sentence: the result in words.
        caution: what to know of a model that learned from another dataset; empty where there is none.
    """

    model_config = ConfigDict(extra="forbid")

    versions: tuple[int, int]
    dataset: str
    split: str
    threshold: float
    labels: str
    sentence: str
    caution: str


class Models(View):
    """Versions and aliases."""

    aliases: Aliases
    shadow: Shadow | None
    models: list[ModelSummary]
    total: int
    damaged: list[Damaged]


class Prediction(View):
    """The prediction for one image."""

    id: str | None
    gender: Gender
    probability_female: Share
    confidence: Annotated[float, Field(ge=0.5, le=1)]


class NoPrediction(View):
    """Why there is none for one image."""

    id: str | None
    error: Fault


class Predictions(View):
    """An entry an image, in order."""

    schema_version: Literal[1] = Field(alias="schema")
    model: ModelRef | None
    predictions: list[Prediction | NoPrediction]


class Explanation(View):
    """Which areas of a face mattered: `drop` is what covering each place takes from the predicted gender."""

    grid: int
    drop: list[list[float]]
    probability_female: float
    model: ModelRef | None


class DeadLetter(View):
    """A message that could not be processed."""

    dead_id: str
    reason: str
    origin: str
    delivery_count: int
    message_id: str | None
    content_type: str | None
    size_bytes: int


class DeadLetters(View):
    """The oldest failed messages."""

    dead_letters: list[DeadLetter]


class Worker(BaseModel):
    """A process as its newest heartbeat describes it; what it tells differs from service to service."""

    model_config = ConfigDict(extra="allow")

    service: str
    worker: str
    silent_s: float
    alive: bool


class Status(View):
    """Services, queues, speed and aliases."""

    workers: list[Worker]
    queues: dict[str, Depth]
    speed: Speed
    aliases: Aliases


class OpenApi(BaseModel):
    """This description."""

    model_config = ConfigDict(extra="allow")

    openapi: str
    paths: dict[str, Any]

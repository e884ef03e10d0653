"""A model's card, `card.json`, in the form of Mitchell et al., "Model Cards for Model Reporting" (2019)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

from pydantic import Field

from shared.params import named_version
from shared.records.dataset import ARCHIVE_LABELS
from shared.records.evaluation import Evaluation
from shared.records.record import StoredModel, Timestamp

VariantPrecision = Literal["int8", "float16"]
ServedPrecision = Literal["float32", "int8", "float16"]
"""The precisions of a version's files: `float32` is the model itself, the others are its variants."""
STARTER_RUN: Final = "starter-"
"""What the `run_id` of the imported starter begins with, which no run of this installation has made."""
LUMA_RANGE: Final = (0, 255)
"""What the bins of `luma_histogram` cover: the mean luma that an image can have."""
CONTRAST_RANGE: Final = (0, 128)
"""The same for `contrast_histogram`: half black and half white is 127.5."""


class CardDataset(StoredModel):
    """What the model was trained on.

    Attributes:
        sha256: of the archive, which names it in the store.
        name: what its sender called it.
        counts: faces in each part of the split: `train`, `validation`, `test`.
        edits: the hash of the corrections of its labels; None where they are those of the archive.
        table_sha256: of its `faces.csv`, which says which faces it had and how they were split; None in the card of an
            earlier release.
    """

    sha256: str
    name: str
    counts: dict[str, int]
    edits: str | None = None
    table_sha256: str | None = None

    @property
    def labels(self) -> str:
        """Those that the model was trained with, whatever was edited later, as `Edits.corrections` takes them."""
        return self.edits or ARCHIVE_LABELS


class CardStart(StoredModel):
    """The weights that training began from, where it did not begin from random ones.

    Attributes:
        name: of the weights.
        source: the data that they were trained on, by whom, and its licence.
        archive_sha256: of that data.
        faces: how many faces they have seen.
        share: of the way from these weights to those that training came to, which the model is at.
    """

    name: str
    source: str
    archive_sha256: str
    faces: int
    share: float = 1.0


class CardFile(StoredModel):
    """A model file: what a reader compares before it loads it."""

    sha256: str
    size_bytes: int


class Variant(StoredModel):
    """The same network in another precision, compared with float32 on the same faces.

    Attributes:
        faces: how many faces both were measured on.
        accuracy_float32: share of them predicted correctly in float32.
        accuracy: the same in this precision.
        images_per_second_float32: on one thread of the trainer's CPU; None for float16, which only a GPU speeds up.
        images_per_second: the same in this precision.
        file: the ONNX file; None where the variant lost too much accuracy and so was not registered.
    """

    faces: int
    accuracy_float32: float
    accuracy: float
    images_per_second_float32: float | None = None
    images_per_second: float | None = None
    file: CardFile | None


def caution_of_strangers(cards: Iterable[ModelCard], dataset: str) -> str:
    """Returns what to know of models that were trained on another dataset than they are compared on; empty for none.

    Args:
        cards: of the models.
        dataset: what they are compared on.
    """
    strangers = [f"model {card.version}" for card in cards if card.dataset.sha256 != dataset]
    if not strangers:
        return ""
    who = " and ".join(strangers)
    return (
        f"{who[:1].upper()}{who[1:]} learned from another dataset. Faces that lie in both may be among those. They "
        "count here, in favour of whoever learned from them; the gate leaves them out."
    )


class GroupLoss(StoredModel):
    """A group of faces that a new model predicts worse than the champion, by more than chance explains.

    Attributes:
        name: of the group, as in `Evaluation.groups`.
        count: faces in the group.
        champion: the champion's accuracy on them.
        accuracy: the new model's accuracy on them.
    """

    name: str
    count: int
    champion: float
    accuracy: float


class GateResult(StoredModel):
    """The comparison of a new model with the champion on the same faces, by `trainer.release.promotion_gate.compare`.

    Attributes:
        passed: whether the new model is better, and no gender's recall fell beyond chance.
        reason: the result in a sentence.
        champion: the version that it was compared with; None where there was none.
        faces: how many faces both were compared on.
        balanced_accuracy: of the new model; None where nothing was compared.
        champion_balanced_accuracy: of the champion on the same faces; None where nothing was compared.
        difference_low: lower end of the 95 % interval of their difference.
        difference_high: its upper end.
        lost_groups: groups of 100 faces or more that lost accuracy by more than chance, worst first.
        labels_reversed: whether the labels look reversed.
    """

    passed: bool
    reason: str
    champion: int | None
    faces: int = 0
    balanced_accuracy: float | None = None
    champion_balanced_accuracy: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    lost_groups: list[GroupLoss] = Field(default_factory=list)
    labels_reversed: bool = False


class InputStatistics(StoredModel):
    """What the training faces look like: what drift in the faces to predict is held against.

    Attributes:
        faces: how many were measured.
        luma_mean: mean over all faces of their mean luma, 0-255.
        luma_std: standard deviation over the faces of their mean luma.
        contrast_mean: mean over all faces of the standard deviation of their luma.
        luma_histogram: faces by mean luma, 16 bins of equal width over 0-255.
        contrast_histogram: faces by the standard deviation of their luma, 32 bins of equal width over 0-128; empty on
            cards of older releases.
    """

    faces: int
    luma_mean: float
    luma_std: float
    contrast_mean: float
    luma_histogram: list[int]
    contrast_histogram: list[int] = Field(default_factory=list)


class ModelCard(StoredModel):
    """All facts about one registered version.

    Attributes:
        name: always `gender`.
        version: its number in the registry.
        run_id: the training run that made it.
        created: when, UTC, ISO 8601.
        dataset: what it was trained on.
        params: the training parameters, all of them.
        start: the weights that training began from; None where it began from random ones.
        metrics: the headline figures: `val_accuracy`, `val_loss`, `test_accuracy`, `test_auc`, `test_ece`, ….
        evaluation: everything measured on the held-out part.
        warnings: what the user should know about the data, in sentences.
        gate: the comparison with the champion of that time.
        temperature: the calibration inside the graph.
        parity: largest difference of torch's and ONNX Runtime's probability on real faces.
        file: `model.onnx`.
        variants: by precision: int8 for CPUs, float16 for GPUs; empty where `quantize` was off.
        parameters: trainable numbers in the network.
        multiply_adds: for one face.
        inputs: what the training faces look like.
        best_epoch: the epoch with the lowest validation loss, whose weights these are; from a start, those at
            `CardStart.share` of the way there.
        epochs: how many were trained.
        seconds: training time.
        device: what it was trained on.
        libraries: versions that decide what training gives: of `genderline` with its commit, Python and libraries.
    """

    schema_version: Literal[1] = 1
    name: Literal["gender"] = "gender"
    version: int
    run_id: str
    created: Timestamp
    dataset: CardDataset
    params: dict[str, Any]
    start: CardStart | None
    metrics: dict[str, float]
    evaluation: Evaluation
    warnings: list[str] = Field(default_factory=list)
    gate: GateResult | None = None
    temperature: float
    parity: float
    file: CardFile
    variants: dict[VariantPrecision, Variant]
    parameters: int
    multiply_adds: int
    inputs: InputStatistics
    best_epoch: int
    epochs: int
    seconds: float
    device: str
    libraries: dict[str, str]

    @property
    def is_starter(self) -> bool:
        """Whether this is the imported starter: neither its run nor its dataset is in the store."""
        return self.run_id.startswith(STARTER_RUN)

    @property
    def parents(self) -> tuple[int, ...]:
        """The registered versions that it has learned from: the one that it began from, and its teacher."""
        names = ("" if self.start is None else self.start.name, self.params.get("distil", "none"))
        return tuple(version for name in names if (version := named_version(name)) is not None)
